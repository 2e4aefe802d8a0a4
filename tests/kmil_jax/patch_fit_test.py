"""The loop: which epoch is kept, when it ends, how it survives."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
import tiny_classifier
from tiny_classifier import SIZE, SPEC, Tiny

from kmil_jax import checkpoint, parallel, patch_fit, selection
from kmil_jax.patch_fit import Program
from kmil_jax.patch_train import PatchTrainer
from kmil_jax.selection import Validation
from kmil_jax.types import PatchRecipe, PatchSpec

RECIPE = PatchRecipe(
  learning_rate=0.03, epochs=6, batch=16, class_weight=(1.0, 2.0)
)
TRAIN = tiny_classifier.make_tiles(64)
VAL = tiny_classifier.make_tiles(20, seed=1, noise=0.2)


@pytest.fixture(scope='module')
def program():
  # Dropout, so that the number of steps matters.
  make = functools.partial(Tiny, dropout=0.2)
  spec = PatchSpec(make=make, paper='')
  return Program(PatchTrainer(spec, RECIPE, 2))


def epoch_of(epoch):
  order = np.random.default_rng(epoch).permutation(64)
  shuffled = jax.tree.map(lambda x: x[order], TRAIN)
  yield from tiny_classifier.batches(shuffled, RECIPE.batch)


def run(program, folder, recipe=RECIPE, train=epoch_of, val=VAL, report=None):
  state = program.trainer.init(program.trainer.draw((SIZE, SIZE, 3), 0), 0)
  checkpoints = checkpoint.Checkpoints(folder)
  try:
    return patch_fit.fit(
      program,
      recipe,
      state,
      train=train,
      val=lambda: tiny_classifier.batches(val, 8),
      label=val.label,
      checkpoints=checkpoints,
      report=report or (lambda history: None),
    )
  finally:
    checkpoints.close()


def without_speed(history):
  return [
    {k: v for k, v in row.items() if 'second' not in k} for row in history
  ]


def test_the_epoch_kept_is_that_of_the_lowest_loss(program, tmp_path):
  def misled(epoch):
    for tiles in epoch_of(epoch):
      yield tiles.replace(label=tiles.label ^ (epoch >= 3))

  seen = []
  fitted = run(
    program, tmp_path, train=misled, report=lambda h: seen.append(h[-1])
  )
  assert fitted.history == seen
  losses = [row['val_loss'] for row in seen]
  assert [row['epoch'] for row in seen] == list(range(6))
  assert fitted.epoch == np.argmin(losses) == seen[-1]['best_epoch'] < 5
  assert seen[2]['train_loss'] < seen[0]['train_loss']
  assert all(row['tiles_per_second'] > 0 for row in seen)
  kept = parallel.replicate(fitted.variables)
  again = patch_fit.validate(
    program, kept, tiny_classifier.batches(VAL, 20), VAL.label
  )
  np.testing.assert_allclose(again.loss, min(losses), rtol=1e-5)
  said = program.predict(
    kept, tiny_classifier.batches(VAL, 8), ('prob', 'loss')
  )
  own = -np.log(said['prob'][np.arange(20), VAL.label])
  np.testing.assert_allclose(said['loss'], own, rtol=1e-4, atol=1e-5)
  # The validation loss counts classes as the recipe does.
  weight = np.array(RECIPE.class_weight)[VAL.label]
  np.testing.assert_allclose(again.loss, np.average(own, weights=weight), 1e-4)
  # Training ends when patience does.
  patient = dataclasses.replace(RECIPE, patience=1)
  fitted = run(program, tmp_path / 'patient', patient, train=misled)
  assert len(fitted.history) == fitted.epoch + 2 < 6
  assert without_speed(fitted.history) == without_speed(
    seen[: len(fitted.history)]
  )


def test_a_stopped_training_goes_on_as_if_it_had_not(
  program, tmp_path, monkeypatch
):
  monkeypatch.setattr(patch_fit, 'SECONDS_BETWEEN_SAVES', 0)
  whole = run(program, tmp_path / 'whole')

  def stop(history):
    if len(history) == 4:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(program, tmp_path / 'stopped', report=stop)
  seen = []
  resumed = run(program, tmp_path / 'stopped', report=seen.append)
  assert len(seen) == 3  # Epoch 3 was not saved, those before it were.
  chex.assert_trees_all_equal(resumed.variables, whole.variables)
  assert resumed.epoch == whole.epoch
  assert without_speed(resumed.history) == without_speed(whole.history)
  # Nothing is left to do.
  done = run(program, tmp_path / 'stopped', report=seen.append)
  assert len(seen) == 3
  chex.assert_trees_all_equal(done.variables, whole.variables)


@pytest.mark.parametrize('broken', ['training', 'validation'])
def test_a_loss_that_is_not_finite_ends_in_words(program, tmp_path, broken):
  def train(epoch):
    for tiles in epoch_of(epoch):
      spoil = np.nan if epoch and broken == 'training' else 1
      yield tiles.replace(image=tiles.image * spoil)

  val = VAL
  if broken == 'validation':
    val = VAL.replace(image=VAL.image * np.nan)
  epoch = int(broken == 'training')
  with pytest.raises(
    FloatingPointError, match=f'epoch {epoch}: the {broken} loss.*--lr'
  ):
    run(program, tmp_path, train=train, val=val)


def test_step_and_prediction_compile_once(tmp_path, monkeypatch):
  for name in ('step', 'predict'):
    traced = chex.assert_max_traces(getattr(PatchTrainer, name), n=1)
    monkeypatch.setattr(PatchTrainer, name, traced)
  program = Program(PatchTrainer(SPEC, RECIPE, 2))
  recipe = dataclasses.replace(RECIPE, epochs=2)
  run(program, tmp_path / '0', recipe)
  other = dataclasses.replace(recipe, learning_rate=0.1, schedule='constant')
  run(program, tmp_path / '1', other)


def follow(recipe, **values):
  """Rates after and epochs kept at every epoch of a validation."""
  length = len(next(iter(values.values())))
  table = {
    name: np.zeros((length, 1))
    for name in ('f1_macro', 'accuracy', 'auroc', 'loss')
  }
  table |= {k: np.array(v, float)[:, None] for k, v in values.items()}
  chosen, trace = selection.start(1, recipe), []
  for epoch in range(length):
    now = Validation(**{name: x[epoch] for name, x in table.items()})
    chosen, _ = selection.update(chosen, recipe, epoch, now)
    trace.append((float(chosen.learning_rate[0]), int(chosen.epoch[0])))
  return trace


def test_every_decade_takes_a_tenth_of_the_rate():
  recipe = PatchRecipe(schedule='decade', learning_rate=1e-3, epochs=30)
  rates = [1e-3, *(rate for rate, _ in follow(recipe, loss=np.zeros(30)))]
  want = [1e-3 * 0.1 ** (epoch // 10) for epoch in range(31)]
  np.testing.assert_allclose(rates, want)


@pytest.mark.parametrize('select', ['accuracy', 'auroc'])
def test_the_highest_is_kept_and_the_earlier_on_a_tie(select):
  values = {select: [np.nan, 0.5, 0.7, 0.7, 0.6, 0.8]}
  kept = [k for _, k in follow(PatchRecipe(select=select), **values)]
  assert kept == [-1, 1, 2, 2, 2, 5]
