"""Maps over slides: what they show, their scales, colours and pictures."""

from collections.abc import Sequence
import dataclasses
import pathlib

import matplotlib
from matplotlib import cm, colors, figure, patches
import numpy as np
import scipy

from data import slides
from experiments.maps.tile_scores import (
  COLOURS as COLOURS,
  SCALES as SCALES,
  TileScores,
)

_SHARES = (0.1, 10)  # Multiples of the mean attention that the scale spans.
_PICTURE = 700  # Pixels of a thumbnail's longer side.
_OPACITY = 0.75


@dataclasses.dataclass(frozen=True)
class Layer:
  """One score of every tile of a slide.

  Attributes:
    key: a short name, of letters, digits and hyphens.
    title: what it is.
    values: [N], NaN on tiles without one.
    low, high: ends of the scale, the same for every slide.
    log: whether the scale is logarithmic.
  """

  key: str
  title: str
  values: np.ndarray
  low: float = 0
  high: float = 1
  log: bool = False

  @property
  def norm(self) -> colors.Normalize:
    """Maps the scale to 0 to 1; values beyond an end to that end."""
    kind = colors.LogNorm if self.log else colors.Normalize
    return kind(self.low, self.high, clip=True)

  def coloured(self, painted: np.ndarray, ramp: np.ndarray) -> np.ndarray:
    """Returns painted values in colours, uint8 [H, W, 4]; NaN is transparent.

    Args:
      painted: values on pixels, [H, W].
      ramp: from the low end to the high one, uint8 [K, 4].
    """
    empty = np.isnan(painted)
    place = self.norm(np.where(empty, self.low, painted))
    image = ramp[np.rint(place * (len(ramp) - 1)).astype(np.intp)]
    image[empty] = 0
    return image


def layers(scores: TileScores, scale: str) -> dict[str, Layer]:
  """Returns all layers of a slide by their keys.

  Of every class the tiles' probability, the predicted one's first; the
  attention for the predicted class; and, where several folds saw the slide, the
  standard deviation of its probability over them.

  Args:
    scores: of its tiles.
    scale: 'absolute': probabilities from 0 to 1, their deviation from 0 to its
      bound of 0.5, attention from a tenth to ten times an equal share.
      'rank': the part of the slide's tiles that score less, equal ones
      counted half.
  """
  top, name = scores.predicted, scores.classes[scores.predicted]
  for_class = f' for {name}' if scores.attention.shape[-1] > 1 else ''
  shown = []
  for c in sorted(range(len(scores.classes)), key=lambda c: c != top):
    title = f'tile probability of {scores.classes[c]}'
    shown.append(Layer(f'probability-{c}', title, scores.probability(c)))
  title = f'attention{for_class}, multiples of the mean'
  multiples = scores.multiples(top)
  shown.append(Layer('attention', title, multiples, *_SHARES, log=True))
  if len(scores.folds) > 1:
    title = f'probability of {name}: s.d. over {len(scores.folds)} folds'
    spread = scores.disagreement(top)
    shown.append(Layer('disagreement', title, spread, high=0.5))
  if scale == 'rank':
    shown = [_ranked(layer) for layer in shown]
  return {layer.key: layer for layer in shown}


def _ranked(layer: Layer) -> Layer:
  has = ~np.isnan(layer.values)
  ranks = np.full(layer.values.shape, np.nan)
  order = scipy.stats.rankdata(layer.values[has])
  ranks[has] = (order - 0.5) / max(has.sum(), 1)
  title = layer.title.removesuffix(', multiples of the mean')
  return Layer(layer.key, f'rank of {title}', ranks)


def colour_map(name: str) -> np.ndarray:
  """Returns 256 colours, uint8 [256, 4]; low ones of YlGn are transparent.

  Args:
    name: one of `COLOURS`.
  """
  ramp = np.linspace(0, 1, 256)
  if name == 'YlGn':  # Its lightest are nearly white.
    colours = matplotlib.colormaps[name](0.3 + 0.7 * ramp)
    colours[:, 3] = 0.1 + 0.9 * ramp
  else:
    colours = matplotlib.colormaps[name](ramp)
  return np.rint(255 * colours).astype(np.uint8)


