"""Bags as tf.data: feature files read, padded and batched by a plan."""

from collections.abc import Callable, Iterator

import numpy as np

from data.features import FeatureError
from data.host_tensorflow import as_numpy, tf

_PREFETCH = 2


def bag_batches(
  read: Callable[[int], np.ndarray],
  width: int,
  buckets: tuple[int, ...],
  bucket: np.ndarray,
  index: np.ndarray,
  *,
  threads: int = 2,
) -> Iterator[np.ndarray]:
  """Reads the bags of a plan ahead of their use.

  Args:
    read: returns the features [N, D] of a bag of the cohort; from any thread.
    width: D.
    buckets: the padded lengths.
    bucket: bucket of every step, [S].
    index: bags of every step, [S, B]; -1 marks a filler.
    threads: files read at a time.

  Yields:
    float32 [B, N, D] for each step, N the length of its bucket; zeros follow a
    bag's last instance and fill a filler.

  Raises:
    data.features.FeatureError: if `read` does.
  """
  faults = []

  def load(bucket, index):
    batch = np.zeros((len(index), buckets[bucket], width), np.float32)
    try:
      for row, bag in zip(batch, index, strict=True):
        if bag >= 0:
          features = read(bag)
          row[: len(features)] = features
    except FeatureError as e:
      faults.append(e)
      raise
    return batch

  def padded(bucket, index):
    batch = tf.numpy_function(load, (bucket, index), tf.float32)
    return tf.ensure_shape(batch, (index.shape[0], None, width))

  dataset = tf.data.Dataset.from_tensor_slices((bucket, index))
  dataset = dataset.map(padded, num_parallel_calls=threads, deterministic=True)
  try:
    yield from as_numpy(dataset.prefetch(_PREFETCH))
  except tf.errors.OpError:
    if faults:
      raise faults[0] from None
    raise
