"""Epochs and evaluations as device programs, resident or streamed."""

from collections.abc import Callable, Iterator
import functools
import itertools
import math
from typing import Any, Protocol
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import parallel, train
from kmil_jax.parallel import Layout
from kmil_jax.train import State, Task, Variables

# Steps that may wait: more of them deadlock simulated devices.
_STEPS_AHEAD = 16
_IN_FLIGHT = 2  # Steps: one computes while the next one's batch is sent.
_keep_best = jax.jit(train.keep_best, donate_argnums=0)

# (bucket [S], item [S, ...]): S steps of one program, each with the place of
# its padded length in `Loader.lengths`.
Chunk = tuple[np.ndarray, Any]
# (chunk, run, index): a chunk with an axis of local devices; the examples that
# each device of the pod evaluates in each step, [devices, S, B], and the run of
# a step, [devices, S, 1], or of each; -1 for none.
Evaluation = tuple[Chunk, np.ndarray, np.ndarray]


class Loader(Protocol):
  """Reads what a program trains on and evaluates, in steps.

  Resident: examples are cut from the store, and a chunk is an epoch, of which
  the program scans the steps; it compiles once whatever the examples. Streamed:
  a chunk is a single step, whose shapes are those that are compiled.
  """

  store: Any  # what all runs share on the device, NumPy
  lengths: tuple[int | None, ...]  # padded ones, (None,) if streamed

  def train(
    self, epoch: int, runs: np.ndarray, layout: Layout
  ) -> Iterator[Chunk]:
    """Yields the chunks of an epoch; a pure function.

    Args:
      epoch: from 0.
      runs: of the group that trains, [G].
      layout: of the group; its `share` spreads examples over devices.
    """

  def evaluate(
    self, examples: Any, runs: np.ndarray, layout: Layout
  ) -> Iterator[Evaluation]:
    """Yields what the runs [G] of a group evaluate."""


