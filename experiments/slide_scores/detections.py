"""Says what a map of scores means: a score of its slide, and detections."""

import pathlib

import numpy as np

from data.camelyon16.patches import STRIDE
from experiments import files

THRESHOLD = 2.01  # FW-RD's code, of scores from 0 to 3.
RADIUS = 6  # Pixels of the map; FW-RD's (NCRF: 12).
# Ours: FW-RD's value is not known, and at its code's default of 0.5 nearly all
# tissue is a detection.
STOP = 2.0


def slide_score(scores: np.ndarray, threshold: float = THRESHOLD) -> float:
  """Mean of the values of a map that reach the threshold, 0 if none does."""
  reach = scores[scores >= threshold]
  return float(reach.mean(dtype=float)) if len(reach) else 0.0


def find(
  scores: np.ndarray,
  *,
  radius: int = RADIUS,
  stop: float = STOP,
  stride: int = STRIDE,
) -> np.ndarray:
  """Returns the peaks of a map, (score, x, y), float64 [K, 3].

  Again and again, the highest value is a detection, and the values in a square
  of 2 `radius` pixels around it become 0, until none is above `stop` (NCRF's
  non-maximum suppression). Of equal values that with the smallest x, then y
  comes first.

  Args:
    scores: [H, W].
    radius: pixels of the map; the square is [x - r, x + r) by [y - r, y + r).
    stop: not negative.
    stride: level-0 pixels per pixel of the map.

  Returns:
    Highest first; x and y are level-0 pixels, the middles of pixels of the map.

  Raises:
    ValueError: if `stop` is negative or `radius` below 1: it would never end.
  """
  if stop < 0 or radius < 1:
    raise ValueError(f'found stop={stop} and radius={radius}; 0 and 1 at least')
  y, x = np.nonzero(scores > stop)
  order = np.lexsort((y, x, -scores[y, x]))
  free, found = np.ones(scores.shape, bool), []
  for row, column in zip(y[order].tolist(), x[order].tolist(), strict=True):
    if free[row, column]:
      found.append((scores[row, column], column, row))
      free[
        max(row - radius, 0) : row + radius,
        max(column - radius, 0) : column + radius,
      ] = False
  found = np.array(found, float).reshape(-1, 3)
  found[:, 1:] = (found[:, 1:] + 0.5) * stride
  return found


def write(path: pathlib.Path, found: np.ndarray) -> None:
  """Writes lines `probability,x,y` as `experiments.froc` reads them.

  There is no header; the organisers' program would not read one. Places are
  rounded down to whole pixels.
  """
  files.write_csv(
    path, [(p, int(x), int(y)) for p, x, y in found.astype(float).tolist()]
  )
