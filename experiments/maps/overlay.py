"""Maps over slides: what they show, their scales, colours and pictures."""

import dataclasses
import pathlib
import textwrap

import matplotlib
from matplotlib import axes, cm, colors, figure, lines, patches
import numpy as np
import scipy

from data import outlines, slides
from data.labelled_tiles import TileError
from experiments.maps import top_tiles
from experiments.maps.scale_bar import add_scale_bar, known_mpp
from experiments.maps.tile_scores import MapError, TileScores

_SHARES = (0.1, 10)  # Multiples of the mean attention that the scale spans.
_PICTURE = 700  # Pixels of a thumbnail's longer side.
_OPACITY = 0.75
_KEYS = 5  # Tiles of highest attention that are shown, at most.
_PANEL, _KEY_ROW, _NUMBER_HEIGHT = 4.9, 3.3, 0.17  # Inches.
_KEY = {'fill': False, 'edgecolor': 'blue', 'lw': 1.5}
_NUMBER = {
  'textcoords': 'axes fraction',
  'va': 'center',
  'fontweight': 'bold',
  'arrowprops': {'arrowstyle': '->', 'color': 'blue', 'lw': 0.7},
}
_KNOWN = {'fill': False, 'edgecolor': 'black', 'lw': 1.5}
_TISSUE = {'colors': 'green', 'linewidths': 1}
_FAINT = 0.15
_ONE = colors.Normalize(1, 2)  # Draws 1 in black.


@dataclasses.dataclass(frozen=True)
class Layer:
  """One score of every tile of a slide.

  Attributes:
    key: a short name, of letters, digits and hyphens.
    title: what it is.
    values: [N], NaN on tiles without one.
    low, high: ends of the scale.
    log: whether the scale is logarithmic.
    scale: what the scale is of, and whether it is the same for every slide.
  """

  key: str
  title: str
  values: np.ndarray
  low: float = 0
  high: float = 1
  log: bool = False
  scale: str = 'same scale for every slide'

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

  The attention for the predicted class; of every class the tiles' probability,
  the predicted one's first; and, where several folds saw the slide, the
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
  title = f'attention{for_class}, multiples of the mean'
  multiples = scores.multiples(top)
  shown = [Layer('attention', title, multiples, *_SHARES, log=True)]
  for c in sorted(range(len(scores.classes)), key=lambda c: c != top):
    title = f'tile probability of {scores.classes[c]}'
    shown.append(Layer(f'probability-{c}', title, scores.probability(c)))
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
  scale = 'of this slide alone: 0.9 is above 90 % of its tiles'
  return Layer(layer.key, f'rank of {title}', ranks, scale=scale)