class Program:
  """Trains and evaluates R runs of a task.

  Runs are in groups that the host takes in turn: a tree of R runs is a list
  here, with a tree on the devices for each group. Runs that learn from the same
  examples are one group, which reads them once; of networks of convolutions, a
  group is one run per device, or one run whose examples spread over devices.

  Args:
    task: what is trained.
    num_runs: R.
    loader: of the examples.
    layout: spreads runs or examples over devices.
    at_once: runs of a group, at most; all by default, see `start`.
    largest: yields the steps that take the most memory, where a chunk is a
      step; by default all take the same.
  """

  def __init__(
    self,
    task: Task,
    num_runs: int,
    loader: Loader,
    *,
    layout: type[Layout] = parallel.RunsOverDevices,
    at_once: int | None = None,
    largest: Loader | None = None,
  ):
    self.task, self._loader, self._layout = task, loader, layout
    self._largest = largest or loader
    self._group(num_runs, at_once or num_runs)
    self._store = parallel.place(loader.store)
    self._train, self._evaluate = _compiled(task, layout, loader.lengths)

  def _group(self, num_runs: int, at_once: int) -> None:
    starts = np.arange(0, num_runs, at_once)
    groups = np.split(np.arange(num_runs), starts[1:])
    self._groups = [(self._layout(len(runs)), runs) for runs in groups]

  def start(self, state: State) -> list[State]:
    """Sends the runs to their devices, in groups whose epoch fits there.

    XLA says what an epoch, or a streamed step, takes once it is compiled.
    Groups stay as they are on CPUs, which share the machine's memory. What
    evaluation takes, at most 65,536 instances at once, is not asked: no group
    is small enough to change it.

    Args:
      state: R runs, NumPy leaves [R, ...].

    Raises:
      MemoryError: if a group of the fewest runs does not fit.
    """
    sizes, room = [len(self._groups[0][1])], parallel.memory_bytes(0)
    least = min(sizes[0], self._layout.side_by_side())
    while sizes[-1] > least:
      sizes.append(least * -(-sizes[-1] // (2 * least)))

    @functools.cache
    def fits(at_once: int) -> bool:
      self._group(train.count(state), at_once)
      peak = self._peak_bytes(self.put(state)) if room else 0
      return bool(parallel.agree(peak <= room))

    # If nothing fits, that is known before all are compiled.
    if not fits(sizes[0]) and not fits(least):
      raise MemoryError(
        f'This training needs more than the {room / 2**30:.2g} GiB of a device.'
        ' Use --precision=bfloat16, a smaller batch or, if there is such an'
        ' option, --store=streamed.'
      )
    at_once = next(filter(fits, sizes))
    self._group(train.count(state), at_once)
    if at_once < sizes[0] and parallel.is_first():
      warnings.warn(
        f'{sizes[0]} runs do not fit the memory of the devices at once. They'
        f' are trained {at_once} at a time.',
        stacklevel=2,
      )
    return self.put(state)

  def _peak_bytes(self, states: list[State]) -> float:
    """Returns what a device holds while it trains the first group."""
    size = lambda tree: sum(
      math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
    try:
      compiled = self.compiled(states)
      peak = parallel.peak_bytes(compiled) or 0
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      return math.inf  # XLA does not compile for TPUs what does not fit.
    if self._loader.lengths == (None,):  # Batches of the steps that follow.
      queued = _IN_FLIGHT * size(compiled.args_info[0][-1])
      is_dealt = self._layout.psum_axis
      peak += queued // (parallel.num_devices() if is_dealt else 1)
    return peak + size(states[1:]) // parallel.num_local_devices()

  def put(self, tree: Any) -> list[Any]:
    """Sends NumPy leaves [R, ...] to the devices of their runs."""
    part = lambda runs: jax.tree.map(lambda x: np.asarray(x)[runs], tree)
    return [layout.put(part(runs)) for layout, runs in self._groups]

  def gather(self, trees: list[Any]) -> Any:
    """Returns copies, NumPy leaves [R, ...], of what `put` returned."""
    pairs = zip(self._groups, trees, strict=True)
    parts = [layout.gather(tree) for (layout, _), tree in pairs]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)

  def train(
    self,
    states: list[State],
    epoch: int,
    learning_rate: np.ndarray,
    active: np.ndarray,
  ) -> tuple[list[State], dict[str, np.ndarray]]:
    """Trains one epoch.

    Args:
      states: R runs, donated.
      epoch: from 0.
      learning_rate: of the epoch, [R].
      active: runs that still train, bool [R].

    Returns:
      The states, and sums over the epoch, see `train.gradients`, [R] each.
    """
    columns = {
      'epoch': np.full_like(active, epoch, np.int32),
      'learning_rate': np.float32(learning_rate),
      'active': active,
    }
    trained, totals = [], []
    for (layout, runs), state, column in zip(
      self._groups, states, self.put(columns), strict=True
    ):
      state, waiting = state.replace(**column), []
      total = dict.fromkeys(train.SUMS, np.zeros(len(runs)))
      # A group that has stopped costs nothing, nor the rest of an epoch in
      # which the last of its runs diverges.
      running = active[runs]
      chunks = self._loader.train(epoch, runs, layout) if running.any() else ()
      for chunk in chunks:
        state, sums = self._train(state, self._store, chunk)
        waiting.append(sums)
        if len(waiting) > _IN_FLIGHT:
          jax.block_until_ready(waiting[-_IN_FLIGHT - 1])
        if len(waiting) == _STEPS_AHEAD:
          done, waiting = waiting[:-_IN_FLIGHT], waiting[-_IN_FLIGHT:]
          total = _add(total, *layout.gather(done))
          if not np.isfinite(total['loss'][running]).any():
            break
      totals.append(_add(total, *layout.gather(waiting)))
      trained.append(state)
    return trained, jax.tree.map(lambda *x: np.concatenate(x), *totals)

  def keep_best(
    self, states: list[State], improved: np.ndarray, failed: np.ndarray
  ) -> list[State]:
    """See `train.keep_best`; bool [R] each."""
    columns = self.put((improved, failed))
    return [_keep_best(s, *c) for s, c in zip(states, columns, strict=True)]

  def evaluate(
    self, models: list[tuple[Variables, Any]], examples: Any
  ) -> dict[str, np.ndarray]:
    """Evaluates examples, those of each run by itself.

    Args:
      models: variables and constants of the runs, see `put`.
      examples: which, as the loader takes them.

    Returns:
      The task's predictions by name, [n, ...], with the `run` and the place
      `index` of each, [n], sorted by these.
    """
    tables = []
    for (layout, runs), model in zip(self._groups, models, strict=True):
      started = (
        (self._evaluate(model, self._store, chunk), run, index)
        for chunk, run, index in self._loader.evaluate(examples, runs, layout)
      )
      # The host reads what comes next while the devices compute.
      while some := list(itertools.islice(started, _STEPS_AHEAD)):
        for out, run, index in some:
          run = np.broadcast_to(run, index.shape)
          out = parallel.fetch(out) | {'run': run, 'index': index}
          real = (run >= 0) & (index >= 0)
          tables.append({name: x[real] for name, x in out.items()})
    table = {
      name: np.concatenate([t[name] for t in tables]) for name in tables[0]
    }
    order = np.lexsort((table['index'], table['run']))
    return {name: x[order] for name, x in table.items()}

  def compiled(self, states: list[State]) -> jax.stages.Compiled:
    """Returns an epoch of the first group, or the largest streamed step of it.

    One that was trained is at hand.
    """
    layout, runs = self._groups[0]
    chunk = next(iter(self._largest.train(0, runs, layout)))
    return self._train.lower(states[0], self._store, chunk).compile()


def _add(*sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return jax.tree.map(lambda *x: np.sum(x, 0, np.float64), *sums)


@functools.lru_cache(maxsize=16)
def _compiled(
  task: Task, layout: type[Layout], lengths: tuple[int | None, ...]
) -> tuple[Callable, Callable]:
  """Returns the pmapped functions of a chunk that train and evaluate."""
  train_chunk, evaluate_chunk = chunk_functions(task, layout.psum_axis, lengths)
  return layout.pmap_train(train_chunk), layout.pmap_evaluate(evaluate_chunk)


def chunk_functions(
  task: Task, axis: str | None, lengths: tuple[int | None, ...]
) -> tuple[Callable, Callable]:
  """Returns the pure functions of one device that programs are made of.

  Args:
    task: what is trained.
    axis: the device axis over which examples are spread, or None.
    lengths: the padded lengths, between which a step switches.

  Returns:
    `train(state, store, chunk)`, which returns the state and sums [R] of the
    chunk, see `train.gradients`; and `evaluate((variables, run), store,
    (bucket, item, place))`, which returns the predictions [S, B, ...] of the
    run at each step's, or example's, place on the device.
  """

  def of_batch(f, store, bucket, item):
    branches = [
      lambda item, length=length: f(task.batch(store, item, length))
      for length in lengths
    ]
    return jax.lax.switch(bucket, branches, item)

  def train_chunk(state, store, chunk):
    fetch = lambda item: task.fetch(store, item, lengths[-1], same=axis is None)

    def step(carry, step):
      (state, item), (bucket, following) = carry, step
      # What other devices hold is on its way while the branch computes.
      of_runs = lambda batch: (
        train.gradients(task, state, batch, axis),
        fetch(following),
      )
      (grads, stats, sums), following = of_batch(of_runs, store, bucket, item)
      state = train.update(task, state, grads, stats, sums['weight'])
      # One array, which is one kernel; counts are exact in float32.
      sums = jnp.stack([jnp.float32(sums[name]) for name in train.SUMS])
      return (state, following), sums

    bucket, items = chunk
    carry = state, fetch(jax.tree.map(lambda x: x[0], items))
    following = jax.tree.map(lambda x: jnp.roll(x, -1, 0), items)
    (state, _), sums = _scan(step, carry, (bucket, following))
    return state, dict(zip(train.SUMS, sums.sum(0), strict=True))

  def evaluate_chunk(model, store, chunk):
    def predict(place, batch):
      place = 0 if train.count(model) == 1 else place
      variables, run = jax.tree.map(lambda x: x[place], model)
      return task.predict(variables, batch, run)

    def one(place, example):
      batch = jax.tree.map(lambda x: x[None], example)
      return jax.tree.map(lambda x: x[0], predict(place, batch))

    def step(_, step):
      bucket, item, place = step
      each = lambda batch: train.over(one, (place, batch), in_turn=False)
      of_runs = each if place.ndim else functools.partial(predict, place)
      item = task.fetch(store, item, lengths[-1], same=False)
      return None, of_batch(of_runs, store, bucket, item)

    return _scan(step, None, chunk)[1]

  return train_chunk, evaluate_chunk


def _scan(step: Callable, carry: Any, chunk: Any) -> tuple[Any, Any]:
  """As `lax.scan`; a single step is no loop, in which convolutions are slow."""
  if train.count(chunk) > 1:
    return jax.lax.scan(step, carry, chunk)
  carry, out = step(carry, jax.tree.map(lambda x: x[0], chunk))
  return carry, jax.tree.map(lambda x: x[None], out)
