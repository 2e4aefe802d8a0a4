"""Feeds a cohort's bags to training: from the device, or streamed."""

from collections.abc import Iterator
from concurrent import futures

import jax.numpy as jnp
import numpy as np

from data import plan as plans
from experiments.cohort import Cohort
from kmil_jax import epochs, parallel, train
from kmil_jax.types import Store

# Share of a device's memory that features may take and stay resident; on CPUs
# the array they were read into comes on top.
_RESIDENT_SHARE = 0.4
_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


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
    rows = int(length.sum(dtype=np.int64)) + self.buckets[-1]
    size = rows * cohort.width * jnp.dtype(self.dtype).itemsize
    if stream is None:
      stream = size > _RESIDENT_SHARE * parallel.memory_bytes()
      stream = bool(parallel.agree(stream))
    self.store = Store(
      features=None if stream else self._load(rows),
      offset=np.cumsum(length, dtype=np.int32) - length,
      length=length,
      label=cohort.label,
    )

  @property
  def num_rows(self) -> int:
    """T: instances of the cohort and the zeros after the last bag."""
    return int(self.cohort.length.sum()) + self.buckets[-1]

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
    self, trainer: train.Trainer, layout: epochs.Layout
  ) -> epochs.Resident | epochs.Streamed:
    """Returns epochs of `trainer` over this cohort."""
    if self.store.features is None:
      return epochs.Streamed(trainer, layout, self.store, self.read)
    return epochs.Resident(trainer, layout, self.store, self.buckets)

  def _load(self, rows: int) -> np.ndarray:
    flat = np.zeros((rows, self.cohort.width), self.dtype)
    ends = np.cumsum(self.cohort.length, dtype=np.int64)

    def load(i):
      features = self.cohort.read(i).features
      flat[ends[i] - len(features) : ends[i]] = features

    with futures.ThreadPoolExecutor() as pool:
      list(pool.map(load, range(len(ends))))
    return flat
