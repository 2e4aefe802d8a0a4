"""Runs as an axis: together, alone, resident, streamed, spread over devices."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_run

from kmil_jax import parallel, train
from kmil_jax.models import SPECS, cpu
from kmil_jax.tasks.bags import BagRuns, BagTask
from kmil_jax.types import Bags, Recipe

close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def losses_and_prob(*args, **options):
  """Training and validation losses [E, R], and predictions of all bags."""
  result, prob = training_run.run(*args, **options)
  return result.history['train_loss'], result.history['val_loss'], prob


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """What resident bags give, of DSMIL, one at a time."""
  return losses_and_prob(tmp_path_factory.mktemp('plain'))


@pytest.mark.parametrize('model,batch,fold', [('abmil', 1, 3), ('dsmil', 4, 9)])
def test_ten_folds_together_equal_a_fold_alone(tmp_path, model, batch, fold):
  result, prob = training_run.run(
    tmp_path / 'all', model=model, batch=batch, folds=tuple(range(10))
  )
  losses = result.history['train_loss']
  assert (losses[-1] < losses[0]).all()
  alone, alone_prob = training_run.run(
    tmp_path / 'alone', model=model, batch=batch, folds=(fold,)
  )
  close(alone.history['train_loss'][:, 0], losses[:, fold])
  close(alone_prob[0], prob[fold])


def test_streamed_features_give_what_resident_ones_give(tmp_path, plain):
  """Of a batch of one bag; pod_test has larger ones."""
  jax.tree.map(close, losses_and_prob(tmp_path, streamed=True), plain)


def test_the_memory_of_a_stream_is_that_of_its_longest_bags(monkeypatch):
  task, state = three_runs()
  store = training_run.make_store(4)
  # It is the last of the epoch.
  last = np.random.default_rng([0, 0]).permutation(4)[-1]
  length = np.where(np.arange(4) == last, training_run.LONGEST, 1)
  store = store.replace(features=store.features[:, :4], length=length)
  loader = training_run.loader_of(store, streamed=True)
  trains, state = np.ones((1, 4), bool), jax.tree.map(lambda x: x[:1], state)
  program = loader.program(task, 1, Recipe(), trains=trains)
  step = program.compiled(program.put(state))
  bag = step.args_info[0][2][1][0]
  assert bag.shape == (1, 1, training_run.LONGEST, 4)
  # Two more are on the device.
  room = parallel.peak_bytes(step) + bag.dtype.itemsize * np.prod(bag.shape)
  monkeypatch.setattr(parallel, 'memory_bytes', lambda host: room)
  with pytest.raises(MemoryError):
    program.start(state)


@pytest.mark.parametrize(
  'model,batch,platform',
  [('dsmil', 1, 'cpu'), ('dsmil', 1, 'tpu'), ('abmil', 8, 'cpu')],
)
def test_features_spread_over_devices_give_what_copies_give(
  tmp_path, model, batch, platform
):
  # Neither the rows of the store nor those of a bag divide over the devices,
  # and what no bag has is not a number.
  store = training_run.make_store()
  devices = parallel.num_devices()
  assert devices >= 4 and len(store.features) % devices
  store.features[store.length.sum() :] = np.nan
  options = {'model': model, 'batch': batch, 'store': store}
  resident = losses_and_prob(tmp_path / 'resident', **options)
  with cpu.lowering_for(platform):
    spread = losses_and_prob(tmp_path / 'spread', spread=True, **options)
  jax.tree.map(close, spread, resident)


def test_rows_behind_the_last_bag_and_the_next_are_unseen(tmp_path, plain):
  store = training_run.make_store()
  store.features[-training_run.LONGEST :] = 1e6
  jax.tree.map(close, losses_and_prob(tmp_path, store=store), plain)


def test_instances_that_are_not_kept_are_as_if_absent(tmp_path, plain):
  store = training_run.make_store()
  rows = store.length.sum() + training_run.LONGEST
  keep = np.random.default_rng(1).random((3, rows)) < 0.6
  keep[:, store.offset] = True
  kept = losses_and_prob(tmp_path / 'kept', keep=keep)
  spoilt = store.features.copy()
  spoilt[~keep.any(0)] = 50
  spoilt = losses_and_prob(
    tmp_path / 'spoilt', keep=keep, store=store.replace(features=spoilt)
  )
  close(spoilt[0], kept[0])
  assert np.abs(plain[0] - kept[0]).max() > 1e-3


ONE_BAG = Bags(
  features=np.ones((1, 2, 4), np.float32),
  mask=np.ones((1, 2), bool),
  label=np.zeros(1, np.int32),
  index=np.zeros(1, np.int32),
  offset=np.zeros(1, np.int32),
)


def three_runs(spec=SPECS['abmil']):
  """A task and its runs, of which the second does not train on bag 0."""
  task = BagTask(spec, Recipe(), 3, 4)
  runs = BagRuns(
    seed=np.zeros(3, np.uint32),
    fold=np.arange(3, dtype=np.uint32),
    trains=np.array([[True, False], [False, True], [True, True]]),
  )
  return task, train.init(task, runs, train.draw(task, runs))


def test_a_run_moves_only_on_bags_of_its_training_part():
  task, state = three_runs()
  state = state.replace(
    learning_rate=np.ones(3, np.float32),
    active=np.array([True, True, False]),
  )

  @jax.jit
  def step(state):
    grads, stats, sums = train.gradients(task, state, ONE_BAG, None)
    return train.update(task, state, grads, stats, sums['weight']), sums

  after, sums = step(state)
  np.testing.assert_array_equal(sums['weight'], [1, 0, 0])
  np.testing.assert_array_equal(sums['count'], [1, 0, 0])
  np.testing.assert_array_equal(after.step, [1, 0, 0])
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


def test_the_loss_of_a_bag_of_other_runs_may_be_nan():
  nan = lambda prediction, mask, label: jnp.float32(jnp.nan)
  task, state = three_runs(dataclasses.replace(SPECS['dsmil'], loss=nan))
  step = jax.jit(lambda s: train.gradients(task, s, ONE_BAG, None)[2])
  np.testing.assert_array_equal(step(state)['loss'], [np.nan, 0, np.nan])


def test_only_a_run_that_failed_goes_back_to_its_best():
  _, state = three_runs()
  now = jax.tree.map(lambda x: np.full_like(x, 1), state.params)
  kept = train.keep_best(
    state.replace(params=now),
    improved=np.array([False, True, False]),
    failed=np.array([False, False, True]),
  )
  leaf = lambda tree, of: jax.tree.leaves(tree)[0][of]
  for run, goes_on in enumerate((True, True, False)):
    want = leaf(now if goes_on else state.params, run)
    np.testing.assert_array_equal(leaf(kept.params, run), want)
    want = leaf(now if run == 1 else state.params, run)
    np.testing.assert_array_equal(leaf(kept.best['params'], run), want)


def test_fillers_weigh_nothing():
  task, _ = three_runs()
  trains = jnp.array([True, False])
  run = BagRuns(seed=0, fold=0, trains=trains)
  batch = ONE_BAG.replace(index=jnp.array([-1, 0, 1]))
  np.testing.assert_array_equal(task.weight(batch, run), [0, 1, 0])


@pytest.mark.parametrize(
  'model,batch', [('dsmil', 1), ('abmil', 1), ('dtfd', 1), ('dsmil', 8)]
)
def test_runs_one_by_one_learn_what_runs_at_once_do(
  tmp_path, monkeypatch, model, batch
):
  store = training_run.make_store()
  rows = store.length.sum() + training_run.LONGEST
  keep = np.random.default_rng(1).random((10, rows)) < 0.8
  keep[:, store.offset] = True
  many = {'folds': tuple(range(10)), 'epoch_count': 1, 'keep': keep}
  many |= {'model': model, 'batch': batch}
  outputs = []
  spec = dataclasses.replace(SPECS[model], one_by_one=True)
  monkeypatch.setitem(SPECS, model, spec)
  for platform in ('cpu', 'tpu'):
    with cpu.lowering_for(platform):
      outputs.append(losses_and_prob(tmp_path / platform, **many))
  jax.tree.map(close, *outputs)


@pytest.mark.parametrize('apart', [False, True])
def test_a_bag_of_other_runs_costs_a_run_nothing(apart):
  spec = dataclasses.replace(SPECS['abmil'], one_by_one=apart)
  task, state = three_runs(spec)
  broken = np.full_like(ONE_BAG.features, np.inf)

  def gradients(state):
    bags = ONE_BAG.replace(features=broken)
    return train.gradients(task, state, bags, None)

  with cpu.lowering_for('cpu'):
    _, _, sums = jax.jit(gradients)(state)
    program = str(jax.make_jaxpr(gradients)(state))
  np.testing.assert_array_equal(np.isfinite(sums['loss']), [0, 1, 0])
  assert sums['loss'][1] == 0
  assert ('cond[' in program) == apart  # Nothing is computed for it, either.


def test_an_epoch_compiles_once_for_all_bags_and_epochs(tmp_path, monkeypatch):
  traced = chex.assert_max_traces(train.update, n=1)
  monkeypatch.setattr(train, 'update', traced)
  training_run.run(tmp_path, epoch_count=4)


@pytest.mark.parametrize(
  ('batch', 'platform'), [(1, 'cpu'), (1, 'tpu'), (4, 'cpu')]
)
def test_evaluation_compiles_a_bounded_number_of_times(
  batch, platform, monkeypatch
):
  """Whatever the number of pairs; the predictions are those of all."""
  task, _ = three_runs()
  chex.clear_trace_counter()
  traces = chex.assert_max_traces(task.predict, n=4 * 2)  # Per length.
  monkeypatch.setattr(task, 'predict', traces)
  store = training_run.make_store(120)
  store = store.replace(features=store.features[:, :4])
  runs = BagRuns(
    seed=np.zeros(3, np.uint32),
    fold=np.arange(3, dtype=np.uint32),
    trains=np.zeros((3, 120), bool),
  )
  loader = training_run.loader_of(store)
  program = loader.program(task, 3, Recipe(batch=batch))
  models = program.put((train.draw(task, runs), runs))
  with cpu.lowering_for(platform):
    every = program.evaluate(models, np.ones((3, 120), bool))
    rng = np.random.default_rng(0)
    for share in (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
      some = rng.random((3, 120)) < share
      predicted = program.evaluate(models, some)
      assert len(predicted['run']) == some.sum()
      for name, values in predicted.items():
        np.testing.assert_array_equal(values, every[name][some.ravel()])


def test_a_batch_that_does_not_divide_over_devices_is_refused(tmp_path):
  if parallel.num_devices() == 1:
    pytest.skip('one device divides everything')
  with pytest.raises(ValueError, match='of 3 does not divide over 4 devices'):
    training_run.run(tmp_path, batch=3)