def colour_map(name: str) -> np.ndarray:
  """Returns 256 colours, uint8 [256, 4]; low ones of YlGn are transparent.

  Args:
    name: one of `tile_scores.COLOURS`.
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


def known_outlines(
  path: pathlib.Path, slide: str, folder: pathlib.Path | None = None
) -> list[np.ndarray]:
  """Returns what is known to be outlined, rings in level-0 pixels, [K, 2] each.

  Args:
    path: the slide.
    slide: its id.
    folder: of <slide_id>.json, .geojson or .xml; by default `outlines` beside
      the folder of the slide.

  Raises:
    tile_scores.MapError: if a file cannot be read.
  """
  folder = folder or path.absolute().parent.parent / 'outlines'
  files = (folder / f'{slide}{end}' for end in outlines.EXTENSIONS)
  try:
    read = lambda file: outlines.read(file, slides.corner(path))
    rings = [r for file in files if file.exists() for r in read(file)]
  except TileError as e:
    raise MapError(str(e)) from e
  return [ring.corners for ring in rings if not ring.hole]


def draw(
  path: pathlib.Path,
  scores: TileScores,
  *,
  scale: str = 'absolute',
  colours: str = 'YlGn',
  label: str | None = None,
  note: str | None = None,
  outlines_dir: pathlib.Path | None = None,
) -> figure.Figure:
  """Returns a figure of a slide, its maps and its key tiles.

  The thumbnail; the tiles' probability of the predicted class; the attention on
  the given scale and by rank; and, where several folds saw the slide, their
  disagreement. Below them the tiles of highest attention, framed and numbered
  in the maps. Tiles without a value are grey.

  Args:
    path: the slide.
    scores: of its tiles.
    scale: see `layers`.
    colours: one of `tile_scores.COLOURS`.
    label: the true class, if known.
    note: for the title: what makes the slide none of the test part, if so.
    outlines_dir: of known ones, see `known_outlines`.

  Raises:
    data.slides.SlideError: if the slide cannot be read.
    tile_scores.MapError: if the scores are of a slide of another size, or its
      outlines cannot be read.
  """
  rings = known_outlines(path, scores.slide, outlines_dir)
  order = top_tiles.order(scores, 'attention')[: scores.shown.sum()]
  # Those above the low end of the scale; one at least.
  weighty = (scores.multiples(scores.predicted) > _SHARES[0]).sum()
  keys = order[: max(min(weighty, _KEYS), 1)]
  with slides.Slide(path, 1.0, scores.mpp) as slide:
    width, height = slide.width, slide.height
    scores.check_slide(path, width, height)
    step = max(max(width, height) / _PICTURE, 1)
    picture = slide.thumbnail(slide.mpp * step)
    images = [top_tiles.read(slide, scores, i) for i in keys]
  whole, ranked = layers(scores, scale), layers(scores, 'rank')
  names = f'probability-{scores.predicted}', 'attention', 'disagreement'
  shown = [None, *(whole[name] for name in names if name in whole)]
  if scale != 'rank':
    shown.insert(3, ranked['attention'])
  columns = -(-len(shown) // 2)
  tall = 2 * min(0.95 * _PANEL * height / width, _PANEL) + 3.3
  sides = _PANEL * columns, tall + _KEY_ROW + 0.5
  drawing = figure.Figure(sides, layout='constrained')
  drawing.get_layout_engine().set(h_pad=0.12)  # Of titles from titles, inches.
  is_wrong = label not in (None, scores.classes[scores.predicted])
  title = textwrap.fill(_title(scores, label), 45 * columns)
  title += f'\n{note}' if note else ''
  drawing.suptitle(title, color='firebrick' if is_wrong else 'black')
  maps, below = drawing.subfigures(2, height_ratios=(tall, _KEY_ROW))
  title = f'Tiles of highest attention: {len(keys)} of {len(order)}, in order'
  if len(keys) < min(_KEYS, len(order)):
    title += f'. All others have less than {_SHARES[0]:g} of the mean'
  below.suptitle(title, fontsize=10)
  top_tiles.draw_row(below, slide, scores, dict(enumerate(images)))
  # Grey and pale below maps: colours then mean what the scale says.
  pale = np.repeat(128 + picture.mean(2, keepdims=True) / 2, 3, 2)
  ramp = colour_map(colours)
  ramp[:, 3] = np.rint(_OPACITY * ramp[:, 3])
  tiles, extent = boxes(scores), (0, width, height, 0)
  shape = picture.shape[:2]
  step = width / shape[1], height / shape[0]
  to_pixels = lambda values: paint(tiles, values, step, shape)
  panels = maps.subplots(2, columns, squeeze=False).ravel()
  for ax in panels:
    ax.set_axis_off()
    ax.set_anchor('S')  # As bars below an image do.
  for ax, layer in zip(panels, shown, strict=False):
    ax.imshow(pale.astype(np.uint8) if layer else picture, extent=extent)
    for ring in rings:
      ax.add_patch(patches.Polygon(ring, **_KNOWN))
    for x, y in scores.coords[keys]:
      ax.add_patch(patches.Rectangle((x, y), *2 * [scores.side], **_KEY))
    if not layer:
      ax.set_title('slide', fontsize=10)
      # Beyond the edges there is none, so that all contours close.
      covered = np.pad(~np.isnan(to_pixels(np.ones(len(scores)))), 1)
      y, x = (np.arange(n) - 0.5 for n in covered.shape)
      ax.contour(x * step[0], y * step[1], covered, [0.5], **_TISSUE)
      _number(ax, scores.coords[keys] + scores.side / 2)
      add_scale_bar(ax, known_mpp(slide))
      continue
    ax.set_title(textwrap.fill(layer.title, 55), fontsize=10)
    painted = to_pixels(layer.values)
    ax.imshow(layer.coloured(painted, ramp), extent=extent)
    shades = cm.ScalarMappable(layer.norm, colors.ListedColormap(ramp / 255))
    form = {'extend': 'both' if layer.log else 'neither', 'shrink': 0.7}
    bar = maps.colorbar(shades, ax=ax, location='bottom', **form)
    bar.set_label(layer.scale)
    if layer.log:
      bar.ax.xaxis.set_major_formatter('{x:g}')
      bar.ax.minorticks_off()
    missing = np.where(np.isnan(layer.values), 1.0, np.nan)
    ax.imshow(to_pixels(missing), 'gray', _ONE, extent=extent, alpha=_FAINT)
  marks = [
    lines.Line2D([], [], color='green', label='tissue, as tiles cover it'),
    patches.Patch(label='tiles of highest attention', **_KEY),
  ]
  if rings:
    marks.append(patches.Patch(label='known outlines', **_KNOWN))
  if not scores.kept.all():
    name = 'no value: dropped by the model'
    marks.append(patches.Patch(color='black', alpha=_FAINT, label=name))
  maps.legend(handles=marks, loc='outside lower center', ncols=4, fontsize=9)
  return drawing


def _number(ax: axes.Axes, centres: np.ndarray) -> None:
  """Numbers places from 1, in the right margin so that none hides another."""
  ends = np.array([ax.get_xlim()[1], ax.get_ylim()[0]])
  gap = max(0.12, _NUMBER_HEIGHT / (_PANEL * ends[1] / ends[0]))
  gaps = gap * np.arange(len(centres))
  from_corner = abs(centres / ends - (0, 1))
  places = -np.sort(-from_corner[:, 1])
  places = np.minimum.accumulate(places + gaps) - gaps
  places += max(0, 0.03 - places[-1])
  # Of shortest lines in all, no two cross.
  marks = np.stack([np.full(len(places), 1.02), places], 1)
  length = scipy.spatial.distance.cdist(from_corner, marks)
  for i, k in zip(*scipy.optimize.linear_sum_assignment(length), strict=True):
    ax.annotate(str(i + 1), centres[i], marks[k], **_NUMBER)


def _title(scores: TileScores, label: str | None) -> str:
  c = scores.predicted
  name, prob = scores.classes[c], f'probability {scores.prob[:, c].mean():.2f}'
  if len(scores.folds) > 1:
    prob += f' ± {scores.spread[c]:.2f} over {len(scores.folds)} folds'
  text = (
    f'{scores.slide} | truth {label or "unknown"} | predicted {name}, {prob}'
  )
  return text + (f' | {"right" if label == name else "WRONG"}' if label else '')
