"""Fills outlines in masks and tells which points lie within them."""

from collections.abc import Sequence

import numpy as np

from data.outlines import Ring

_BLOCK = 2**22  # Pairs of a point and an edge that are looked at together.


def rasterise(
  rings: Sequence[Ring],
  shape: tuple[int, int],
  scale: float,
  *,
  holes: bool = True,
) -> np.ndarray:
  """Returns True on pixels whose middle lies within outlines, bool [H, W].

  Outlines join; what lies in a hole lies in no outline. A ring that crosses
  itself holds what an even-odd count of its edges says.

  Args:
    rings: outlines in level-0 pixels; parts beyond the mask are cut off.
    shape: (H, W) of the mask.
    scale: level-0 pixels per pixel of the mask.
    holes: whether holes are cut out. FW-RD's code leaves them in.
  """
  inside, cut = np.zeros(shape, bool), np.zeros(shape, bool)
  for corners, hole in rings:
    if not hole:
      _fill(inside, corners / scale)
    elif holes:
      _fill(cut, corners / scale)
  return inside & ~cut


def _fill(mask: np.ndarray, corners: np.ndarray) -> None:
  """Sets pixels within a ring, whose corners are in pixels of the mask."""
  first = lambda values: np.ceil(values - 0.5).astype(int)  # Middle beyond it.
  height, width = mask.shape
  (left, top), (right, bottom) = (
    np.clip(first(bound), 0, (width, height))
    for bound in (corners.min(0), corners.max(0))
  )
  if left == right or top == bottom:
    return
  start, end = corners, np.roll(corners, -1, 0)
  rows = np.clip(
    first(np.sort(np.stack([start[:, 1], end[:, 1]]), 0)), top, bottom
  )
  count = rows[1] - rows[0]
  edge = np.repeat(np.arange(len(corners)), count)
  row = rows[0][edge] + np.arange(len(edge)) - (np.cumsum(count) - count)[edge]
  (x0, y0), (x1, y1) = start[edge].T, end[edge].T
  x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
  column = np.clip(first(x), left, right) - left
  across = right - left + 1
  crossed = np.bincount(
    (row - top) * across + column, minlength=(bottom - top) * across
  ).reshape(-1, across)
  # Left of a pixel's middle lies an odd number of edges if it is inside.
  odd = np.bitwise_and(np.cumsum(crossed[:, :-1], 1), 1).astype(bool)
  mask[top:bottom, left:right] |= odd


def contains(
  rings: Sequence[Ring], xy: np.ndarray, *, holes: bool = True
) -> np.ndarray:
  """Returns True on points that lie within outlines, bool [n].

  Args:
    rings: as in `rasterise`.
    xy: points in level-0 pixels, [n, 2].
    holes: as in `rasterise`.
  """
  xy = np.asarray(xy, float).reshape(-1, 2)
  inside, cut = np.zeros(len(xy), bool), np.zeros(len(xy), bool)
  for corners, hole in rings:
    if hole and not holes:
      continue
    near = np.flatnonzero(
      ((xy >= corners.min(0)) & (xy <= corners.max(0))).all(1)
    )
    block = max(1, _BLOCK // len(corners))
    for i in range(0, len(near), block):
      some = near[i : i + block]
      (cut if hole else inside)[some] |= _odd(corners, xy[some])
  return inside & ~cut


def _odd(corners: np.ndarray, xy: np.ndarray) -> np.ndarray:
  """Returns True on points with an odd number of edges to their left."""
  (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, 0).T
  x, y = xy[:, :1], xy[:, 1:]
  crosses = (y0 <= y) != (y1 <= y)
  slope = (x1 - x0) / np.where(y0 == y1, 1, y1 - y0)
  return (crosses & (x0 + (y - y0) * slope <= x)).sum(1) % 2 == 1
