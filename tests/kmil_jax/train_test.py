"""Runs as an axis: together, alone, resident, streamed, spread over devices."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
import training_run

from kmil_jax import parallel, train
from kmil_jax.models import SPECS, cpu
from kmil_jax.types import Bags, Recipe

close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('model,batch', [('abmil', 1), ('dsmil', 4)])
def test_ten_folds_together_equal_each_fold_alone(tmp_path, model, batch):
  losses, prob = training_run.run(
    tmp_path / 'all', model=model, batch=batch, folds=tuple(range(10))
  )
  assert (losses[-1] < losses[0]).all()
  for fold in (3, 9):
    alone_losses, alone_prob = training_run.run(
      tmp_path / f'{fold}', model=model, batch=batch, folds=(fold,)
    )
    close(alone_losses[:, 0], losses[:, fold])
    close(alone_prob[0], prob[fold])


@pytest.mark.parametrize('batch', [1, 4])
def test_streamed_features_give_what_resident_ones_give(tmp_path, batch):
  resident = training_run.run(tmp_path / 'resident', batch=batch)
  streamed = training_run.run(tmp_path / 'streamed', batch=batch, streamed=True)
  for got, want in zip(streamed, resident, strict=True):
    close(got, want)


def test_rows_behind_the_last_bag_and_the_next_bag_are_never_seen(tmp_path):
  store = training_run.make_store()
  store.features[-training_run.LENGTHS[-1] :] = 1e6
  for got, want in zip(
    training_run.run(tmp_path / 'dirty', store=store),
    training_run.run(tmp_path / 'clean'),
    strict=True,
  ):
    close(got, want)


def test_instances_that_are_not_kept_are_as_if_they_were_not_there(tmp_path):
  store = training_run.make_store()
  rows = store.length.sum() + training_run.LENGTHS[-1]
  keep = np.random.default_rng(1).random((3, rows)) < 0.6
  keep[:, store.offset] = True
  kept = training_run.run(tmp_path / 'kept', keep=keep)
  spoilt = store.features.copy()
  spoilt[~keep.any(0)] = 50
  spoilt = training_run.run(
    tmp_path / 'spoilt', keep=keep, store=store.replace(features=spoilt)
  )
  close(spoilt[0], kept[0])
  whole = training_run.run(tmp_path / 'whole')
  assert np.abs(whole[0] - kept[0]).max() > 1e-3


def test_a_run_moves_only_on_bags_of_its_training_part():
  trainer = train.Trainer(SPECS['abmil'], Recipe(), 3)
  trains = np.array([[True, False], [False, True], [True, True]])
  state = trainer.init(
    4, seed=np.zeros(3), fold=np.arange(3), trains=trains
  ).replace(
    learning_rate=np.ones(3, np.float32),
    active=np.array([True, True, False]),
  )
  bags = Bags(
    features=np.ones((1, 2, 4), np.float32),
    mask=np.ones((1, 2), bool),
    label=np.zeros(1, np.int32),
    index=np.zeros(1, np.int32),
  )

  @jax.jit
  def step(state):
    grads, _, count = trainer.gradients(state, bags, np.zeros(1, int), 0)
    return trainer.update(state, grads, count), count

  after, count = step(state)
  np.testing.assert_array_equal(count, [1, 0, 0])
  before = (state.params, state.opt_state)
  moved = jax.tree.map(
    lambda a, b: np.array(
      [not np.array_equal(x, y) for x, y in zip(a, b, strict=True)]
    ),
    before,
    (after.params, after.opt_state),
  )
  moved = np.stack(jax.tree.leaves(moved))
  assert moved[:, 0].any()
  assert not moved[:, 1:].any()


@pytest.mark.parametrize(
  'model,batch', [('dsmil', 1), ('abmil', 1), ('dtfd', 1), ('dsmil', 8)]
)
def test_runs_one_by_one_learn_what_runs_at_once_do(
  tmp_path, monkeypatch, model, batch
):
  store = training_run.make_store()
  rows = store.length.sum() + training_run.LENGTHS[-1]
  keep = np.random.default_rng(1).random((10, rows)) < 0.8
  keep[:, store.offset] = True
  found = []
  spec = dataclasses.replace(SPECS[model], one_by_one=True)
  monkeypatch.setitem(SPECS, model, spec)
  for platform in ('cpu', 'tpu'):
    with cpu.lowering_for(platform):
      found.append(
        training_run.run(
          tmp_path / platform,
          model=model,
          batch=batch,
          folds=tuple(range(10)),
          epoch_count=1,
          keep=keep,
        )
      )
  jax.tree.map(close, *found)


@pytest.mark.parametrize('apart', [False, True])
def test_a_bag_of_other_runs_costs_a_run_nothing(apart):
  trains = np.array([[True, False], [False, True], [True, True]])
  spec = dataclasses.replace(SPECS['abmil'], one_by_one=apart)
  trainer = train.Trainer(spec, Recipe(), 3)
  state = trainer.init(4, seed=np.zeros(3), fold=np.arange(3), trains=trains)
  bags = Bags(
    features=np.full((1, 2, 4), np.inf, np.float32),
    mask=np.ones((1, 2), bool),
    label=np.zeros(1, np.int32),
    index=np.zeros(1, np.int32),
  )
  arguments = (state, bags, np.zeros(1, np.int32), 0)
  with cpu.lowering_for('cpu'):
    _, loss, _ = trainer.gradients(*arguments)
    program = str(jax.make_jaxpr(trainer.gradients)(*arguments))
  np.testing.assert_array_equal(np.isfinite(loss), [False, True, False])
  assert loss[1] == 0
  assert ('cond[' in program) == apart  # Nothing is computed for it, either.


def test_an_epoch_compiles_once_for_all_bags_and_epochs(tmp_path, monkeypatch):
  traced = chex.assert_max_traces(train.Trainer.update, n=1)
  monkeypatch.setattr(train.Trainer, 'update', traced)
  training_run.run(tmp_path, epoch_count=4)


def test_deal_gives_every_row_to_its_owner_once():
  devices = parallel.num_devices()
  owner = np.random.default_rng(0).integers(0, devices, 20)
  column = np.arange(20)
  slot, dealt = parallel.deal(owner, column)
  np.testing.assert_array_equal(dealt[owner, slot], column)
  assert (dealt >= 0).sum() == 20


def test_a_batch_that_does_not_divide_over_devices_is_refused(tmp_path):
  if parallel.num_devices() == 1:
    pytest.skip('one device divides everything')
  with pytest.raises(ValueError, match='3 bags does not divide over 4 devices'):
    training_run.run(tmp_path, batch=3)


def test_training_stops_at_a_loss_that_is_not_finite(tmp_path):
  store = training_run.make_store()
  store.features[store.offset] = 1e38
  with pytest.raises(FloatingPointError, match='loss of run'):
    training_run.run(tmp_path, store=store)
