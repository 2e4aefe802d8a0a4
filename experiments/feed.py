"""Feeds a cohort's bags to training: from the device, or streamed."""

from collections.abc import Iterator
from concurrent import futures

import jax.numpy as jnp
import numpy as np

from data import plan as plans
from data.features import FeatureError
from experiments.cohort import Cohort
from kmil_jax import parallel
from kmil_jax.programs import Program
from kmil_jax.tasks.bags import BagLoader, BagTask
from kmil_jax.types import Plan, Recipe, Store

# Share of a device's memory that features may take and stay resident; on CPUs
# the array they were read into comes on top.
_RESIDENT_SHARE = 0.4
_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def item_size(precision: str) -> int:
  """Returns the bytes of a number on the device."""
  return jnp.dtype(_DTYPES[precision]).itemsize


def resident_bytes(cohort: Cohort, precision: str) -> int:
  """Returns the bytes of all features on a device."""
  return _num_rows(cohort) * cohort.width * item_size(precision)


def is_streamed(cohort: Cohort, precision: str, stream: bool | None) -> bool:
  """Says whether features are streamed: as asked, or where they do not fit."""
  if stream is not None:
    return stream
  size = resident_bytes(cohort, precision)
  return bool(parallel.agree(size > _RESIDENT_SHARE * parallel.memory_bytes()))


def _num_rows(cohort: Cohort) -> int:
  rows = int(cohort.length.sum(dtype=np.int64))
  return rows + plans.bucket_lengths(cohort.length)[-1]


class Feed:
  """A cohort made ready for training: buckets, store and reader.

  Attributes:
    cohort: the cohort.
    buckets: padded lengths.
    store: NumPy; without features where they are streamed.
  """

  def __init__(self, cohort: Cohort, precision: str, stream: bool | None):
    self.cohort = cohort
    self.buckets = plans.bucket_lengths(cohort.length)
    self.dtype = _DTYPES[precision]
    length = cohort.length.astype(np.int32)
    streamed = is_streamed(cohort, precision, stream)
    self.store = Store(
      features=None if streamed else self._load(self.num_rows),
      offset=np.cumsum(length, dtype=np.int32) - length,
      length=length,
      label=cohort.label,
    )

  @property
  def num_rows(self) -> int:
    """T: instances of the cohort and the zeros after the last bag."""
    return _num_rows(self.cohort)

  def bucket(self, index: np.ndarray) -> np.ndarray:
    """Returns the bucket of every bag."""
    found = np.searchsorted(self.buckets, self.cohort.length[index])
    return found.astype(np.int32)

  def read(self, bucket: np.ndarray, index: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the padded features [B, N, D] of steps; see `data.pipeline`."""
    if self.store.features is None:
      # It imports TensorFlow, which takes seconds.
      from data import pipeline

      batches = pipeline.bag_batches(
        lambda i: self.cohort.read(i).features,
        self.cohort.width,
        self.buckets,
        bucket,
        index,
      )
      yield from (batch.astype(self.dtype) for batch in batches)
      return
    for b, bags in zip(bucket, index, strict=True):
      rows = self.store.offset[bags][:, None] + np.arange(self.buckets[b])
      yield self.store.features[rows]

  def program(
    self,
    task: BagTask,
    num_runs: int,
    recipe: Recipe,
    *,
    seed: int = 0,
    trains: np.ndarray | None = None,
  ) -> Program:
    """Returns epochs of a task over this cohort.

    Args:
      task: what is trained.
      num_runs: R.
      recipe: of the task.
      seed: of the order of bags.
      trains: training parts of the runs, bool [R, n]; None to evaluate alone.
    """

    def plan(epoch):
      bucket, index = plans.plan_epoch(
        self.cohort.length,
        self.buckets,
        # Batches of several bags must not depend on which folds are trained.
        visit=trains.any(0) | (recipe.batch > 1),
        batch=recipe.batch,
        seed=seed,
        epoch=epoch if recipe.shuffle else 0,
      )
      return Plan(bucket=bucket, index=index)

    return Program(
      task,
      num_runs,
      BagLoader(self.store, self.buckets, plan, self.read),
      layout=parallel.layout(recipe.batch),
    )

  def _load(self, rows: int) -> np.ndarray:
    flat = np.zeros((rows, self.cohort.width), self.dtype)
    ends = np.cumsum(self.cohort.length, dtype=np.int64)

    def load(i):
      try:
        features = self.cohort.read(i).features
      except FeatureError as e:
        return str(e)
      flat[ends[i] - len(features) : ends[i]] = features
      return None

    with futures.ThreadPoolExecutor() as pool:
      faults = [e for e in pool.map(load, range(len(ends))) if e]
    if faults:
      raise FeatureError('\n'.join(faults))
    return flat
