"""Cuts the tiles that score highest and lowest out of a slide."""

import pathlib
import re

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data import slides
from data.files import replacing
from experiments.slide_maps.tile_scores import TileScores

_PIXELS = 256  # Side of a picture, unless the tile has fewer.
_GAP = 8
_BEYOND = (160, 160, 160)
_FONT = 13


def order(scores: TileScores, score: str) -> np.ndarray:
  """Returns the tiles from highest to lowest, those that no fold keeps last.

  Args:
    scores: of a slide's tiles.
    score: 'attention' or 'probability', for the predicted class. Equal tiles
      stay in the order of the file.
  """
  return np.argsort(-_values(scores, score), kind='stable')


def write(
  folder: pathlib.Path,
  path: pathlib.Path,
  scores: TileScores,
  *,
  score: str,
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
    score: see `order`.
    count: of tiles at either end; a slide of fewer than twice as many has each
      tile once.

  Raises:
    data.slides.SlideError: if the slide, or a tile of it, cannot be read.
  """
  ranked = order(scores, score)[: scores.shown.sum()]
  values = _values(scores, score)
  ranks = np.arange(len(ranked))
  top, bottom = ranks[:count], ranks[count:][-count:]
  digits = len(str(len(ranked)))
  cut, made = {}, []
  with slides.Slide(path, 1.0) as slide:  # Only proportions count.
    for rank in (*top, *bottom):
      cut[rank] = _read(slide, scores, ranked[rank])
  for old in _pictures(folder, scores.slide):
    old.unlink()
  for rank, image in cut.items():
    value = values[ranked[rank]]
    name = f'{scores.slide}_{rank + 1:0{digits}d}_{value:.4f}.png'
    made.append(folder / name)
    _save(made[-1], image)
  made.append(folder / f'{scores.slide}_sheet.png')
  rows = {}
  for title, part in (('highest', top), ('lowest', bottom)):
    captions = [f'{r + 1}: {values[ranked[r]]:.3g}' for r in part]
    rows[f'{scores.slide}: {title} {score}'] = [
      (caption, cut[r]) for caption, r in zip(captions, part, strict=True)
    ]
  _save(made[-1], _sheet({t: row for t, row in rows.items() if row}))
  return made


def _pictures(folder: pathlib.Path, slide: str) -> list[pathlib.Path]:
  """Returns the tiles of one slide, none of a slide whose name begins so."""
  name = re.compile(re.escape(slide) + r'_\d+_[\d.]+\.png')
  return [path for path in folder.glob('*.png') if name.fullmatch(path.name)]


def _values(scores: TileScores, score: str) -> np.ndarray:
  c = scores.predicted
  by = {'attention': scores.multiples, 'probability': scores.probability}
  return np.nan_to_num(by[score](c), nan=-np.inf)


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


def _save(path: pathlib.Path, image: Image.Image) -> None:
  with replacing(path) as part:
    image.save(part, format='PNG')
