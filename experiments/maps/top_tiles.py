"""Cuts the tiles that score highest and lowest out of a slide."""

import pathlib
import re

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data import slides
from data.files import replacing
from experiments.maps.tile_scores import TileScores

RANKS = ('attention', 'probability')
_PIXELS = 256  # Side of a picture, unless the tile has fewer.
_GAP = 8
_BEYOND = (160, 160, 160)
_FONT = 13


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
  values = _values(scores, rank_by)[ranked]
  ranks = range(len(ranked))
  digits = len(str(len(ranked)))
  pictures, rows = {}, {}
  with slides.Slide(path, 1.0) as slide:  # Only proportions count.
    for end, part in ('highest', ranks[:count]), ('lowest', ranks[count:]):
      row = {r: _read(slide, scores, ranked[r]) for r in part[-count:]}
      for r, image in row.items():
        pictures[f'{name}_{r + 1:0{digits}d}_{values[r]:.4f}.png'] = image
      if row:
        rows[f'{name}: {end} {rank_by}'] = [
          (f'{r + 1}: {values[r]:.3g}', image) for r, image in row.items()
        ]
  pictures[f'{name}_sheet.png'] = _sheet(rows)
  # None of a slide whose name begins so.
  old = re.compile(re.escape(name) + r'_\d+_[\d.]+\.png')
  for stale in folder.glob('*.png'):
    if old.fullmatch(stale.name):
      stale.unlink()
  for file, image in pictures.items():
    with replacing(folder / file) as part:
      image.save(part, format='PNG')
  return [folder / file for file in pictures]


def _values(scores: TileScores, rank_by: str) -> np.ndarray:
  c = scores.predicted
  by = {'attention': scores.multiples, 'probability': scores.probability}
  return np.nan_to_num(by[rank_by](c), nan=-np.inf)


def _read(slide: slides.Slide, scores: TileScores, i: int) -> Image.Image:
  """Reads a tile at the level that is just fine enough for the picture.

  Some tools place tiles across the edge of the slide: what lies beyond it is
  grey.
  """
  pixels = max(1, min(_PIXELS, round(scores.side)))
  level = slide.level_for(scores.side / pixels)
  factor = slide.level_downsamples[level]
  size = max(1, round(scores.side / factor))
  x, y = scores.coords[i].tolist()
  width = min(size, int((slide.width - x) / factor))
  height = min(size, int((slide.height - y) / factor))
  tile = Image.new('RGB', (size, size), _BEYOND)
  if min(x, y) >= 0 and min(width, height) > 0:
    tile.paste(Image.fromarray(slide.read(x, y, level, width, height)))
  return tile.resize((pixels, pixels), Image.Resampling.BOX)


def _sheet(rows: dict[str, list[tuple[str, Image.Image]]]) -> Image.Image:
  """Puts tiles in rows with a title, and a caption below each."""
  font = ImageFont.load_default(_FONT)
  side = max(image.width for row in rows.values() for _, image in row)
  line, step = _FONT + 2 * _GAP, side + _GAP
  width = _GAP + step * max(len(row) for row in rows.values())
  longest = max(font.getlength(title) for title in rows)
  size = (round(max(width, longest + 2 * _GAP)), len(rows) * (step + 2 * line))
  sheet = Image.new('RGB', size, 'white')
  pen = ImageDraw.Draw(sheet)
  for number, (title, row) in enumerate(rows.items()):
    y = number * (step + 2 * line)
    pen.text((_GAP, y + _GAP), title, 'black', font)
    for place, (caption, image) in enumerate(row):
      x = _GAP + place * step
      sheet.paste(image, (x, y + line))
      pen.text((x, y + line + side + _GAP / 2), caption, 'black', font)
  return sheet
