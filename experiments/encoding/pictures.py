"""Pictures of what is taken as tissue and where the tiles lie."""

from concurrent import futures
import functools
import pathlib

import numpy as np
from PIL import Image, ImageDraw
import scipy

from data import features, outlines, slides, tiling, tissue
from data.files import replacing
from experiments.encoding.tiles import SlideTiles, few
from experiments.run import progress

_PICTURE = 1000  # Pixels of the longer side.
_SHOWN = 8  # Tiles at full size, below the slide.
_GAP = 8  # Pixels between them.
_TISSUE_COLOUR = (0, 140, 60)
_TILE_COLOUR = (30, 60, 220)
_SHOWN_COLOUR = (230, 90, 0)


def draw(cohort: SlideTiles, features_dir: pathlib.Path) -> None:
  """Writes `<features_dir>/grids/<slide_id>.png` where there is no newer one.

  Each shows the slide, the edge of its tissue in green, be it found or given by
  outlines, and the tiles, from the coordinates of the feature file, in blue:
  none of a slide that has no features.
  """
  for path in cohort.paths:
    file = features_dir / f'{slides.slide_id(path)}.h5'
    picture = features_dir / 'grids' / f'{file.stem}.png'
    written = lambda path: path.stat().st_mtime_ns if path.exists() else -1
    if file.exists() and written(picture) >= written(file):
      continue
    bag = features.read(file) if file.exists() else None
    try:
      with cohort.open(path) as slide:
        drawing = _draw(cohort, slide)
        if bag:
          side = bag.attributes['patch_size_level0']
          _frame(drawing, slide, bag.coords, side, _TILE_COLOUR)
    except slides.SlideError as error:
      if bag:  # Its coarse levels, which the tiles did without.
        print(f'warning: no picture of {error}')
      continue
    with replacing(picture) as part:
      drawing.save(part, format='png')


def preview(cohort: SlideTiles, features_dir: pathlib.Path) -> dict[str, str]:
  """Writes `<features_dir>/previews/<slide_id>.png`, and prints how many tiles.

  Each is a contact sheet: the slide, the edge of its tissue in green, all tiles
  that would be taken in blue and, in orange, those that are shown below at full
  size. Of a slide that would yield no tile it shows the tissue.

  Returns:
    By slide that would fail the reason.
  """
  folder, failures, total = features_dir / 'previews', {}, 0
  with futures.ThreadPoolExecutor(cohort.tiles.threads) as pool:
    sheets = pool.map(functools.partial(_sheet, cohort, folder), cohort.paths)
    count = len(cohort.paths)
    sheets = progress.bar(sheets, total=count, desc='slides', unit='slide')
    for path, tiles in zip(cohort.paths, sheets, strict=True):
      if isinstance(tiles, str):
        failures[slides.slide_id(path)] = tiles
      else:
        total += tiles
  print(f'{folder}: {total} tiles of {count - len(failures)} slides')
  return failures


def _sheet(
  cohort: SlideTiles, folder: pathlib.Path, path: pathlib.Path
) -> int | str:
  """Writes a contact sheet; returns how many tiles, or why there are none."""
  try:
    with cohort.open(path) as slide:
      sheet, result = _draw(cohort, slide), ''
      try:
        grid = cohort.grid(slide)
        shown = few(grid, _SHOWN)
        for part, colour in ((grid, _TILE_COLOUR), (shown, _SHOWN_COLOUR)):
          _frame(sheet, slide, part.coords, part.size_level0, colour)
        sheet = _with_tiles(sheet, next(cohort.read(slide, shown, _SHOWN)))
        result = len(grid.coords)
      except slides.SlideError as error:
        result = str(error)
    with replacing(folder / f'{slides.slide_id(path)}.png') as part:
      sheet.save(part, format='png')
    return result
  except slides.SlideError as error:
    return str(error)
  except Exception as error:  # Whatever it is, the other slides are shown.
    return f'{path.name}: {type(error).__name__}: {error}'


def _draw(cohort: SlideTiles, slide: slides.Slide) -> Image.Image:
  """Returns a slide with the edge of its tissue."""
  longer = max(slide.width, slide.height)
  image = slide.thumbnail(slide.mpp * max(longer / _PICTURE, 1)).copy()
  shape = image.shape[:2]
  if regions := cohort.regions.get(slide.slide_id):
    mask = outlines.rasterise(regions, shape, slide.width / shape[1])
  else:
    mask = tissue.tissue_mask(slide.thumbnail(tiling.MASK_MPP), tiling.MASK_MPP)
    mask = Image.fromarray(mask).resize(shape[::-1], Image.NEAREST)
    mask = np.asarray(mask)
  inner = scipy.ndimage.binary_erosion(mask, iterations=2)
  image[mask & ~inner] = _TISSUE_COLOUR
  return Image.fromarray(image)


def _frame(
  picture: Image.Image,
  slide: slides.Slide,
  coords: np.ndarray,
  side: float,
  colour: tuple[int, int, int],
) -> None:
  """Draws the edges of tiles on a picture of their slide."""
  pen, scale = ImageDraw.Draw(picture), picture.width / slide.width
  for corner in coords:
    box = np.concatenate([corner, corner + side]) * scale
    pen.rectangle([*box.round()], outline=colour)


def _with_tiles(picture: Image.Image, tiles: np.ndarray) -> Image.Image:
  """Returns a picture with tiles, in rows, below it."""
  step = tiles.shape[1] + _GAP
  width = max(_PICTURE, step)
  columns = width // step
  rows = -(-len(tiles) // columns)
  height = picture.height + _GAP + rows * step
  sheet = Image.new('RGB', (width, height), 'white')
  sheet.paste(picture)
  for i, tile in enumerate(tiles):
    y, x = divmod(i, columns)
    place = x * step, picture.height + _GAP + y * step
    sheet.paste(Image.fromarray(tile), place)
  return sheet
