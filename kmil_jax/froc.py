"""The lesion-level score of CAMELYON16: free-response ROC.

Definitions are those of the organisers' evaluation (Ehteshami Bejnordi et al.,
JAMA 2017; https://camelyon16.grand-challenge.org/Evaluation).
"""

from collections.abc import Sequence
import dataclasses

import numpy as np
from scipy import ndimage

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # False positives per slide.
MPP = 0.243  # um per level-0 pixel, taken for both scanners.
LEVEL = 5  # Of the masks: pixels are 2^5 level-0 pixels wide.
_MERGED_UM = 75.0  # Lesions closer than this are one; about five tumour cells.
# Longest diameter of isolated tumour cells, 200 um, and the dilation by 75.
_CELLS_UM = 275.0


@dataclasses.dataclass(frozen=True)
class Lesions:
  """What is to be found on a slide.

  Attributes:
    label: 0 outside, 1 to M in the lesions, int32 [H, W].
    cells: True for isolated tumour cells, which do not count, bool [M].
  """

  label: np.ndarray
  cells: np.ndarray


@dataclasses.dataclass(frozen=True)
class Case:
  """What the detections on a slide hit and miss.

  Attributes:
    alarms: scores of the false positives, [n].
    hits: best score on every lesion, 0 on missed ones and isolated cells, [M].
    targets: number of lesions that count; 0 on a normal slide.
  """

  alarms: np.ndarray
  hits: np.ndarray
  targets: int


@dataclasses.dataclass(frozen=True)
class Froc:
  """The curve and what is read off it.

  Attributes:
    score: mean sensitivity at `RATES`; NaN without lesions.
    sensitivity: at `RATES`, [6].
    rate: false positives per slide, rising from 0, [K].
    curve: sensitivity at `rate`, [K].
    lesions: number of those that count.
    slides: number of tumour and normal slides.
  """

  score: float
  sensitivity: np.ndarray
  rate: np.ndarray
  curve: np.ndarray
  lesions: int
  slides: int


def lesions(
  mask: np.ndarray, *, mpp: float = MPP, level: int = LEVEL
) -> Lesions:
  """Tells the lesions of a slide apart.

  What is less than 37.5 um away from tumour belongs to the lesion, holes are
  filled, and 8-connected pixels are one lesion. Those whose major axis, that of
  the ellipse of the same second moments, is below 275 um are isolated tumour
  cells.

  Args:
    mask: True on tumour, bool [H, W]; without any there is no lesion. (The
      organisers' distance transform then invents one, in a corner.)
    mpp: um per level-0 pixel.
    level: of the mask: its pixels are 2^level level-0 pixels wide.
  """
  mask = np.asarray(mask, bool)
  if not mask.any():
    return Lesions(np.zeros(mask.shape, np.int32), np.zeros(0, bool))
  pixel = mpp * 2**level
  reach = _MERGED_UM / 2 / pixel
  # Slides are mostly without tumour: nothing is decided beyond its reach.
  margin = int(np.ceil(reach)) + 1
  near = tuple(
    slice(max(0, found[0] - margin), found[-1] + 1 + margin)
    for found in (np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0)))
  )
  region = ndimage.distance_transform_edt(~mask[near]) < reach
  label = np.zeros(mask.shape, np.int32)
  label[near], _ = ndimage.label(
    ndimage.binary_fill_holes(region), np.ones((3, 3))
  )
  boxes = ndimage.find_objects(label)
  axis = [_major_axis(label[box] == i + 1) for i, box in enumerate(boxes)]
  cells = np.array(axis) < _CELLS_UM / pixel
  return Lesions(label, cells)


def _major_axis(region: np.ndarray) -> float:
  """Length of the ellipse that has a region's covariance: 4 sqrt(largest)."""
  covariance = np.cov(np.argwhere(region).T, bias=True)
  return 4 * np.sqrt(max(np.linalg.eigvalsh(covariance)[-1], 0))


