"""Confidence intervals and tests in which patients are what varies."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from kmil_jax import metrics

RESAMPLES = 10_000
_LEVEL = (2.5, 97.5)
_Z = stats.norm.ppf(0.975)
# Below it, replicates differ by rounding alone.
_ROUNDING = 1e-12
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
    metric is undefined: AUROC, macro F1 and balanced accuracy where a class was
    not drawn. All are NaN where a class has fewer than two patients, who would
    be the same in every resample that has them.
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
  overall, by_class = join(overall), join(by_class)
  classes = range(prob.shape[1])
  case = np.asarray(case)
  patients = lambda rows: len(set(case[rows].tolist()))
  few = np.array([patients(label == c) < 2 for c in classes])
  rest = np.array([patients(label != c) < 2 for c in classes])
  for name, values in by_class.items():
    values[:, few | rest if name == 'auroc' else few] = np.nan
  if few.any():
    for name in ('auroc', 'f1_macro', 'balanced_accuracy'):
      overall[name][:] = np.nan
  return overall, by_class


def auroc_replicates(
  positive: np.ndarray,
  probs: np.ndarray,
  group: np.ndarray,
  *,
  resamples: int = 2000,
) -> np.ndarray:
  """Mean AUROC of several models on resampled groups.

  The draws depend on `group` alone: the replicates of two lists of models on
  the same tiles are paired.

  Args:
    positive: bool [N].
    probs: of R models, of being positive, [R, N].
    group: patient or slide of each tile, [N], drawn with all its tiles.
    resamples: number of resamples, W.

  Returns:
    [W]; NaN as `replicates` has it.
  """
  draws = []
  for prob in probs:
    overall, _ = replicates(
      positive.astype(int),
      np.stack([1 - prob, prob], 1),
      group,
      resamples=resamples,
    )
    draws.append(overall['auroc'])
  return np.mean(draws, 0)


def percentile(values: np.ndarray) -> np.ndarray:
  """95 % percentile interval of replicates.

  Args:
    values: [W, ...]; what is NaN is left out.

  Returns:
    Low and high, [2, ...]; NaN where no replicate is defined, and where the
    ends are equal: slides that vary in nothing, as those of a perfect model,
    do not say how far other slides would.
  """
  columns = values.reshape(len(values), -1).T
  bounds = np.full((2, len(columns)), np.nan)
  for i, column in enumerate(columns):
    defined = column[np.isfinite(column)]
    if len(defined):
      bounds[:, i] = np.percentile(defined, _LEVEL)
  bounds[:, bounds[1] - bounds[0] < _ROUNDING] = np.nan
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
    [2, C]; NaN as `percentile` has it.
  """
  overall, by_class = replicates(
    label, prob, case, resamples=resamples, seed=seed
  )
  interval = lambda table: {k: percentile(v) for k, v in table.items()}
  return interval(overall), interval(by_class)


def proportion(
  hit: np.ndarray, counted: np.ndarray, case: Sequence[str]
) -> np.ndarray:
  """95 % interval of a share of slides, by Wilson's score.

  Wilson, JASA 1927, keeps a width at shares of 0 and 1, where resamples have
  none. In place of the number of slides stands that of independent slides which
  would make the share vary as much, p (1 - p) / var (Rao and Scott, Biometrics
  1992). var is that of a ratio of sums over patients (Cochran, "Sampling
  techniques", 1977, chapter 6): m / (m - 1) sum (h - p c)^2 / (sum c)^2, of
  the m patients that hold c counted slides, h of them hits. The effective
  number is at most that of slides; at p = 0 and 1, where var says nothing,
  it is m.

  Args:
    hit: bool [N].
    counted: bool [N], the slides of which it is the share.
    case: patient of each slide, [N].

  Returns:
    Low and high, [2]; NaN where fewer than two patients hold counted slides.
  """
  _, patient = np.unique(np.asarray(case)[counted], return_inverse=True)
  count = np.bincount(patient)
  patients, slides = len(count), count.sum()
  if patients < 2:
    return np.full(2, np.nan)
  hits = np.bincount(patient, hit[counted])
  share = hits.sum() / slides
  spread = share * (1 - share)
  if spread:
    square = np.sum((hits - share * count) ** 2)
    variance = patients / (patients - 1) * square / slides**2
    # Not spread / variance: the variance is 0 where patients all agree.
    size = slides if variance * slides <= spread else spread / variance
  else:
    size = patients
  middle = share + _Z**2 / (2 * size)
  half = _Z * np.sqrt(spread / size + _Z**2 / (4 * size**2))
  ends = np.array([middle - half, middle + half]) / (1 + _Z**2 / size)
  return np.clip(ends, 0, 1)


def of_metrics(
  label: np.ndarray,
  prob: np.ndarray,
  case: Sequence[str],
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """95 % intervals of all metrics; arguments and result as `bootstrap`.

  Accuracy, precision and recall are shares and have those of `proportion`; F1,
  balanced accuracy and AUROC those of `bootstrap`.
  """
  overall, by_class = bootstrap(
    label, prob, case, resamples=resamples, seed=seed
  )
  pred, classes = prob.argmax(1), np.arange(prob.shape[1])
  hit = pred == label
  overall['accuracy'] = proportion(hit, np.ones(len(label), bool), case)
  for name, given in (('precision', pred), ('recall', label)):
    found = [proportion(hit, given == c, case) for c in classes]
    by_class[name] = np.stack(found, 1)
  # The precision of a class without slides is undefined; see `metrics`.
  by_class['precision'][:, ~np.isin(classes, label)] = np.nan
  return overall, by_class


def p_value(difference: np.ndarray) -> float:
  """Two-sided p of no difference, from paired replicates [W].

  Twice the smaller share of replicates on either side of 0, both counted with
  one replicate more, so that p is never 0 (Davison and Hinkley, "Bootstrap
  methods and their application", 1997, section 4.2.3). It is below 0.05 where
  the percentile interval leaves out 0, up to that one replicate.

  Returns:
    p, at least 2 / (W + 1); NaN if no replicate is defined, or all are the same
    difference other than 0: they do not say how it varies.
  """
  defined = difference[np.isfinite(difference)]
  if not len(defined):
    return float('nan')
  if np.ptp(defined) < _ROUNDING:
    return 1.0 if abs(defined[0]) < _ROUNDING else float('nan')
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
