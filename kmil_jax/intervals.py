"""Confidence intervals and tests from resampled patients."""

from collections.abc import Iterator, Sequence

import numpy as np

from kmil_jax import metrics

RESAMPLES = 10_000
_LEVEL = (2.5, 97.5)
# Weights in flight, so that those of a block stay in a core's cache.
_BLOCK = 200_000


def replicates(
  label: np.ndarray,
  prob: np.ndarray,
  case: Sequence[str],
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """All metrics on resampled patients.

  Slides of one patient are not independent, so patients are drawn with
  replacement and bring all their slides (cluster bootstrap; Field and Welsh,
  JRSS B 2007). The draws are a function of `case` and `seed` alone: replicates
  of two models on the same slides are paired.

  Args:
    label: [N].
    prob: [N, C].
    case: patient of each slide, [N].
    resamples: number of resamples, W.
    seed: of the draws.

  Returns:
    What `metrics.weighted` returns, [W] and [W, C]; NaN in resamples where a
    metric is undefined, as an AUROC where a class was not drawn.
  """
  found = [
    metrics.weighted(label, prob, weight)
    for weight in _weights(case, resamples, seed)
  ]
  overall, by_class = zip(*found, strict=True)
  join = lambda blocks: {
    name: np.concatenate([block[name] for block in blocks])
    for name in blocks[0]
  }
  return join(overall), join(by_class)


def percentile(values: np.ndarray) -> np.ndarray:
  """95 % percentile interval of replicates.

  Args:
    values: [W, ...]; what is NaN is left out.

  Returns:
    Low and high, [2, ...]; NaN where no replicate is defined.
  """
  columns = values.reshape(len(values), -1).T
  bounds = np.full((2, len(columns)), np.nan)
  for i, column in enumerate(columns):
    defined = column[np.isfinite(column)]
    if len(defined):
      bounds[:, i] = np.percentile(defined, _LEVEL)
  return bounds.reshape(2, *values.shape[1:])


def bootstrap(
  label: np.ndarray,
  prob: np.ndarray,
  case: Sequence[str],
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """95 % percentile intervals of all metrics; arguments as `replicates`.

  Returns:
    (low, high) for each of `metrics.NAMES`, [2], and of `metrics.CLASS_NAMES`,
    [2, C]; NaN where a metric is undefined in every resample.
  """
  overall, by_class = replicates(
    label, prob, case, resamples=resamples, seed=seed
  )
  interval = lambda table: {k: percentile(v) for k, v in table.items()}
  return interval(overall), interval(by_class)


def p_value(difference: np.ndarray) -> float:
  """Two-sided p of no difference, from paired replicates [W].

  Twice the smaller share of replicates on either side of 0, both counted with
  one replicate more, so that p is never 0 (Davison and Hinkley, "Bootstrap
  methods and their application", 1997, section 4.2.3). It is below 0.05 where
  the percentile interval leaves out 0, up to that one replicate.

  Returns:
    p, at least 2 / (W + 1); NaN if no replicate is defined.
  """
  defined = difference[np.isfinite(difference)]
  if not len(defined):
    return float('nan')
  side = min((defined <= 0).sum(), (defined >= 0).sum())
  return float(min(1, 2 * (1 + side) / (1 + len(defined))))


def holm(p: np.ndarray) -> np.ndarray:
  """Adjusts p values [K] for the K tests made.

  Holm, Scandinavian Journal of Statistics 1979: the i-th smallest p times
  K - i + 1, at least the one before and at most 1. NaN, a test that could not
  be made, stays NaN and does not count.
  """
  p = np.asarray(p, float)
  order = np.argsort(p)[: np.isfinite(p).sum()]
  left = np.arange(len(order), 0, -1)
  adjusted = np.full(p.shape, np.nan)
  adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * left))
  return adjusted


def _weights(
  case: Sequence[str], resamples: int, seed: int
) -> Iterator[np.ndarray]:
  """Yields how often each slide is drawn, in blocks [W', N]."""
  names, patient = np.unique(case, return_inverse=True)
  rng = np.random.default_rng(seed)
  block = max(1, _BLOCK // max(1, len(patient)))
  for start in range(0, resamples, block):
    shape = (min(block, resamples - start), len(names))
    drawn = rng.integers(0, len(names), shape)
    drawn += len(names) * np.arange(shape[0])[:, None]
    counts = np.bincount(drawn.ravel(), minlength=shape[0] * shape[1])
    yield counts.reshape(shape)[:, patient].astype(float)
