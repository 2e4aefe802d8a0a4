"""Patch classifiers: losses, freezing, dropout, predictions, selection."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_classifier
from tiny_classifier import SIZE, Tiny
import training_run

from kmil_jax import (
  losses as losses_of,
  parallel,
  train,
)
from kmil_jax.tasks import tiles as tile_task
from kmil_jax.tasks.tiles import PatchError, TileRuns, TileTask
from kmil_jax.types import PatchRecipe, TilePrediction

RATE = 1e-2
WEIGHTS = (1.0, 3.0)
RECIPE = PatchRecipe(
  weight_decay=1e-2, class_weight=WEIGHTS, mean=(0.5,) * 3, std=(0.16,) * 3
)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@functools.cache
def task_of(recipe=RECIPE, dropout=0.0, precision='float32', freeze=''):
  make = functools.partial(Tiny, dropout=dropout)
  shape = (SIZE, SIZE, 3)
  return TileTask(make, recipe, 2, shape, precision=precision, freeze=freeze)


def runs_of(seed=0):
  return TileRuns(seed=np.uint32([seed]))


@functools.cache
def variables():
  """Of one run, [1, ...]."""
  return train.draw(task_of(), runs_of())


def without_runs(tree):
  return jax.tree.map(lambda x: np.asarray(x)[0], tree)


def trained(task, seed=0, tiles=None, before=None, step=0):
  """The state and the sums of a step on all devices."""
  tiles = tiles or tiny_classifier.make_tiles()
  program = tile_task.program(task, lambda step: iter([tiles]))
  state = train.init(task, runs_of(seed), before or variables())
  state = state.replace(step=np.int32([step]))
  states, sums = program.train(
    program.put(state), 0, np.array([RATE]), np.array([True])
  )
  return without_runs(program.gather(states)), without_runs(sums)


def predict(task, of_run, batches):
  program = tile_task.program(task)
  models = program.put((of_run, runs_of()))
  return program.evaluate(models, lambda: iter(batches))


def test_losses_and_probabilities_are_torchs():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  for width in (1, 2, 4):
    draw = lambda w=width: rng.normal(scale=3, size=(7, w)).astype(np.float32)
    main = draw()
    label = rng.integers(0, max(width, 2), 7)
    class_weight = rng.random(max(width, 2)).astype(np.float32) + 0.1
    loss = losses_of.tile_cross_entropy(
      TilePrediction(logits=main, features=main),
      jnp.asarray(label),
    )
    weight = class_weight[label]

    def torchs(logits, label=label, class_weight=class_weight):
      logits, y = torch.tensor(logits), torch.tensor(label)
      w = torch.tensor(class_weight)
      if logits.shape[1] > 1:
        return torch.nn.functional.cross_entropy(logits, y, w)
      total = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:, 0], y.float(), w[y], reduction='sum'
      )
      return total / w[y].sum()

    close((loss * weight).sum() / weight.sum(), torchs(main).item())
    prob = losses_of.tile_probabilities(jnp.asarray(main))
    if width > 1:
      close(prob, torch.softmax(torch.tensor(main), 1))
    else:
      close(prob[:, 1:], torch.sigmoid(torch.tensor(main)))
      close(prob.sum(1), 1)


def test_dropout_depends_on_seed_step_and_device_alone():
  task, tiles = task_of(dropout=0.5), tiny_classifier.make_tiles()

  def loss(seed=0, tiles=tiles):
    _, sums = trained(task, seed=seed, tiles=tiles)
    return sums['loss'] / sums['weight']

  assert loss() == loss()
  assert abs(loss(0) - loss(1)) > 1e-3
  # All devices get the same tiles: only the keys can tell them apart.
  n = parallel.num_devices()
  repeated = jax.tree.map(lambda x: np.concatenate([x[:8]] * n), tiles)
  first = np.float32(np.arange(8 * n) < 8)
  alone = loss(tiles=repeated.replace(weight=first))
  assert n == 1 or abs(alone - loss(tiles=repeated)) > 1e-4


def test_frozen_modules_do_not_move_and_norm_with_running_statistics():
  task = task_of(freeze='conv1|bn1')
  tiles = tiny_classifier.make_tiles()
  stats = jax.tree.map(lambda x: x + 0.7, variables()['batch_stats'])
  before = {**variables(), 'batch_stats': stats}
  after, sums = trained(task, tiles=tiles, before=before)
  one = without_runs(before)
  for name in ('conv1', 'bn1'):
    chex.assert_trees_all_equal(after.params[name], one['params'][name])
  chex.assert_trees_all_equal(after.batch_stats, one['batch_stats'])
  moved = np.abs(after.params['fc']['kernel'] - one['params']['fc']['kernel'])
  close(moved, RATE, rtol=1e-2)  # Adam's first step.
  # A step sees what an evaluation sees.
  out = predict(task, before, [tiles])
  want = (out['loss'] * out['weight']).sum() / out['weight'].sum()
  close(sums['loss'] / sums['weight'], want)
  _, thawed = trained(task_of(), tiles=tiles)
  assert abs(thawed['loss'] - sums['loss']) / sums['weight'] > 1e-3


def test_tiles_are_augmented_by_seed_and_step_to_train_and_not_to_evaluate():
  task = task_of(dataclasses.replace(RECIPE, augment='stain'))
  tiles = tiny_classifier.make_tiles()

  loss = lambda task, *at: trained(task, at[0], tiles, step=at[1])[1]['loss']
  drawn = [loss(task_of(), 0, 0)]
  drawn += [loss(task, *at) for at in ((0, 0), (0, 1), (1, 0))]
  assert loss(task, 0, 1) == drawn[2]
  assert np.diff(np.sort(drawn)).min() > 1e-3
  seen = predict(task, variables(), [tiles])
  for name, column in predict(task_of(), variables(), [tiles]).items():
    np.testing.assert_array_equal(seen[name], column)


@pytest.mark.parametrize(
  'change,match',
  [
    ({'freeze': '.*'}, 'leaves nothing to train'),
    ({'freeze': 'layer1'}, r'no module\. Those at the top are bn1, conv1, fc'),
    ({'freeze': '('}, r"freeze='\('"),
    ({'num_classes': 3}, '2 class weights were given for 3'),
    ({'recipe': PatchRecipe(mean=(0.5,))}, r'mean \(0.5,\): tiles have 3'),
    (
      {'recipe': PatchRecipe(augment='stain'), 'shape': (SIZE, SIZE, 1)},
      r'1 channel\(s\), and --augment=stain',
    ),
  ],
)
def test_what_cannot_be_trained_is_refused(change, match):
  shape = (SIZE, SIZE, 3)
  options = {'recipe': RECIPE, 'num_classes': 2, 'shape': shape} | change
  with pytest.raises(PatchError, match=match):
    train.draw(TileTask(Tiny, **options), runs_of())


def test_bfloat16_is_near_float32_which_parameters_stay():
  state, rounded = trained(task_of(precision='bfloat16'))
  _, exact = trained(task_of())
  chex.assert_trees_all_equal_dtypes(
    state.params, without_runs(variables()['params'])
  )
  difference = abs(rounded['loss'] / exact['loss'] - 1)
  assert 1e-7 < difference < 0.02


def test_predictions_depend_neither_on_the_batch_nor_on_fillers():
  tiles = tiny_classifier.make_tiles(30)
  state, _ = trained(task_of())
  of_run = jax.tree.map(lambda x: x[None], state.variables)
  predicted = lambda size: predict(
    task_of(), of_run, tiny_classifier.batches(tiles, size)
  )
  want = predicted(32)
  assert want['prob'].shape == (30, 2) and want['features'].shape == (30, 4)
  np.testing.assert_array_equal(want['label'], tiles.label)
  own = -np.log(want['prob'][np.arange(30), tiles.label])
  np.testing.assert_allclose(want['loss'], own, rtol=1e-4, atol=1e-5)
  got = predicted(8)
  for name in want:
    close(got[name], want[name], rtol=1e-6, atol=1e-6)
  assert np.ptp(want['prob'][:, 1]) > 1e-2


HELD_OUT = tiny_classifier.make_tiles(20, seed=1, noise=0.2)


def fitted(folder):
  """A training whose labels are wrong from epoch 3 on; and its predictions."""
  recipe = dataclasses.replace(
    RECIPE, learning_rate=0.03, epochs=6, batch=16, augment='tang'
  )
  tiles = tiny_classifier.make_tiles(64)

  def misled(epoch):
    order = np.random.default_rng(epoch).permutation(64)
    shuffled = jax.tree.map(lambda x: x[order], tiles)
    shuffled = shuffled.replace(label=shuffled.label ^ (epoch >= 3))
    yield from tiny_classifier.batches(shuffled, recipe.batch)

  result = training_run.fit(
    folder,
    tile_task.program(task_of(recipe), misled),
    recipe,
    runs_of(),
    variables(),
    validation=lambda: tiny_classifier.batches(HELD_OUT, 8),
  )
  batches = tiny_classifier.batches(HELD_OUT, 20)
  return result, predict(task_of(), result.variables, batches)['prob']


def test_training_keeps_the_epoch_of_the_lowest_weighted_loss(tmp_path):
  result, prob = fitted(tmp_path)
  losses = result.history['val_loss'][:, 0]
  assert result.epoch[0] == np.argmin(losses) < 5
  assert result.history['train_loss'][2] < result.history['train_loss'][0]
  own = -np.log(prob[np.arange(20), HELD_OUT.label])
  weight = np.array(WEIGHTS)[HELD_OUT.label]
  np.testing.assert_allclose(
    min(losses), np.average(own, weights=weight), rtol=1e-4
  )
