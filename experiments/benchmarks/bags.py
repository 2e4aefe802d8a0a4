"""Synthetic bags, equal for both sides."""

import dataclasses

import numpy as np

WIDTH, CLASSES = 1024, 5
FOLDS = 10
_SPREAD = 0.5  # Of the logarithm of a cohort's bag lengths.


@dataclasses.dataclass(frozen=True)
class Cohort:
  """n bags, one after the other in `features`, float32 NumPy.

  Attributes:
    features: [T, D].
    length: instances of every bag, int32 [n].
    offset: first instance of every bag, int32 [n].
    label: class of every bag, int32 [n].
  """

  features: np.ndarray
  length: np.ndarray
  offset: np.ndarray
  label: np.ndarray

  def bag(self, index: int) -> np.ndarray:
    """Returns a view of one bag, [N, D]."""
    start = self.offset[index]
    return self.features[start : start + self.length[index]]


def equal_bags(count: int, instances: int, seed: int) -> Cohort:
  """Returns bags that all have as many instances."""
  return _draw(np.full(count, instances, np.int32), seed)


def ragged_bags(count: int, instances: int, longest: int, seed: int) -> Cohort:
  """Returns bags of log-normal lengths around `instances`, none over `longest`.

  The logarithm has a standard deviation of 0.5.
  """
  rng = np.random.default_rng([seed, instances])
  length = instances * np.exp(_SPREAD * rng.standard_normal(count))
  return _draw(np.clip(length.astype(np.int32), 8, longest), seed)


def training_parts(count: int) -> np.ndarray:
  """Returns whether each fold trains on each bag, bool [10, n]: 8 of 10 do."""
  part = np.arange(count) % FOLDS
  fold = np.arange(FOLDS)[:, None]
  return (part != fold) & (part != (fold + 1) % FOLDS)


def _draw(length: np.ndarray, seed: int) -> Cohort:
  rng = np.random.default_rng(seed)
  features = rng.standard_normal((length.sum(), WIDTH), np.float32)
  return Cohort(
    features=features,
    length=length,
    offset=np.cumsum(length, dtype=np.int32) - length,
    label=rng.integers(CLASSES, size=len(length)).astype(np.int32),
  )
