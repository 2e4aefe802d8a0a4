"""Scores all tissue of a slide: a map, its detections, a score of the slide."""

from collections.abc import Callable, Iterator
import functools
import hashlib
import json
import pathlib

import numpy as np

from data import tiff
from data.ahead import ahead
from data.camelyon16.patches import tissue_map
from data.slides import Slide, SlideError
from experiments.run import results

# Side of what is read at a time, level-0 pixels: that of CAMELYON16's JPEG
# tiles. Narrower bands would decode every tile several times.
CELL = 512
_AHEAD = 2  # Batches cut while one is scored.
_SMALLEST = 128  # Pixels of a pyramid's last level, shorter side, or more.


class ScoreError(ValueError):
  """Scores that cannot be used; names the file and what to do."""


def score(
  slide: Slide,
  score_batch: Callable[[np.ndarray], np.ndarray],
  path: pathlib.Path,
  *,
  stride: int,
  patch: int,
  batch: int = 64,
  model: str = '',
) -> np.ndarray:
  """Returns the map of a slide's scores, float32 [H, W].

  Every pixel of tissue gets the score of the patch around its middle, ((x +
  0.5) * stride, (y + 0.5) * stride); the others are 0. A patch that would reach
  beyond the slide is moved inwards until it does not: it holds no pixel that is
  not the slide's, and pixels of the map near the border may share one. (FW-RD's
  code fills it up with black.)

  Args:
    slide: an open slide.
    score_batch: scores `batch` patches, uint8 [T, patch, patch, 3] to [T]; the
      last call of a slide is filled up with black ones.
    path: .npz that the map is written to, or read from if it is there.
    stride: level-0 pixels between patches, and per pixel of the map.
    patch: side of a patch, level-0 pixels.
    batch: patches per call, T.
    model: what tells one scorer from another, such as a hash of its weights.

  Raises:
    SlideError: if the slide cannot be read, is smaller than a patch or holds no
      tissue.
    ScoreError: if the file was made of another slide, by another model or with
      other settings, or a score is not finite.
  """
  mask = tissue_map(slide, stride)
  if min(slide.width, slide.height) < patch or not mask.any():
    raise SlideError(
      f'{slide.path.name}: {slide.width} x {slide.height} px hold no tissue, or'
      f' no patch of {patch} px. Look at it, and leave it out.'
    )
  settings = {
    'slide': [slide.slide_id, slide.width, slide.height],
    'stride': stride,
    'patch': patch,
    'batch': batch,
    'model': model,
    'tissue': hashlib.sha256(np.packbits(mask)).hexdigest()[:16],
  }
  if path.exists():
    return _load(path, settings)
  places = np.argwhere(mask)[:, ::-1] * stride + stride // 2 - patch // 2
  places = places.clip(0, (slide.width - patch, slide.height - patch))
  batches = [
    score_batch(some)
    for some in windows(slide, places, size=patch, batch=batch)
  ]
  scores = np.zeros(mask.shape, np.float32)
  scores[mask] = np.concatenate(batches)[: len(places)]
  if not np.isfinite(scores).all():
    raise ScoreError(
      f'{slide.path.name}: scores of patches are not finite. Look at the'
      " networks' weights."
    )
  held = {'scores': scores, 'settings': json.dumps(settings)}
  results.Folder(path.parent).write(path.name, held)
  return scores


def windows(
  slide: Slide, places: np.ndarray, *, size: int, batch: int
) -> Iterator[np.ndarray]:
  """Yields the windows at `places`, in order, a few batches ahead.

  The slide is read in cells on a lattice, those alone that windows need, each
  once. The last three rows of cells are in memory: 470 MB for a slide 100,000
  pixels wide that is all tissue.

  Args:
    slide: an open slide.
    places: upper left corners (x, y), level-0 pixels, [n, 2]; y never falls.
    size: side of a window.
    batch: windows per batch, T; the last batch is filled up with black ones.

  Yields:
    windows, uint8 [T, size, size, 3].

  Raises:
    SlideError: if a cell cannot be read; no later batch is yielded.
  """
  touched = lambda a: range(a // CELL, (a + size - 1) // CELL + 1)
  # Between two uses of a cell, no others can be than those of so many rows.
  rows, columns = 2 * len(touched(CELL - 1)) - 1, -(-slide.width // CELL)

  @functools.lru_cache(rows * columns)
  def cell(row: int, column: int) -> np.ndarray:
    x, y = column * CELL, row * CELL
    sides = min(CELL, slide.width - x), min(CELL, slide.height - y)
    return np.ascontiguousarray(slide.read(x, y, 0, *sides))

  def cut(some: np.ndarray) -> np.ndarray:
    out = np.zeros((batch, size, size, 3), np.uint8)
    for window, (x, y) in zip(out, some.tolist(), strict=False):
      for row in touched(y):
        for column in touched(x):
          top, left = row * CELL - y, column * CELL - x
          seen = window[max(top, 0) :, max(left, 0) :]
          part = cell(row, column)[max(-top, 0) :, max(-left, 0) :]
          height, width = np.minimum(seen.shape, part.shape)[:2]
          seen[:height, :width] = part[:height, :width]
    return out

  some = (places[i : i + batch] for i in range(0, len(places), batch))
  # One thread: batches follow one another.
  return ahead(cut, some, count=_AHEAD)


def slide_score(scores: np.ndarray, threshold: float) -> float:
  """Mean of the values of a map that reach the threshold, 0 if none does."""
  reach = scores[scores >= threshold]
  return float(reach.mean(dtype=float)) if len(reach) else 0.0


def detections(
  scores: np.ndarray, *, radius: int, stop: float, stride: int
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
  """
  y, x = np.nonzero(scores > stop)
  order = np.lexsort((y, x, -scores[y, x]))
  free, peaks = np.ones(scores.shape, bool), []
  for row, column in zip(y[order].tolist(), x[order].tolist(), strict=True):
    if free[row, column]:
      peaks.append((scores[row, column], column, row))
      low = max(row - radius, 0), max(column - radius, 0)
      free[low[0] : row + radius, low[1] : column + radius] = False
  peaks = np.array(peaks, float).reshape(-1, 3)
  peaks[:, 1:] = (peaks[:, 1:] + 0.5) * stride
  return peaks


def write_tiff(
  path: pathlib.Path, scores: np.ndarray, *, mpp: float, most: float
) -> None:
  """Writes a map as a grey pyramid that viewers lay over the slide.

  Black is 0; JPEG at its best quality, so that values are off by up to about
  1 %: the map itself is what `score` keeps.

  Args:
    path: of the TIFF.
    scores: [H, W].
    mpp: um per pixel of the map: that of the slide times the stride.
    most: the score that is white, as are those above it.
  """
  grey = np.round(np.clip(scores / most, 0, 1) * 255).astype(np.uint8)
  levels = max(1, (min(grey.shape) // _SMALLEST).bit_length())
  image = np.repeat(grey[..., None], 3, -1)
  tiff.write(path, image, mpp=mpp, levels=levels, quality=100)


def _load(path: pathlib.Path, settings: dict) -> np.ndarray:
  """Returns scores made with these settings."""
  held = results.read_arrays(path)
  before = json.loads(str(held['settings']))
  if differ := [
    name for name in settings if settings[name] != before.get(name)
  ]:
    raise ScoreError(
      f'{path}: made with another {", ".join(differ)}. Remove it, or choose'
      ' another --exp_code.'
    )
  return held['scores']