def judge(
  truth: Lesions | None,
  score: np.ndarray,
  xy: np.ndarray,
  *,
  level: int = LEVEL,
) -> Case:
  """Sorts the detections on a slide into hits and false positives.

  A detection that lies on a lesion hits it; only the best of several counts,
  and the others cost nothing. On isolated tumour cells, a detection counts as
  nothing; anywhere else, and everywhere on a normal slide, as false positive.

  Args:
    truth: lesions of a tumour slide, None for a normal one.
    score: of the detections, [K]; at 0, a hit counts as a miss.
    xy: their places in level-0 pixels, [K, 2].
    level: of the mask that `truth` was made of.

  Raises:
    ValueError: if a score is negative or not finite, or a place lies outside
      the mask; rows are counted from 0.
  """
  score = np.asarray(score, float)
  xy = np.asarray(xy, float).reshape(-1, 2)
  if len(score) != len(xy):
    raise ValueError(f'found {len(score)} scores and {len(xy)} places')
  bad = ~(np.isfinite(score) & (score >= 0) & np.isfinite(xy).all(1))
  if bad.any():
    row = int(bad.argmax())
    raise ValueError(
      f'detection {row}: score {score[row]:g} at ({xy[row, 0]:g}, '
      f'{xy[row, 1]:g}); scores are finite and not negative, places finite'
    )
  if truth is None:
    return Case(score, np.zeros(0), 0)
  column, row = np.floor(xy.T / 2**level)
  height, width = truth.label.shape
  outside = (column < 0) | (row < 0) | (column >= width) | (row >= height)
  if outside.any():
    i = int(outside.argmax())
    raise ValueError(
      f'detection {i} at ({xy[i, 0]:g}, {xy[i, 1]:g}) lies outside the mask, '
      f'{width} x {height} px of level {level}: '
      f'{width * 2**level} x {height * 2**level} level-0 px'
    )
  label = truth.label[row.astype(int), column.astype(int)]
  best = np.zeros(len(truth.cells) + 1)
  np.maximum.at(best, label, score)
  hits = np.where(truth.cells, 0.0, best[1:])
  return Case(score[label == 0], hits, int((~truth.cells).sum()))


def froc(cases: Sequence[Case]) -> Froc:
  """Returns the curve of all slides, and its mean at six rates.

  Scores of false positives and of lesions (0 of those missed, and of isolated
  tumour cells) are pooled. Each distinct one but the smallest is a threshold;
  what reaches it counts. Between thresholds and (0, 0) the sensitivity is
  interpolated; beyond the largest rate it stays. So a detector without any
  false positive and without a miss never gets the lesion it scored lowest.

  Args:
    cases: of every slide, normal ones too; see `judge`.
  """
  return _weighted(*_pooled(cases), np.ones(len(cases)))


def interval(
  cases: Sequence[Case], *, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
  """95 % percentile interval of the score of `froc`, [2].

  Slides are drawn with replacement; resamples without lesions are left out.

  Args:
    cases: as in `froc`.
    resamples: number of resamples.
    seed: of the draws.

  Returns:
    Low and high; NaN if fewer than two slides have lesions that count, for
    then nothing is known of how slides differ.
  """
  if sum(case.targets > 0 for case in cases) < 2:
    return np.full(2, np.nan)
  n, rng = len(cases), np.random.default_rng(seed)
  pooled = _pooled(cases)
  draws = (
    np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(resamples)
  )
  scores = [_weighted(*pooled, draw).score for draw in draws]
  return np.nanpercentile(scores, (2.5, 97.5))


def _pooled(
  cases: Sequence[Case],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """All scores, highest first; whose are alarms; their slides; targets."""
  score = [s for case in cases for s in (case.alarms, case.hits)]
  size = np.array([len(s) for s in score], int)
  score = np.concatenate([np.zeros(0), *score])
  order = np.argsort(-score, kind='stable')
  alarm = np.repeat(np.tile([True, False], len(cases)), size)
  slide = np.repeat(np.repeat(np.arange(len(cases)), 2), size)
  targets = np.array([case.targets for case in cases], int)
  return score[order], alarm[order], slide[order], targets


def _weighted(
  score: np.ndarray,
  alarm: np.ndarray,
  slide: np.ndarray,
  targets: np.ndarray,
  weight: np.ndarray,
) -> Froc:
  """The curve when slide i counts `weight[i]` times; see `_pooled`."""
  slides, total = weight.sum(), weight @ targets
  of_score = weight[slide]
  drawn = of_score > 0
  score, alarm, of_score = score[drawn], alarm[drawn], of_score[drawn]
  last = np.flatnonzero(np.append(np.diff(score) != 0, True)[: len(score)])
  last = last[:-1]  # The smallest score is no threshold.
  rate = np.append(0, np.cumsum(of_score * alarm)[last]) / max(slides, 1)
  with np.errstate(invalid='ignore'):
    curve = np.append(0, np.cumsum(of_score * ~alarm)[last]) / total
  # A curve without lesions is NaN throughout.
  sensitivity = np.interp(RATES, rate, curve)
  return Froc(
    score=float(sensitivity.mean()),
    sensitivity=sensitivity,
    rate=rate,
    curve=curve,
    lesions=int(total),
    slides=int(slides),
  )
