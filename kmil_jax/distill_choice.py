"""Which epoch of a student is kept, and which patches it calls tumour."""

import chex
import numpy as np

from kmil_jax import metrics
from kmil_jax.distill_runs import TUMOUR


@chex.dataclass(frozen=True)
class Chosen:
  """The epoch that validation chose for each run so far; NumPy [R]."""

  epoch: np.ndarray  # from 0, -1 before the first
  accuracy: np.ndarray  # of validation patches, at the threshold
  auroc: np.ndarray
  threshold: np.ndarray

  @classmethod
  def start(cls, num_runs: int) -> 'Chosen':
    """Returns what any epoch is better than."""
    none = np.full(num_runs, -np.inf)
    return cls(
      epoch=np.full(num_runs, -1), accuracy=none, auroc=none, threshold=none
    )


def patch_threshold(label: np.ndarray, score: np.ndarray) -> float:
  """Score from which on to call patches tumour: that of the highest F1.

  Of thresholds of equal F1 it is the highest. He and Li, released code, where
  it is chosen on the patches that are then judged; choose it on validation.

  Args:
    label: 1 normal, 0 tumour, [T], of both kinds.
    score: [T].
  """
  values = np.unique(score)
  tumour = np.sort(score[label == TUMOUR])
  called = len(score) - np.searchsorted(np.sort(score), values)
  hits = len(tumour) - np.searchsorted(tumour, values)
  f1 = 2 * hits / (called + len(tumour))
  return float(values[np.flatnonzero(f1 == f1.max())[-1]])


def validate(epoch: int, label: np.ndarray, score: np.ndarray) -> Chosen:
  """Summarises the scores [R, T] of validation patches, label [T]."""
  tumour = label == TUMOUR
  threshold = np.array([patch_threshold(label, row) for row in score])
  return Chosen(
    epoch=np.full(len(score), epoch),
    accuracy=((score >= threshold[:, None]) == tumour).mean(1),
    auroc=np.array([metrics.auroc(tumour, row) for row in score]),
    threshold=threshold,
  )


def better(now: Chosen, before: Chosen) -> np.ndarray:
  """Whether this epoch is kept, bool [R].

  It is if its accuracy is higher, of equal ones if its AUROC is not lower.
  """
  return (now.accuracy > before.accuracy) | (
    (now.accuracy == before.accuracy) & (now.auroc >= before.auroc)
  )