def boxes(scores: TileScores) -> np.ndarray:
  """Returns (left, top, right, bottom) of tiles, level-0 pixels, [N, 4].

  A tile ends where its neighbour starts, if that is within a pixel of its own
  side: coordinates are rounded, and where the side is not a whole number, tiles
  that touch would overlap or leave slits between them.
  """
  ends = []
  for starts in scores.coords.T:
    places, wanted = np.unique(starts), starts + scores.side
    right = np.searchsorted(places, wanted).clip(0, len(places) - 1)
    left = (right - 1).clip(0)
    closer = np.abs(places[left] - wanted) < np.abs(places[right] - wanted)
    near = np.where(closer, places[left], places[right])
    touches = (np.abs(near - wanted) <= 1) & (near > starts)
    ends.append(np.where(touches, near, np.rint(wanted)))
  return np.column_stack([scores.coords, *ends])


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


def draw(
  path: pathlib.Path,
  scores: TileScores,
  *,
  scale: str = 'absolute',
  colours: str = 'YlGn',
  label: str | None = None,
  outlines: Sequence[np.ndarray] = (),
) -> figure.Figure:
  """Returns a figure of a slide and its maps.

  The thumbnail; the tiles' probability of the predicted class; the attention;
  and, where several folds saw the slide, their disagreement. Tiles that no fold
  keeps, or for disagreement only one, are crossed out.

  Args:
    path: the slide.
    scores: of its tiles.
    scale: see `layers`.
    colours: one of `COLOURS`.
    label: the true class, if known.
    outlines: rings to draw, level-0 pixels, each [K, 2].

  Raises:
    data.slides.SlideError: if the slide cannot be read.
    tile_scores.MapError: if the scores are of a slide of another size.
  """
  with slides.Slide(path, 1.0) as slide:  # Only proportions count.
    width, height = slide.width, slide.height
    scores.check_slide(path, width, height)
    step = max(max(width, height) / _PICTURE, 1)
    picture = slide.thumbnail(slide.mpp * step)
  whole = layers(scores, scale)
  keys = f'probability-{scores.predicted}', 'attention', 'disagreement'
  shown = [None, *(whole[key] for key in keys if key in whole)]
  aspect = picture.shape[0] / picture.shape[1]
  size = len(shown) * 4.9, 4.4 * aspect + 1.0
  drawing = figure.Figure(size, layout='constrained')
  # Grey and pale below maps: colours then mean what the scale says.
  pale = np.repeat(128 + picture.mean(2, keepdims=True) / 2, 3, 2)
  ramp = colour_map(colours)
  ramp[:, 3] = np.rint(_OPACITY * ramp[:, 3])
  for ax, layer in zip(drawing.subplots(1, len(shown)), shown, strict=True):
    extent = (0, width, height, 0)
    ax.imshow(pale.astype(np.uint8) if layer else picture, extent=extent)
    ax.set_axis_off()
    for outline in outlines:
      ax.add_patch(
        patches.Polygon(outline, fill=False, edgecolor='black', lw=1.2)
      )
    if not layer:
      ax.set_title(_title(scores, label), fontsize=10)
      continue
    ax.set_title(layer.title, fontsize=10)
    shape = picture.shape[:2]
    step = width / shape[1], height / shape[0]
    painted = paint(boxes(scores), layer.values, step, shape)
    ax.imshow(layer.coloured(painted, ramp), extent=extent)
    bar = drawing.colorbar(
      cm.ScalarMappable(layer.norm, colors.ListedColormap(ramp / 255)),
      ax=ax,
      shrink=0.7,
      extend='both' if layer.log else 'neither',
    )
    if layer.log:
      bar.ax.yaxis.set_major_formatter('{x:g}')
      bar.ax.minorticks_off()
    centres = scores.coords[np.isnan(layer.values)] + scores.side / 2
    if len(centres):
      of_several = layer.key == 'disagreement'
      name = 'kept by fewer than two folds' if of_several else 'dropped'
      ax.plot(*centres.T, 'x', color='white', ms=7, mew=2.5)
      ax.plot(*centres.T, 'kx', ms=6, mew=1, label=name)
      ax.legend(loc='lower right', fontsize=8)
  return drawing


def _title(scores: TileScores, label: str | None) -> str:
  c = scores.predicted
  text = f'predicted {scores.classes[c]} ({scores.prob[:, c].mean():.2f}'
  if len(scores.folds) > 1:
    text += f' ± {scores.spread[c]:.2f}, {len(scores.folds)} folds'
  return f'{scores.slide}\n' + (f'{label}, ' if label else '') + text + ')'
