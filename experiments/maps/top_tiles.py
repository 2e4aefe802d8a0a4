"""Cuts the tiles that score highest and lowest out of a slide."""

from collections.abc import Mapping
import pathlib
import re
import textwrap
from typing import Any

import numpy as np
from PIL import Image

from data import slides
from data.files import replacing
from experiments.maps.scale_bar import add_scale_bar, known_mpp
from experiments.maps.tile_scores import TileScores

RANKS = ('attention', 'probability')
_PIXELS = 256  # Side of a picture, unless the tile has fewer.
_BEYOND = (160, 160, 160)
_CAPTION = 30  # Letters in a line below a tile.
_UNITS = {'attention': 'x mean attention', 'probability': 'probability'}


def order(scores: TileScores, rank_by: str) -> np.ndarray:
  """Returns the tiles from highest to lowest, those that no fold keeps last.

  Args:
    scores: of a slide's tiles.
    rank_by: one of `RANKS`, for the predicted class. Equal tiles stay in the
      order of the file.
  """
  return np.argsort(-_values(scores, rank_by), kind='stable')


def write(
  folder: pathlib.Path,
  path: pathlib.Path,
  scores: TileScores,
  *,
  rank_by: str,
  count: int,
) -> list[pathlib.Path]:
  """Writes the highest and the lowest tiles of a slide, and a sheet of both.

  `<slide_id>_<rank>_<score>.png` of each tile, the highest of rank 1, and
  `<slide_id>_sheet.png`. Tiles that no fold keeps have no rank. Pictures of
  the same slide that an earlier call left are removed.

  Args:
    folder: of the pictures.
    path: the slide.
    scores: of its tiles.
    rank_by: see `order`.
    count: of tiles at either end; a slide of fewer than twice as many has each
      tile once.

  Raises:
    data.slides.SlideError: if the slide, or a tile of it, cannot be read.
  """
  name = scores.slide
  ranked = order(scores, rank_by)[: scores.shown.sum()]
  from matplotlib import figure  # Takes half a second.

  values = _values(scores, rank_by)[ranked]
  ranks = range(len(ranked))
  digits = len(str(len(ranked)))
  of_class = f'probability of {scores.classes[scores.predicted]}'
  what = of_class if rank_by == 'probability' else rank_by
  pictures, rows = {}, {}
  with slides.Slide(path, 1.0, scores.mpp) as slide:
    for end, part in ('highest', ranks[:count]), ('lowest', ranks[count:]):
      row = {r: read(slide, scores, ranked[r]) for r in part[-count:]}
      for r, image in row.items():
        pictures[f'{name}_{r + 1:0{digits}d}_{values[r]:.4f}.png'] = image
      if row:
        rows[f'{name}: tiles of {end} {what}'] = row
    sides = 2 * max(map(len, rows.values())) + 0.2, 3.3 * len(rows)
    sheet = figure.Figure(sides, layout='constrained')
    parts = sheet.subfigures(len(rows), squeeze=False)[:, 0]
    for part, (title, row) in zip(parts, rows.items(), strict=True):
      part.suptitle(textwrap.fill(title, 25 * len(row)), fontsize=10)
      draw_row(part, slide, scores, row, rank_by)
  # None of a slide whose name begins so.
  old = re.compile(re.escape(name) + r'_\d+_[\d.]+\.png')
  for stale in folder.glob('*.png'):
    if old.fullmatch(stale.name):
      stale.unlink()
  for file, image in pictures.items():
    with replacing(folder / file) as part:
      image.save(part, format='PNG')
  with replacing(folder / f'{name}_sheet.png') as part:
    sheet.savefig(part, dpi=100, format='png', bbox_inches='tight')
  return [folder / file for file in [*pictures, f'{name}_sheet.png']]


def draw_row(
  drawing: Any,  # matplotlib's SubFigure
  slide: slides.Slide,
  scores: TileScores,
  images: Mapping[int, Image.Image],
  rank_by: str = 'attention',
) -> None:
  """Draws tiles side by side, with what is known of each.

  Args:
    drawing: to fill.
    slide: open; a tile has no scale bar if the slide has no known scale.
    scores: of the slide's tiles.
    images: pictures of tiles, by rank from 0; see `read`.
    rank_by: see `order`.
  """
  tiles, values = order(scores, rank_by), _values(scores, rank_by)
  probs = np.transpose([*map(scores.probability, range(len(scores.classes)))])
  axes = drawing.subplots(1, len(images), squeeze=False)[0]
  for ax, (rank, image) in zip(axes, images.items(), strict=True):
    i = tiles[rank]
    score = f'{values[i]:.3g} {_UNITS[rank_by]}'
    likeliest = f'{scores.classes[probs[i].argmax()]}: {probs[i].max():.2f}'
    likeliest = textwrap.fill(likeliest, _CAPTION)
    place = 'x {}, y {} px'.format(*scores.coords[i])
    ax.imshow(image, extent=(0, scores.side, scores.side, 0))
    ax.set(xticks=[], yticks=[])
    ax.set_title(rank + 1, fontsize=10, fontweight='bold')
    ax.set_xlabel(f'{score}\n{likeliest}\n{place}', fontsize=8)
    add_scale_bar(ax, known_mpp(slide))


def _values(scores: TileScores, rank_by: str) -> np.ndarray:
  c = scores.predicted
  by = {'attention': scores.multiples, 'probability': scores.probability}
  return np.nan_to_num(by[rank_by](c), nan=-np.inf)


def read(slide: slides.Slide, scores: TileScores, i: int) -> Image.Image:
  """Reads a tile at the level that is just fine enough for the picture.

  Some tools place tiles across the edge of the slide: what lies beyond it is
  grey.
  """
  pixels = max(1, min(_PIXELS, round(scores.side)))
  level = slide.level_for(scores.side / pixels)
  factor = slide.level_downsamples[level]
  size = max(1, round(scores.side / factor))
  first = np.maximum(scores.coords[i], 0)
  apart = np.rint((first - scores.coords[i]) / factor).astype(int)
  rest = (np.subtract((slide.width, slide.height), first) / factor).astype(int)
  sides = np.minimum(size - apart, rest).tolist()
  tile = Image.new('RGB', (size, size), _BEYOND)
  if min(sides) > 0:
    pixels_there = slide.read(*first.tolist(), level, *sides)
    tile.paste(Image.fromarray(pixels_there), tuple(apart.tolist()))
  return tile.resize((pixels, pixels), Image.Resampling.BOX)
