"""The loop with a task of its own: recovery, devices, runs that diverge."""

import dataclasses
import pathlib
import re

import chex
import jax
import numpy as np
import pytest
import toy_task

from kmil_jax import loop, parallel, programs, train
from kmil_jax.parallel import ExamplesOverDevices, RunsOverDevices


class KilledError(Exception):
  """In place of a kill."""


def same(got, want, rtol=0.0):
  """The same variables and history, but for speed."""
  rows = [
    {name: x for name, x in r.history.items() if 'second' not in name}
    for r in (got, want)
  ]
  chex.assert_trees_all_close(
    (got.variables, rows[0], got.epoch, got.failed),
    (want.variables, rows[1], want.epoch, want.failed),
    rtol=rtol,
    atol=rtol,
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return toy_task.run(tmp_path_factory.mktemp('whole'))


def test_it_learns_and_tells_every_epoch(whole, tmp_path):
  seen = []
  toy_task.run(tmp_path, report=seen.append)
  assert [len(h['val_loss']) for h in seen] == [1, 2, 3, 4, 5]
  history = seen[-1]
  assert tuple(history) == loop.COLUMNS
  for name in ('train_loss', 'val_loss'):
    assert history[name].shape == (5, 3)
    assert (history[name][-1] < history[name][0]).all()
  assert (history['examples_per_second'] > 0).all()
  assert np.isnan(history['val_threshold']).all()
  np.testing.assert_array_equal(
    history['best_epoch'][-1], history['val_loss'].argmin(0)
  )
  rates = history['learning_rate'][:, 0]
  assert rates[0] == toy_task.RECIPE.learning_rate
  assert (np.diff(rates) < 0).all()
  assert (whole.failed == -1).all()


@pytest.mark.parametrize(
  'options',
  [
    {'streamed': True},
    {'at_once': 1},
    {'at_once': 2, 'streamed': True},
    {'layout': ExamplesOverDevices},
    {'layout': ExamplesOverDevices, 'streamed': True, 'at_once': 1},
  ],
)
def test_devices_groups_and_streams_change_nothing(whole, tmp_path, options):
  same(toy_task.run(tmp_path, **options), whole, rtol=1e-5)


def test_runs_that_do_not_fit_the_memory_take_turns(
  whole, tmp_path, monkeypatch
):
  real, peaks = parallel.peak_bytes, []

  def peak_bytes(compiled):
    peaks.append(real(compiled))
    return peaks[-1]

  def train_in(room, name, **options):
    monkeypatch.setattr(parallel, 'memory_bytes', lambda host: room)
    return toy_task.run(tmp_path / name, **options)

  monkeypatch.setattr(parallel, 'peak_bytes', peak_bytes)
  options = {'layout': ExamplesOverDevices}
  with pytest.raises(MemoryError, match='needs more than'):
    train_in(1, 'none', **options)
  of_three, of_one = peaks  # Nothing in between was compiled.
  with pytest.warns(UserWarning, match='3 runs .* trained 2 at a time'):
    same(train_in(of_three - 1, 'two', **options), whole, rtol=1e-5)
  of_two = peaks[-1]
  assert of_three > of_two > of_one
  with pytest.warns(UserWarning, match='3 runs .* trained 1 at a time'):
    one = train_in(of_two, 'one', **options)  # The third's state waits there.
  same(one, whole, rtol=1e-5)


@pytest.mark.parametrize('streamed', [False, True])
def test_runs_take_turns_where_xla_refuses_them(
  tmp_path, monkeypatch, streamed
):
  refused = iter([True, False, True])

  def peak_bytes(compiled):  # As XLA does for TPUs.
    if next(refused):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: hbm')
    return 0

  devices = parallel.num_devices()
  seeds = tuple(range(2 * devices + 1))
  options = {'seeds': seeds, 'streamed': streamed}
  want = toy_task.run(tmp_path / 'whole', **options)
  monkeypatch.setattr(parallel, 'memory_bytes', lambda host: 2**20)
  monkeypatch.setattr(parallel, 'peak_bytes', peak_bytes)
  with pytest.warns(UserWarning, match=f'trained {devices} at a time'):
    turns = toy_task.run(tmp_path / 'turns', **options)
  same(turns, want, rtol=1e-5)


def test_a_stream_keeps_two_steps_in_flight_and_waits_for_no_loss(monkeypatch):
  started, done, steps = [], [], 40

  class Stream(toy_task.ToyLoader):
    def train(self, epoch, runs, layout):
      yield from range(steps)

  def start(state, store, step):
    assert len(started) - len(done) <= 2  # It is read while they compute.
    started.append(step)
    return state, {name: np.full((1, 1), step) for name in train.SUMS}

  def gather(self, tree):
    of = [int(sums['loss'][0, 0]) for sums in tree]
    assert len(started) == steps or set(of) <= set(done)
    return [{name: x[0] for name, x in sums.items()} for sums in tree]

  wait = lambda sums: done.append(int(sums['loss'][0, 0]))
  monkeypatch.setattr(jax, 'block_until_ready', wait)
  monkeypatch.setattr(RunsOverDevices, 'gather', gather)
  program = programs.Program(toy_task.TASK, 1, Stream(True))
  monkeypatch.setattr(program, '_train', start)
  runs = toy_task.Lines(seed=np.uint32([0]), breaks=np.int32([99]))
  state = train.init(toy_task.TASK, runs, train.draw(toy_task.TASK, runs))
  _, sums = program.train(program.put(state), 0, np.ones(1), np.ones(1, bool))
  assert sums['loss'] == sum(range(steps))
  assert done == list(range(steps - 2))  # Two are always on their way.


@pytest.mark.parametrize('layout', [RunsOverDevices, ExamplesOverDevices])
def test_a_killed_training_ends_as_one_that_was_not(
  tmp_path, monkeypatch, layout
):
  monkeypatch.setattr(loop, 'SECONDS_BETWEEN_SAVES', 0.0)
  options = {'layout': layout, 'breaks': [99, 2, 99]}
  whole, seen = toy_task.run(tmp_path / 'whole', **options), []

  def kill(history):
    seen.append(len(history['val_loss']))
    if seen[-1] == 4:
      raise KilledError

  with pytest.raises(KilledError):
    toy_task.run(tmp_path / 'killed', report=kill, **options)
  seen.clear()
  resumed = toy_task.run(
    tmp_path / 'killed',
    report=lambda history: seen.append(len(history['val_loss'])),
    **options,
  )
  assert seen == [4, 5]  # The fourth was not saved, those before it were.
  same(resumed, whole)
  # Nothing is left to do.
  same(toy_task.run(tmp_path / 'killed', report=seen.append, **options), whole)
  assert len(seen) == 2


def test_a_run_that_diverges_stops_alone_with_its_best_epoch(whole, tmp_path):
  broken = toy_task.run(tmp_path, breaks=[99, 3, 99])
  np.testing.assert_array_equal(broken.failed, [-1, 3, -1])
  others = lambda tree: jax.tree.map(lambda x: x[[0, 2]], tree)
  chex.assert_trees_all_equal(others(broken.variables), others(whole.variables))
  chex.assert_tree_all_finite(broken.variables)
  assert broken.epoch[1] < 3
  loss = broken.history['train_loss'][:, 1]
  np.testing.assert_array_equal(loss[:3], whole.history['train_loss'][:3, 1])
  # Of the epochs after it there is nothing.
  assert np.isnan(loss[3:]).all()
  ended = np.isnan(broken.history['best_epoch'][:, 1])
  np.testing.assert_array_equal(ended, [False] * 4 + [True])


def test_a_run_that_keeps_the_last_epoch_does_not_keep_one_of_nan(tmp_path):
  recipe = dataclasses.replace(toy_task.RECIPE, select='last')
  result = toy_task.run(tmp_path, breaks=[99, 3, 99], recipe=recipe)
  np.testing.assert_array_equal(result.epoch, [4, 2, 4])
  chex.assert_tree_all_finite(result.variables)


def test_it_ends_once_all_have_diverged(tmp_path):
  seen = []
  result = toy_task.run(tmp_path, breaks=[1, 2, 1], report=seen.append)
  assert len(seen) == 3
  np.testing.assert_array_equal(result.failed, [1, 2, 1])
  at_once = toy_task.run(tmp_path / 'at_once', breaks=[0, 0, 0])
  assert at_once.lost.all() and not result.lost.any()
  chex.assert_tree_all_finite(at_once.variables)


def test_patience_ends_runs_one_by_one(tmp_path):
  recipe = dataclasses.replace(
    toy_task.RECIPE, patience=1, learning_rate=3.0, epochs=40
  )
  result = toy_task.run(tmp_path, recipe=recipe)
  loss = result.history['val_loss']
  assert len(loss) < 40
  for run, best in enumerate(result.epoch):
    ran = np.isfinite(loss[:, run])
    assert ran.sum() == best + 2
    assert loss[ran, run].argmin() == best


def test_programs_compile_once(tmp_path, monkeypatch):
  chex.clear_trace_counter()
  traced = chex.assert_max_traces(train.update, n=2)
  monkeypatch.setattr(train, 'update', traced)
  monkeypatch.setattr(toy_task, 'TASK', toy_task.Toy())
  for rate in (0.1, 0.2):
    recipe = dataclasses.replace(toy_task.RECIPE, learning_rate=rate)
    for streamed in (False, True):
      folder = tmp_path / f'{rate}{streamed}'
      toy_task.run(folder, streamed=streamed, recipe=recipe)


def test_replicas_are_equal_after_steps():
  task = toy_task.Toy()
  runs = toy_task.Lines(seed=np.uint32([0, 1]), breaks=np.int32([9, 9]))
  loader = toy_task.ToyLoader(streamed=False)
  program = programs.Program(task, 2, loader, layout=ExamplesOverDevices)
  states = program.put(train.init(task, runs, train.draw(task, runs)))
  (state,), _ = program.train(states, 0, np.full(2, 0.1), np.ones(2, bool))
  for leaf in jax.tree.leaves(state):
    shards = [np.asarray(s.data) for s in leaf.addressable_shards]
    assert len(shards) == parallel.num_local_devices()
    for shard in shards[1:]:
      np.testing.assert_array_equal(shard, shards[0])


def test_the_loop_names_no_task():
  words = r'\b(bags?|slides?|tiles?|patch\w*|students?|teacher|kmil(?!_jax))\b'
  for module in (train, programs, loop):
    text = pathlib.Path(module.__file__).read_text(encoding='utf-8')
    assert not re.findall(words, text, re.IGNORECASE), module.__name__
    imports = re.findall(r'^(?:from|import) .*', text, re.M)
    assert not [line for line in imports if 'models' in line]
