"""Draws the scores of a slide's tiles over its thumbnail."""

from collections.abc import Sequence
import pathlib

from matplotlib import axes, cm, colors, figure, patches
import numpy as np

from data import slides
from experiments.slide_maps import layers as score_layers, painting
from experiments.slide_maps.layers import Layer
from experiments.slide_maps.tile_scores import TileScores

_PICTURE = 700  # Pixels of a thumbnail's longer side.
_OPACITY = 0.75


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
    scale, colours: see `slide_maps.layers`.
    label: the true class, if known.
    outlines: rings to draw, level-0 pixels, each [K, 2].

  Raises:
    data.slides.SlideError: if the slide cannot be read.
  """
  with slides.Slide(path, 1.0) as slide:  # Only proportions count.
    longer = max(slide.width, slide.height)
    picture = slide.thumbnail(slide.mpp * max(longer / _PICTURE, 1))
    size = (slide.width, slide.height)
  shown = [
    layer
    for layer in score_layers.of(scores, scale)
    if layer.key in (f'probability-{scores.predicted}', 'attention')
    or layer.key == 'disagreement'
  ]
  aspect = picture.shape[0] / picture.shape[1]
  wide = (len(shown) + 1) * 4.9
  drawing = figure.Figure((wide, 4.4 * aspect + 1.0), layout='constrained')
  panels = drawing.subplots(1, len(shown) + 1)
  # Grey and pale below maps: colours then mean what the scale says.
  pale = np.repeat(128 + picture.mean(2, keepdims=True) / 2, 3, 2)
  pale = pale.astype(np.uint8)
  for ax, layer in zip(panels, [None, *shown], strict=True):
    image = pale if layer else picture
    ax.imshow(image, extent=(0, size[0], size[1], 0))
    ax.set_axis_off()
    for outline in outlines:
      ax.add_patch(
        patches.Polygon(outline, fill=False, edgecolor='black', lw=1.2)
      )
    if layer:
      ax.set_title(layer.title, fontsize=10)
      shape = picture.shape[:2]
      _draw_layer(drawing, ax, scores, layer, colours, size, shape)
  panels[0].set_title(_title(scores, label), fontsize=10)
  return drawing


def _title(scores: TileScores, label: str | None) -> str:
  c = scores.predicted
  said = f'predicted {scores.classes[c]} ({scores.prob[:, c].mean():.2f}'
  if len(scores.folds) > 1:
    said += f' ± {scores.spread[c]:.2f}, {len(scores.folds)} folds'
  return f'{scores.slide}\n' + (f'{label}, ' if label else '') + said + ')'


def _draw_layer(
  drawing: figure.Figure,
  ax: axes.Axes,
  scores: TileScores,
  layer: Layer,
  colours: str,
  size: tuple[int, int],
  shape: tuple[int, int],
) -> None:
  """Draws one map, its scale and crosses on tiles without a value."""
  ramp = score_layers.colour_map(colours)
  ramp[:, 3] = np.rint(_OPACITY * ramp[:, 3])
  painted = painting.paint(
    painting.boxes(scores.coords, scores.side),
    layer.values,
    (size[0] / shape[1], size[1] / shape[0]),
    shape,
  )
  ax.imshow(
    painting.coloured(painted, layer, ramp), extent=(0, size[0], size[1], 0)
  )
  bar = drawing.colorbar(
    cm.ScalarMappable(layer.norm, colors.ListedColormap(ramp / 255)),
    ax=ax,
    shrink=0.7,
    extend=layer.beyond,
  )
  if layer.log:
    bar.ax.yaxis.set_major_formatter('{x:g}')
    bar.ax.minorticks_off()
  bare = scores.coords[np.isnan(layer.values)] + scores.side / 2
  if len(bare):
    of_several = layer.key == 'disagreement'
    told = 'kept by fewer than two folds' if of_several else 'dropped'
    ax.plot(*bare.T, 'x', color='white', ms=7, mew=2.5)
    ax.plot(*bare.T, 'kx', ms=6, mew=1, label=told)
    ax.legend(loc='lower right', fontsize=8)
