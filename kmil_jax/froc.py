"""The lesion-level score of CAMELYON16: free-response ROC.

Definitions are those of the organisers' evaluation (Ehteshami Bejnordi et al.,
JAMA 2017; https://camelyon16.grand-challenge.org/Evaluation).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

from kmil_jax import intervals

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # False positives per slide.
MPP = 0.243  # um per level-0 pixel, taken for both scanners.
LEVEL = 5  # Of the masks: pixels are 2^5 level-0 pixels wide.
_MERGED_UM = 75.0  # Lesions closer than this are one; about five tumour cells.
# Longest diameter of isolated tumour cells, 200 um, and the dilation by 75.
_CELLS_UM = 275.0


class Lesions(NamedTuple):
  """What is to be found on a slide.

  Attributes:
    label: 0 outside, 1 to M in the lesions, int32 [H, W].
    cells: True for isolated tumour cells, which do not count, bool [M].
  """

  label: np.ndarray
  cells: np.ndarray


class Case(NamedTuple):
  """What the detections on a slide hit and miss.

  Attributes:
    alarms: scores of the false positives, [n].
    hits: best score on every lesion, 0 on missed ones and isolated cells, [M].
    targets: number of lesions that count; 0 on a normal slide.
  """

  alarms: np.ndarray
  hits: np.ndarray
  targets: int


class Froc(NamedTuple):
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
  pixel = mpp * 2**level
  reach = _MERGED_UM / 2 / pixel
  # Slides are mostly without tumour: nothing is decided beyond its reach.
  margin = int(np.ceil(reach)) + 1
  label = np.zeros(mask.shape, np.int32)
  # One or none.
  for box in scipy.ndimage.find_objects(np.asarray(mask, np.int8)):
    near = tuple(slice(max(0, x.start - margin), x.stop + margin) for x in box)
    region = scipy.ndimage.distance_transform_edt(mask[near] == 0) < reach
    filled = scipy.ndimage.binary_fill_holes(region)
    label[near], _ = scipy.ndimage.label(filled, np.ones((3, 3)))
  boxes = scipy.ndimage.find_objects(label)
  axis = [_major_axis(label[box] == i + 1) for i, box in enumerate(boxes)]
  return Lesions(label, np.array(axis) < _CELLS_UM / pixel)


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
      the slide; rows are counted from 0.
  """
  score = np.asarray(score, float)
  xy = np.asarray(xy, float).reshape(len(score), 2)
  side = np.full(2, np.inf)
  if truth is not None:
    side = np.array(truth.label.shape[::-1]) * 2**level
  valid = ((xy >= 0) & (xy < side)).all(1) & (score >= 0) & np.isfinite(score)
  if not valid.all():
    row = int(valid.argmin())
    raise ValueError(
      f'detection {row}: found the score {score[row]:g} at ({xy[row, 0]:g},'
      f' {xy[row, 1]:g}). Scores must be finite and not negative, places within'
      f' {side[0]:g} x {side[1]:g} level-0 pixels.'
    )
  if truth is None:
    return Case(score, np.zeros(0), 0)
  column, row = (xy.T // 2**level).astype(int)
  label = truth.label[row, column]
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
  alarms = np.concatenate([np.zeros(0), *(case.alarms for case in cases)])
  hits = np.concatenate([np.zeros(0), *(case.hits for case in cases)])
  lesions = sum(case.targets for case in cases)
  # From the highest on; the smallest score is no threshold.
  threshold = np.unique(np.concatenate([alarms, hits]))[:0:-1]
  reach = lambda x: len(x) - np.searchsorted(np.sort(x), threshold)
  rate = np.append(0, reach(alarms)) / max(len(cases), 1)
  with np.errstate(invalid='ignore'):  # Without lesions it is NaN throughout.
    curve = np.append(0, reach(hits)) / lesions
  sensitivity = np.interp(RATES, rate, curve)
  return Froc(
    score=float(sensitivity.mean()),
    sensitivity=sensitivity,
    rate=rate,
    curve=curve,
    lesions=lesions,
    slides=len(cases),
  )


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
    Low and high; NaN if fewer than two slides have lesions that count, or all
    resamples have one score, for then nothing is known of how slides differ.
  """
  if sum(case.targets > 0 for case in cases) < 2:
    return np.full(2, np.nan)
  n, rng = len(cases), np.random.default_rng(seed)
  draws = (rng.integers(0, n, n) for _ in range(resamples))
  scores = [froc([cases[i] for i in draw]).score for draw in draws]
  return intervals.percentile(np.array(scores))
