"""Paints the values of tiles on a grid of pixels."""

import numpy as np

from experiments.slide_maps.layers import Layer


def ends(starts: np.ndarray, side: float) -> np.ndarray:
  """Returns where tiles end along one axis.

  A tile ends where its neighbour starts, if that is within a pixel of its own
  side: coordinates are rounded, and where the side is not a whole number, tiles
  that touch would overlap or leave slits between them.

  Args:
    starts: where they start, level-0 pixels, [N].
    side: of a tile, level-0 pixels.
  """
  places = np.unique(starts)
  wanted = starts + side
  right = np.searchsorted(places, wanted).clip(0, len(places) - 1)
  left = (right - 1).clip(0)
  closer = np.abs(places[left] - wanted) < np.abs(places[right] - wanted)
  near = np.where(closer, places[left], places[right])
  touches = (np.abs(near - wanted) <= 1) & (near > starts)
  return np.where(touches, near, np.rint(wanted))


def boxes(coords: np.ndarray, side: float) -> np.ndarray:
  """Returns (left, top, right, bottom) of tiles, level-0 pixels, [N, 4]."""
  x, y = coords.T
  return np.stack([x, y, ends(x, side), ends(y, side)], 1)


def paint(
  boxes: np.ndarray,
  values: np.ndarray,
  scale: float | tuple[float, float],
  shape: tuple[int, int],
  origin: tuple[int, int] = (0, 0),
) -> np.ndarray:
  """Returns the mean value of the tiles over each pixel, float64 [H, W].

  NaN where there is no tile. Edges are rounded to whole pixels, but a tile
  covers at least one: tiles smaller than a pixel stay visible. Every tile costs
  four additions, whatever its size (a summed-area table, Crow, "Summed-area
  tables for texture mapping", SIGGRAPH 1984, run backwards).

  Args:
    boxes: see `boxes`.
    values: [N]; tiles whose value is NaN are left out.
    scale: level-0 pixels per pixel, one number or (x, y).
    shape: of the part that is painted.
    origin: its upper left pixel (x, y). Parts of one picture fit together.
  """
  has = ~np.isnan(values)
  corners = boxes[has] / np.tile(np.broadcast_to(scale, 2), 2)
  # Rounded before the origin is taken off, so that all parts round alike.
  corners = np.rint(corners).astype(np.int64) - np.tile(origin, 2)
  left, top, right, bottom = corners.T
  right, bottom = np.maximum(right, left + 1), np.maximum(bottom, top + 1)
  height, width = shape
  inside = (left < width) & (right > 0) & (top < height) & (bottom > 0)
  columns = [x[inside].clip(0, width) for x in (left, right)]
  rows = [y[inside].clip(0, height) for y in (top, bottom)]
  total = np.zeros((height + 1, width + 1))
  count = np.zeros((height + 1, width + 1), np.int64)
  for row, y in enumerate(rows):
    for column, x in enumerate(columns):
      sign = 1 if row == column else -1
      np.add.at(total, (y, x), sign * values[has][inside])
      np.add.at(count, (y, x), sign)
  total, count = (a.cumsum(0).cumsum(1)[:-1, :-1] for a in (total, count))
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def coloured(
  painted: np.ndarray, layer: Layer, colours: np.ndarray
) -> np.ndarray:
  """Returns painted values in colours, uint8 [H, W, 4]; NaN is transparent.

  Args:
    painted: values of the layer on pixels, [H, W].
    layer: gives the scale; values beyond an end of it are drawn as that end.
    colours: from the low end to the high one, uint8 [K, 4].
  """
  empty = np.isnan(painted)
  placed = layer.place(np.where(empty, layer.low, painted))
  image = colours[np.rint(placed * (len(colours) - 1)).astype(np.intp)]
  image[empty] = 0
  return image
