"""Bag models: every run learns from the bags of its own training part."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
from types import MappingProxyType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import optim, parallel, train
from kmil_jax.models import cpu, kmil, network, pooling
from kmil_jax.parallel import Layout
from kmil_jax.programs import Chunk, Evaluation, Program
from kmil_jax.train import Aux, Task, Variables
from kmil_jax.types import (
  Bags,
  ModelSpec,
  Prediction,
  Recipe,
  Store,
)

MAX_BUCKETS, _PAIRS = 16, 8
_CHOICES, _PADDING = 256, 0.15  # See `bucket_lengths`.
# Accelerators first copy factors whose length their tiles do not divide, and
# all of a long bag is copied where its blocks do not.
_LONG, _MULTIPLE, _MULTIPLE_LONG = 1024, 8, 128
Stream = Callable[[np.ndarray, np.ndarray], Iterator[np.ndarray]]


@chex.dataclass(frozen=True)
class BagRuns:
  """What tells R runs apart; n bags, T rows of the store."""

  seed: chex.Array  # [R] uint32
  fold: chex.Array  # [R] uint32
  trains: chex.Array  # [R, n] bool, the training part
  keep: chex.Array | None = None  # [R, T] bool, instances seen; None for all


class BagTask(Task):
  """A bag model trained by one recipe.

  Attributes:
    model: Flax module of one bag.

  Args:
    spec: of the model.
    recipe: its optimiser and start.
    num_classes: C.
    width: D of the features.
    precision: of the computation, see `network.build`.
    combine: averages the bag's probabilities with the highest instance's.
    options: further arguments of the model.
  """

  def __init__(
    self,
    spec: ModelSpec,
    recipe: Recipe,
    num_classes: int,
    width: int,
    *,
    precision: str = 'float32',
    combine: bool = False,
    options: Mapping[str, Any] = MappingProxyType({}),
  ):
    make = functools.partial(spec.make, num_classes=num_classes, **options)
    self.model = network.build(make, precision)
    self.tx = optim.make(recipe)
    self._spec, self._width = spec, width
    self._orthogonal, self._combine = recipe.orthogonal, combine

  def init(self, run: BagRuns) -> Variables:
    # Epochs count from 0: the last of all keys is the initialisation's.
    key = self.key(run, np.uint32(2**32 - 1), None)
    x, mask = jnp.zeros((1, self._width)), jnp.ones(1, bool)
    params = self.model.init(key, x, mask, train=False)['params']
    return {
      'params': optim.orthogonal(key, params) if self._orthogonal else params
    }

  def key(self, run: BagRuns, epoch: jax.Array, step: Any) -> jax.Array:
    """Returns a key of seed, fold and epoch; the loss adds that of the bag."""
    key = jax.random.fold_in(jax.random.key(run.seed), run.fold)
    return jax.random.fold_in(key, epoch)

  def fetch(
    self, store: Store, item: Any, longest: int | None, *, same: bool
  ) -> Any:
    if not isinstance(store.features, parallel.Spread):
      return item
    start = store.offset[jnp.maximum(item, 0)]
    return store.features.cut(start, longest, same=same), item

  def batch(self, store: Store, item: Any, length: int | None) -> Bags:
    """Cuts the bags `item` [B] out of the store; -1 makes a filler of bag 0.

    Fetched or streamed, `item` is the features [B, N, D] and the bags [B].
    """
    features, index = item if isinstance(item, tuple) else (None, item)
    real = jnp.maximum(index, 0)
    offset = store.offset[real]
    if features is not None:
      features = features[:, :length]
    else:
      size = length, store.features.shape[-1]
      cut = lambda at: jax.lax.dynamic_slice(store.features, (at, 0), size)
      features = jax.vmap(cut)(offset)
    return Bags(
      features=features,
      mask=jnp.arange(features.shape[1]) < store.length[real][:, None],
      label=store.label[real],
      index=index,
      offset=offset,
    )

  def weight(self, batch: Bags, run: BagRuns) -> jax.Array:
    member = run.trains[jnp.maximum(batch.index, 0)] & (batch.index >= 0)
    return member.astype(jnp.float32)

  def loss(
    self, variables: Variables, batch: Bags, run: BagRuns, key: jax.Array
  ) -> tuple[jax.Array, Aux]:
    def one_bag(x, mask, label, index):
      # The dropout of a bag depends on nothing else in the batch.
      keys = {'dropout': jax.random.fold_in(key, jnp.maximum(index, 0))}
      prediction = self.model.apply(variables, x, mask, train=True, rngs=keys)
      hit = prediction.logits.argmax() == label
      return self._spec.loss(prediction, mask, label), hit

    bags = batch.features, _seen(batch, run), batch.label, batch.index
    in_turn = cpu.one_by_one(self._spec, *batch.mask.shape)
    losses, hits = train.over(one_bag, bags, in_turn=in_turn)
    return losses, Aux(hits=hits, stats={})

  def predict(
    self, variables: Variables, batch: Bags, run: BagRuns
  ) -> dict[str, jax.Array]:
    """Returns `prob` [B, C], `loss`, `weight` and `label`, [B] each."""

    def one_bag(x, mask, label):
      prediction = self.model.apply(variables, x, mask, train=False)
      return {
        'prob': kmil.prob(prediction, mask, self._combine),
        'loss': self._spec.loss(prediction, mask, label),
        'weight': jnp.float32(1),
        'label': label,
      }

    bags = batch.features, _seen(batch, run), batch.label
    return train.over(one_bag, bags, in_turn=False)

  def in_turn(self, num_runs: int, batch: Bags) -> bool:
    return cpu.one_by_one(self._spec, num_runs, batch.mask.shape[1])

  def predict_bag(
    self, params: Any, x: jax.Array, mask: jax.Array
  ) -> Prediction:
    """Returns the predictions [R, ...] of R runs for one bag [N, D]."""
    return cpu.map_folds(
      self._spec,
      lambda p: self.model.apply({'params': p}, x, mask, train=False),
      params,
    )


@dataclasses.dataclass(frozen=True)
class BagLoader:
  """The bags of a cohort; see `programs.Loader`.

  Examples to evaluate are the bags of each run, bool [R, n].

  Attributes:
    store: of the cohort, NumPy; without features if they are streamed. Of
      those that are spread it has the share of this process.
    num_classes: C.
    width: D of the features.
    stream: given buckets [S] and bags [S, B], yields the padded features
      [B, N, D] of each step if not all are in the store; of -1 anything finite.
    recipe: whose batches and order an epoch has.
    seed: of the order.
    visit: bags that some run trains on, bool [n]; None to evaluate alone.
  """

  store: Store
  num_classes: int
  width: int
  stream: Stream | None = None
  recipe: Recipe = dataclasses.field(default_factory=Recipe)
  seed: int = 0
  visit: np.ndarray | None = None

  @functools.cached_property
  def buckets(self) -> tuple[int, ...]:
    """The padded lengths of bags, ascending."""
    return bucket_lengths(self.store.length)

  @property
  def lengths(self) -> tuple[int | None, ...]:
    return self.buckets if self._resident else (None,)

  @property
  def _resident(self) -> bool:
    return self.store.features is not None

  def read(self, index: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the padded features [N, D] of bags [S], in the host's memory."""
    bucket = self.bucket_of(index)
    if not isinstance(self.store.features, np.ndarray):
      yield from (x[0] for x in self.stream(bucket, index[:, None]))
      return
    for b, start in zip(bucket, self.store.offset[index], strict=True):
      yield self.store.features[start : start + self.buckets[b]]

  def program(
    self,
    task: BagTask,
    num_runs: int,
    recipe: Recipe,
    *,
    seed: int = 0,
    trains: np.ndarray | None = None,
  ) -> Program:
    """Returns epochs of a task over these bags.

    Args:
      task: what is trained.
      num_runs: R.
      recipe: of the task.
      seed: of the order of bags.
      trains: training parts of the runs, bool [R, n]; None to evaluate alone.
    """
    # Batches of several bags must not depend on which folds are trained.
    visit = None if trains is None else trains.any(0) | (recipe.batch > 1)
    loader = dataclasses.replace(self, recipe=recipe, seed=seed, visit=visit)
    largest, layout = loader, parallel.layout(recipe.batch)
    if visit is not None and not self._resident:
      bucket = self.bucket_of(np.arange(len(visit)))
      longest = visit & (bucket == bucket[visit].max())
      largest = dataclasses.replace(loader, visit=longest)
    return Program(task, num_runs, loader, layout=layout, largest=largest)

  def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns bucket [S] and bags [S, B] of the steps of an epoch."""
    return plan_epoch(
      self.store.length,
      self.buckets,
      visit=self.visit,
      batch=self.recipe.batch,
      seed=self.seed,
      epoch=epoch if self.recipe.shuffle else 0,
    )

  def train(
    self, epoch: int, runs: np.ndarray, layout: Layout
  ) -> Iterator[Chunk]:
    bucket, bags = self.plan(epoch)
    branch, mine = layout.share((bucket * self._resident, bags))
    for at, item in self._items(bucket, mine):
      yield branch[..., at], item

  def evaluate(
    self, examples: np.ndarray, runs: np.ndarray, layout: Layout
  ) -> Iterator[Evaluation]:
    run_of, bag = np.nonzero(np.asarray(examples)[runs])
    bucket_of = self.bucket_of(bag)
    device, place_of = layout.owner(run_of)
    pairs = np.int32([bag, place_of, runs[run_of]])
    # Streamed, a step has one length.
    lengths = bucket_of * (not self._resident)
    for length in np.unique(lengths):
      rows = np.flatnonzero(lengths == length)
      size = pairs_at_once(self.buckets) if self._resident else 1
      alike = device[rows] * len(self.buckets) + bucket_of[rows]
      steps = _in_steps(alike, size)
      first = rows[steps[:, 0]]
      bucket, step = parallel.deal(
        device[first], bucket_of[first], np.arange(len(steps))
      )
      at = np.where(step[..., None] >= 0, steps[step], -1)
      index, place, run = np.where(at >= 0, pairs[:, rows[at]], -1)
      # A device without a pair of its own evaluates any, and a short one.
      branch = np.maximum(bucket, 0) * self._resident
      place = np.maximum(place, 0)
      mine = parallel.local_devices()
      # Each step is a call: none is of fillers alone.
      steps = np.full((step >= 0).any(0).sum(), length)
      for at, item in self._items(steps, index[mine]):
        chunk = branch[mine, at], item, place[mine, at]
        yield chunk, run[:, at], index[:, at]

  def _items(
    self, bucket: np.ndarray, index: np.ndarray
  ) -> Iterator[tuple[slice, Any]]:
    """Yields slices of the steps with their items, see `BagTask.batch`.

    Args:
      bucket: of each step to read, [S].
      index: bags of this process's devices, [..., S, B].
    """
    if self._resident:
      yield np.s_[:], index
      return
    steps = np.moveaxis(index, -2, 0)[: len(bucket)].reshape(len(bucket), -1)
    for step, x in enumerate(self.stream(bucket, steps)):
      at = np.s_[step : step + 1]
      bags = index[..., at, :]
      yield at, (x.reshape(bags.shape + x.shape[1:]), bags)

  def bucket_of(self, index: np.ndarray) -> np.ndarray:
    """Returns the bucket of each bag, int32."""
    length = self.store.length[index]
    return np.searchsorted(self.buckets, length).astype(np.int32)


def _seen(batch: Bags, run: BagRuns) -> jax.Array:
  """Restricts the masks [B, N] to the instances that the run sees."""
  if run.keep is None:
    return batch.mask
  size = batch.mask.shape[1:]
  cut = lambda at: jax.lax.dynamic_slice(run.keep, (at,), size)
  return batch.mask & jax.vmap(cut)(batch.offset)


def bucket_lengths(lengths: np.ndarray) -> tuple[int, ...]:
  """Returns the padded lengths for bags of these lengths.

  They are the fewest of which padding is at most 15 %, but no more than 16; of
  as many lengths they are those that pad least.

  Args:
    lengths: instances of every bag of the cohort, [n], at least 1 each.

  Returns:
    Ascending multiples of 8, of 128 above 1,024, and of a block above 65,536;
    the last is at least the longest bag.
  """
  lengths = np.asarray(lengths)
  table = np.unique([_round_up(x) for x in lengths])
  table = table[np.unique(np.linspace(0, len(table) - 1, _CHOICES, dtype=int))]
  bags = np.searchsorted(np.sort(lengths), table, side='right')
  # Padded rows of the bags up to each choice, where it is the last length; of
  # each further length also the choice before it.
  rows, before = np.float64(table * bags), []
  most = lengths.sum(dtype=np.int64) / (1 - _PADDING)
  while rows[-1] > most and len(before) < min(MAX_BUCKETS, len(table)) - 1:
    more = rows + table[:, None] * (bags[:, None] - bags)
    more = np.where(np.tri(len(table), k=-1), more, np.inf)
    before.append(more.argmin(1))
    rows = more.min(1)
  chosen = [len(table) - 1]
  for step in reversed(before):
    chosen.append(step[chosen[-1]])
  return tuple(int(x) for x in table[chosen[::-1]])


def pairs_at_once(buckets: tuple[int, ...]) -> int:
  """Returns how many bags a step evaluates, each with a run's parameters.

  Together they are no longer than a bag that is computed whole. CPUs take one.
  """
  most = min(_PAIRS, max(pooling.WHOLE // buckets[-1], 1))
  return cpu.choose(lambda: 1, lambda: most)


def num_rows(lengths: np.ndarray) -> int:
  """Returns the rows of a store: all instances, and zeros of a longest bag.

  Of long bags there are no more zeros than slices of bags reach into.
  """
  table = np.array(bucket_lengths(lengths))
  ends = np.cumsum(lengths, dtype=np.int64)
  if table[-1] <= pooling.WHOLE:
    return int(ends[-1] + table[-1])
  padded = table[np.searchsorted(table, lengths)]
  return int((ends - lengths + padded).max())


def plan_epoch(
  lengths: np.ndarray,
  buckets: tuple[int, ...],
  *,
  visit: np.ndarray,
  batch: int,
  seed: int,
  epoch: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Orders the bags of an epoch; a pure function of seed and epoch.

  Each bag draws its place from (seed, epoch) whether it is visited or not, so
  runs that train on different bags see their common bags in the same order.

  Args:
    lengths: instances of every bag of the cohort, [n].
    buckets: from `bucket_lengths`.
    visit: bags that some run trains on, bool [n].
    batch: bags in a step, B; all of one bucket.
    seed: of the experiment.
    epoch: from 0.

  Returns:
    The bucket of every step, int32 [S], and its bags, int32 [S, B]; -1 fills
    the last step of a bucket. S does not depend on the epoch.
  """
  rng = np.random.default_rng([seed, epoch])
  order = rng.permutation(len(lengths))
  order = order[visit[order]]
  bucket = np.searchsorted(buckets, lengths)[order]
  steps = _in_steps(bucket, batch)
  steps = steps[np.argsort(steps[:, 0])]  # By that of the first bag.
  index = np.where(steps >= 0, order[steps], -1)
  return bucket[steps[:, 0]].astype(np.int32), index.astype(np.int32)


def _in_steps(group: np.ndarray, size: int) -> np.ndarray:
  """Returns the places of each group in steps [S, size]; -1 fills its last."""
  places = [np.flatnonzero(group == g) for g in np.unique(group)]
  fill = lambda p: np.pad(p, (0, -len(p) % size), constant_values=-1)
  return np.concatenate([fill(p).reshape(-1, size) for p in places])


def _round_up(length: float) -> int:
  multiple = _MULTIPLE if length <= _LONG else _MULTIPLE_LONG
  multiple = multiple if length <= pooling.WHOLE else pooling.BLOCK
  return int(-(-length // multiple)) * multiple
