"""Variances of AUROCs in closed form, of slides or of patients."""

from collections.abc import Sequence
import statistics

import numpy as np
import scipy

from kmil_jax.metrics import ratio

_Z = statistics.NormalDist().inv_cdf(0.975)
# Below it, two AUROCs or a standard error differ from 0 by rounding alone.
_ROUNDING = 1e-9


def components(
  positive: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """What each slide adds to an AUROC, in O(N log N).

  Of a positive slide the share of negatives that it beats, of a negative the
  share of positives that beat it, ties half: V10 and V01 of DeLong, DeLong and
  Clarke-Pearson, Biometrics 1988. Counting among sorted scores gives what the
  midranks of Sun and Xu, IEEE Signal Processing Letters 2014, give.

  Args:
    positive: bool [N].
    score: [N].

  Returns:
    V10 [positives] and V01 [negatives]; the mean of either is the AUROC.
    NaN where the other kind is missing.
  """
  high, low = score[positive], score[~positive]
  return _share_below(low, high), _share_below(-high, -low)


def covariance(
  positive: np.ndarray, score: np.ndarray, case: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  """AUROCs on the same slides and the covariance of their estimates.

  DeLong et al. 1988 take slides for independent. Where patients have several
  slides that is wrong, and mostly too narrow: components are summed within
  patients (Obuchowski, Biometrics 1997), which is DeLong's where every patient
  has one slide.

  Args:
    positive: bool [N], or [M, N]: classes against the rest have positives of
      their own.
    score: [M, N].
    case: patient of each slide, [N].

  Returns:
    AUROCs [M], NaN where either kind is missing, and their covariance [M, M],
    NaN also where fewer than two patients hold a kind.
  """
  positive = np.broadcast_to(positive, score.shape)
  names, patient = np.unique(case, return_inverse=True)
  value = np.empty(len(score))
  # Of positives and of negatives: sums by patient, and patients that hold some.
  total = np.empty((2, len(score), len(names)))
  holders = np.empty((2, len(score)))
  for m, (mine, scores) in enumerate(zip(positive, score, strict=True)):
    parts = components(mine, scores)
    value[m] = ratio(parts[0].sum(), len(parts[0]))
    for kind, (rows, part) in enumerate(zip((mine, ~mine), parts, strict=True)):
      share = (part - value[m]) / len(part)
      total[kind, m] = np.bincount(patient[rows], share, len(names))
      holders[kind, m] = len(np.unique(patient[rows]))
  # n / (n - 1), NaN of fewer than two patients.
  bessel = lambda n: ratio(n, n - 1)
  scaled = total * np.sqrt(bessel(holders))[..., None]
  same_kind = np.einsum('kmp,knp->mn', scaled, scaled)
  other_kind = (total[0] @ total[1].T) * bessel(len(names))
  return value, same_kind + other_kind + other_kind.T


def interval(value: float, variance: float) -> tuple[float, float]:
  """95 % interval of an AUROC: normal, cut to 0 and 1.

  NaN as its arguments, and without variance: the slides of a perfect AUROC do
  not say how far that of other slides would be from it.
  """
  half = _Z * _error(variance)
  low, high = np.clip([value - half, value + half], 0, 1)
  return float(low), float(high)


def p_value(difference: float, variance: float) -> float:
  """Two-sided p of no difference between two AUROCs, by a z test.

  Of equal AUROCs it is 1, also where the variance is 0; of others without
  variance NaN.
  """
  if abs(difference) < _ROUNDING:
    return 1.0
  return float(2 * scipy.stats.norm.sf(abs(difference / _error(variance))))


def _error(variance: float) -> float:
  """Standard error; NaN where it is 0."""
  error = np.sqrt(np.maximum(variance, 0))
  return error if error > _ROUNDING else np.nan


def _share_below(others: np.ndarray, mine: np.ndarray) -> np.ndarray:
  """Share of `others` below each of `mine`, equal ones half."""
  if not len(others):
    return np.full(len(mine), np.nan)
  others = np.sort(others)
  count = np.searchsorted(others, mine) + np.searchsorted(others, mine, 'right')
  return count / (2 * len(others))
