"""Cuts overlapping windows out of a slide whose pixels are read once."""

from collections import deque
from collections.abc import Iterator
from concurrent import futures

import numpy as np

from data.slides import Slide

# Side of what is read at a time, level-0 pixels: that of CAMELYON16's JPEG
# tiles. Narrower bands would decode every tile several times.
CELL = 512
_AHEAD = 2  # Batches cut while one is scored.


def read(
  slide: Slide, places: np.ndarray, *, size: int, batch: int, threads: int = 2
) -> Iterator[np.ndarray]:
  """Yields the windows at `places`, in order, a few batches ahead.

  The slide is read in cells on a lattice, those alone that windows need, each
  once, and only those between the top of the current window and the bottom of
  the last are in memory: two rows of cells, 300 MB for a slide 100,000 pixels
  wide that is all tissue.

  Args:
    slide: an open slide.
    places: upper left corners (x, y), level-0 pixels, [n, 2]; y never falls.
    size: side of a window.
    batch: windows per batch, T; the last batch is filled up with black ones.
    threads: how many read cells.

  Yields:
    windows, uint8 [T, size, size, 3].

  Raises:
    SlideError: if a cell cannot be read; no later batch is yielded.
  """
  cells: dict[tuple[int, int], np.ndarray] = {}
  readers = futures.ThreadPoolExecutor(threads, thread_name_prefix='cells')
  # One thread cuts, so that batches follow one another.
  cutter = futures.ThreadPoolExecutor(1, thread_name_prefix='windows')

  def read_cell(cell: tuple[int, int]) -> np.ndarray:
    y, x = cell[0] * CELL, cell[1] * CELL
    height, width = min(CELL, slide.height - y), min(CELL, slide.width - x)
    return np.ascontiguousarray(slide.read(x, y, 0, width, height))

  def cut(some: np.ndarray) -> np.ndarray:
    top = int(some[0, 1])
    for cell in [c for c in cells if (c[0] + 1) * CELL <= top]:
      del cells[cell]
    needed = {c for x, y in some.tolist() for c in _cells(x, y, size)}
    absent = sorted(needed - set(cells))
    cells.update(zip(absent, readers.map(read_cell, absent), strict=True))
    out = np.zeros((batch, size, size, 3), np.uint8)
    for window, (x, y) in zip(out, some.tolist(), strict=False):
      for row, column in _cells(x, y, size):
        _copy(cells[row, column], window, row * CELL - y, column * CELL - x)
    return out

  pending = deque()
  try:
    for first in range(0, len(places), batch):
      pending.append(cutter.submit(cut, places[first : first + batch]))
      if len(pending) > _AHEAD:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    cutter.shutdown(cancel_futures=True)
    readers.shutdown(cancel_futures=True)


def _cells(x: int, y: int, size: int) -> list[tuple[int, int]]:
  """Returns (row, column) of the cells that a window touches."""
  rows, columns = (range(a // CELL, (a + size - 1) // CELL + 1) for a in (y, x))
  return [(row, column) for row in rows for column in columns]


def _copy(cell: np.ndarray, window: np.ndarray, top: int, left: int) -> None:
  """Copies what a window shares with a cell that lies at (top, left) of it."""
  size, (height, width, _) = len(window), cell.shape
  y0, y1 = max(top, 0), min(top + height, size)
  x0, x1 = max(left, 0), min(left + width, size)
  window[y0:y1, x0:x1] = cell[y0 - top : y1 - top, x0 - left : x1 - left]
