"""Feeds a cohort's bags to training: from the device, or streamed."""

from concurrent import futures
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from data.features import FeatureError
from experiments.cohort import Cohort
from kmil_jax import parallel, plan
from kmil_jax.tasks.bags import BagLoader
from kmil_jax.types import Store

# Share of a device's memory that features may take and stay resident; on CPUs
# the array they were read into comes on top.
_RESIDENT_SHARE = 0.4
_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def item_size(precision: str) -> int:
  """Returns the bytes of a number on the device."""
  return jnp.dtype(_DTYPES[precision]).itemsize


def resident_bytes(cohort: Cohort, precision: str) -> int:
  """Returns the bytes of all features on a device."""
  return plan.num_rows(cohort.length) * cohort.width * item_size(precision)


def is_streamed(cohort: Cohort, precision: str, stream: bool | None) -> bool:
  """Whether features are streamed: by the flag, or if they do not fit."""
  if stream is not None:
    return stream
  size = resident_bytes(cohort, precision)
  return bool(parallel.agree(size > _RESIDENT_SHARE * parallel.memory_bytes()))


def load(cohort: Cohort, precision: str, stream: bool | None) -> BagLoader:
  """Returns the bags of a cohort, ready for training.

  Raises:
    FeatureError: naming every feature file that cannot be read.
  """
  dtype, length = _DTYPES[precision], cohort.length.astype(np.int32)
  streamed = is_streamed(cohort, precision, stream)
  loader = BagLoader(
    store=Store(
      features=None if streamed else _read_all(cohort, dtype),
      offset=np.cumsum(length, dtype=np.int32) - length,
      length=length,
      label=cohort.label,
    ),
    num_classes=len(cohort.classes),
    width=cohort.width,
  )

  def read(bucket, index):
    # It imports TensorFlow, which takes seconds.
    from data import pipeline

    batches = pipeline.bag_batches(
      lambda i: cohort.read(i).features,
      cohort.width,
      loader.buckets,
      bucket,
      index,
    )
    yield from (batch.astype(dtype) for batch in batches)

  return dataclasses.replace(loader, stream=read) if streamed else loader


def _read_all(cohort: Cohort, dtype: Any) -> np.ndarray:
  """Returns the features of all bags, and rows of zeros behind them."""
  flat = np.zeros((plan.num_rows(cohort.length), cohort.width), dtype)
  ends = np.cumsum(cohort.length, dtype=np.int64)

  def read(i):
    try:
      features = cohort.read(i).features
    except FeatureError as e:
      return str(e)
    flat[ends[i] - len(features) : ends[i]] = features
    return None

  with futures.ThreadPoolExecutor() as pool:
    faults = [e for e in pool.map(read, range(len(ends))) if e]
  if faults:
    raise FeatureError('\n'.join(faults))
  return flat
