"""Confidence intervals and tests in which patients are what varies."""

from collections.abc import Iterator, Sequence
import statistics
import warnings

import numpy as np

from kmil_jax import metrics

RESAMPLES = 10_000
_LEVEL = (2.5, 97.5)
_Z = statistics.NormalDist().inv_cdf(0.975)
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
) -> dict[str, np.ndarray]:
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
    What `metrics.evaluate` returns, [W] and [W, C]; NaN in resamples where a
    metric is undefined: AUROC, macro F1 and balanced accuracy where a class was
    not drawn. All are NaN where a class has fewer than two patients, who would
    be the same in every resample that has them.
  """
  _, patient = np.unique(case, return_inverse=True)
  blocks = [
    metrics.evaluate(label, prob, weight)
    for weight in weights(case, resamples, seed)
  ]
  drawn = {
    name: np.concatenate([block[name] for block in blocks])
    for name in blocks[0]
  }
  own = label == np.arange(prob.shape[1])[:, None]
  is_few = lambda rows: len(np.unique(patient[rows])) < 2
  few, rest = (np.array([*map(is_few, rows)]) for rows in (own, ~own))
  for name in metrics.CLASS_NAMES:
    drawn[name][:, few | rest if name == 'class_auroc' else few] = np.nan
  if few.any():
    for name in metrics.OF_ALL_CLASSES:
      drawn[name][:] = np.nan
  return drawn


def weights(
  case: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[np.ndarray]:
  """Yields how often each slide is drawn; arguments as `replicates`.

  Yields:
    Some of the W resamples at a time, float64 [w, N].
  """
  names, patient = np.unique(case, return_inverse=True)
  rng, size = np.random.default_rng(seed), max(1, _BLOCK // max(1, len(case)))
  for start in range(0, resamples, size):
    shape = (min(size, resamples - start), len(names))
    chosen = rng.integers(0, len(names), shape)
    chosen += len(names) * np.arange(shape[0])[:, None]
    counts = np.bincount(chosen.ravel(), minlength=shape[0] * shape[1])
    yield counts.reshape(shape)[:, patient].astype(float)


def auroc_replicates(
  positive: np.ndarray, probs: np.ndarray, group: np.ndarray, **draws: int
) -> np.ndarray:
  """Mean AUROC of several models on resampled groups.

  The draws depend on `group` alone: the replicates of two lists of models on
  the same tiles are paired.

  Args:
    positive: bool [N].
    probs: of R models, of being positive, [R, N].
    group: patient or slide of each tile, [N], drawn with all its tiles.
    **draws: `resamples` and `seed` of `replicates`.

  Returns:
    [W]; NaN as `replicates` has it.
  """
  label = positive.astype(int)
  both = (np.stack([1 - prob, prob], 1) for prob in probs)
  drawn = [replicates(label, p, group, **draws) for p in both]
  return np.mean([values['auroc'] for values in drawn], 0)


def percentile(values: np.ndarray) -> np.ndarray:
  """95 % percentile interval of replicates.

  Args:
    values: [W, ...]; what is NaN is left out.

  Returns:
    Low and high, [2, ...]; NaN where no replicate is defined, and where the
    ends are equal: slides that vary in nothing, as those of a perfect model,
    do not say how far other slides would.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)  # Of columns of NaN alone.
    bounds = np.nanpercentile(values, _LEVEL, axis=0)
  return np.where(bounds[1] - bounds[0] < _ROUNDING, np.nan, bounds)


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
  share, size = hits.sum() / slides, patients
  spread = share * (1 - share)
  if spread:
    square = np.sum((hits - share * count) ** 2)
    variance = patients / (patients - 1) * square / slides**2
    # Not spread / variance: the variance is 0 where patients all agree.
    size = slides if variance * slides <= spread else spread / variance
  middle = share + _Z**2 / (2 * size)
  half = _Z * np.sqrt(spread / size + _Z**2 / (4 * size**2))
  ends = np.array([middle - half, middle + half]) / (1 + _Z**2 / size)
  return np.clip(ends, 0, 1)


def of_metrics(
  label: np.ndarray, prob: np.ndarray, case: Sequence[str], **draws: int
) -> dict[str, np.ndarray]:
  """95 % intervals of all metrics; arguments as `replicates`.

  Accuracy, precision and recall are shares and have those of `proportion`; F1,
  balanced accuracy and AUROC the `percentile` of their replicates.

  Returns:
    (low, high) for each of `metrics.NAMES`, [2], and of `metrics.CLASS_NAMES`,
    [2, C].
  """
  drawn = replicates(label, prob, case, **draws)
  bounds = {name: percentile(values) for name, values in drawn.items()}
  pred, classes = prob.argmax(1), np.arange(prob.shape[1])
  hit = pred == label
  share = lambda rows: proportion(hit, rows, case)
  bounds['accuracy'] = share(np.ones_like(hit))
  for name, given in (('class_precision', pred), ('class_recall', label)):
    bounds[name] = np.stack([share(given == c) for c in classes], 1)
  # The precision of a class without slides is undefined; see `metrics`.
  bounds['class_precision'][:, ~np.isin(classes, label)] = np.nan
  return bounds


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
