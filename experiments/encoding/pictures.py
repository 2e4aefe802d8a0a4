"""Pictures of what is taken as tissue and where the tiles lie."""

import dataclasses
import functools
import pathlib

import numpy as np
from PIL import Image, ImageDraw
import scipy
import shapely

from data import features, outlines, slides
from data.files import counted, replacing
from experiments.encoding.tiles import SlideTiles, few

_PICTURE = 1000  # Pixels of the longer side.
_SHOWN = 8  # Tiles at full size, below the slide.
_GAP = 8  # Pixels between them; above them, where their numbers are, twice.
_TISSUE_COLOUR = (0, 140, 60)
_TILE_COLOUR = (30, 60, 220)
_COLOURS = (130, 130, 130), _TILE_COLOUR, (230, 90, 0)  # Blurred, all, shown.
_NO_TILES = np.empty((0, 2))
_SHAPES = '{"type": "FeatureCollection", "features": [\n%s\n]}\n'
_SHAPE = (
  '{"type": "Feature", "properties": {"objectType": "%s"}, "geometry": %s}'
)


def draw(cohort: SlideTiles, features_dir: pathlib.Path) -> None:
  """Writes `<features_dir>/grids/<slide_id>.png` where there is no newer one.

  Each shows the slide, the edge of its tissue in green, the outlines of
  --regions_dir in black, and the tiles, from the coordinates of the feature
  file, in blue: none of a slide that has no features. See `_write` for what
  lies beside it.
  """
  folder = features_dir / 'grids'
  for path in cohort.paths:
    file = features_dir / f'{slides.slide_id(path)}.h5'
    picture = folder / f'{file.stem}.png'
    written = lambda path: path.stat().st_mtime_ns if path.exists() else -1
    if file.exists() and written(picture) >= written(file):
      continue
    coords, side = _NO_TILES, 0
    if file.exists():
      bag = features.read(file)
      coords, side = bag.coords, bag.attributes['patch_size_level0']
    try:
      with cohort.open(path) as slide:
        drawing, tissue = _draw(cohort, slide)
        _frame(drawing, slide, coords, side, _TILE_COLOUR)
    except slides.SlideError as error:
      if side:  # Its coarse levels, which the tiles did without.
        print(f'warning: no picture of {error}')
      continue
    _write(folder, path, drawing, tissue, coords, side)


def preview(cohort: SlideTiles, features_dir: pathlib.Path) -> dict[str, str]:
  """Writes `<features_dir>/previews/<slide_id>.png`, and prints how many tiles.

  Each is a contact sheet: the slide, the edge of its tissue in green, the
  outlines of --regions_dir in black, all tiles that would be taken in blue and,
  in orange, those that are shown below at full size; in grey those that are
  left out for their blur, some of which are shown below the others. What is
  shown is numbered in both places. Of a slide that would yield no tile it shows
  the tissue.

  Returns:
    By slide that would fail the reason.
  """
  folder = features_dir / 'previews'
  counts, failures = cohort.each(functools.partial(_sheet, cohort, folder))
  taken, blurred = np.sum([(0, 0), *counts.values()], 0)
  print(
    f'{folder}: {counted(taken, "tile")} of {counted(len(counts), "slide")};'
    f' {cohort.summary}' + f'; blurred and left out: {blurred}' * bool(blurred)
  )
  return {slides.slide_id(path): failures[path] for path in failures}


def _sheet(
  cohort: SlideTiles, folder: pathlib.Path, path: pathlib.Path
) -> tuple[int, int]:
  """Writes a contact sheet; returns how many tiles are taken, and blurred."""
  with cohort.open(path) as slide:
    sheet, tissue = _draw(cohort, slide)
    coords, side = _NO_TILES, 0
    try:
      grid = cohort.grid(slide)
      coords, side = grid.coords, grid.size_level0
      blurred = dataclasses.replace(grid, coords=grid.blurred)
      shown = few(grid, _SHOWN)
      for part, colour in zip((blurred, grid, shown), _COLOURS, strict=True):
        _frame(sheet, slide, part.coords, side, colour)
      first, scale = 1, _scale(sheet, slide)
      for part in (shown, few(blurred, _SHOWN)):
        for number, corner in enumerate(part.coords, first):
          middle = (corner + part.size_level0 / 2) * scale
          _number(sheet, tuple(middle), number)
        for tiles in cohort.read(slide, part, _SHOWN):
          sheet = _with_tiles(sheet, tiles, first)
        first += len(part.coords)
    finally:  # Without tiles, too.
      _write(folder, path, sheet, tissue, coords, side)
  return len(coords), len(grid.blurred)


def _draw(
  cohort: SlideTiles, slide: slides.Slide
) -> tuple[Image.Image, list[shapely.Polygon]]:
  """Returns a slide with the edge of its tissue, and the outlines of that."""
  longer = max(slide.width, slide.height)
  image = slide.thumbnail(slide.mpp * max(longer / _PICTURE, 1)).copy()
  found = cohort.tissue(slide.slide_id).mask(slide)
  size = image.shape[1::-1]
  mask = np.asarray(Image.fromarray(found).resize(size, Image.NEAREST))
  inner = scipy.ndimage.binary_erosion(mask, iterations=2)
  image[mask & ~inner] = _TISSUE_COLOUR
  picture = Image.fromarray(image)
  width = slide.width * slide.mpp
  length, text = slides.scale_bar(width, picture.width)
  pen, end = ImageDraw.Draw(picture), 6 + length / width * picture.width
  for ring in cohort.regions.get(slide.slide_id, ()):
    corners = ring.corners * _scale(picture, slide)
    pen.line([*map(tuple, corners), tuple(corners[0])], 'black', 2)
  pen.rectangle([0, 0, end + 6, 24], 'white')
  pen.line([6, 6, end, 6], 'black', 2)
  pen.text((6, 8), text.replace('µ', 'u'), 'black')  # The font has no µ.
  return picture, outlines.of_mask(found, (slide.width, slide.height))


def _write(
  folder: pathlib.Path,
  path: pathlib.Path,
  picture: Image.Image,
  tissue: list[shapely.Polygon],
  coords: np.ndarray,
  side: float,
) -> None:
  """Writes <slide_id>.png of a slide, and its tiles and tissue for QuPath.

  The tissue, tissue/<slide_id>.geojson, is what `tiling.read_regions` takes.
  """
  slide_id, corner = slides.slide_id(path), slides.corner(path)
  tiles = shapely.box(*np.transpose(coords), *np.transpose(coords + side))
  for file, kind, shapes in (
    (folder / f'tissue/{slide_id}.geojson', 'annotation', tissue),
    (folder / f'{slide_id}.geojson', 'detection', tiles),
  ):
    texts = shapely.to_geojson(shapely.transform(shapes, lambda p: p - corner))
    lines = ',\n'.join(_SHAPE % (kind, text) for text in texts)
    with replacing(file) as part:
      part.write_text(_SHAPES % lines)
  with replacing(folder / f'{slide_id}.png') as part:
    picture.save(part, format='png')


def _frame(
  picture: Image.Image,
  slide: slides.Slide,
  coords: np.ndarray,
  side: float,
  colour: tuple[int, int, int],
) -> None:
  """Draws the edges of tiles on a picture of their slide."""
  pen, scale = ImageDraw.Draw(picture), _scale(picture, slide)
  for corner in coords:
    box = np.concatenate([corner * scale, (corner + side) * scale])
    pen.rectangle([*box.round()], outline=colour)


def _scale(picture: Image.Image, slide: slides.Slide) -> np.ndarray:
  """Returns pixels per level-0 pixel across and down, which differ a little."""
  return np.divide(picture.size, (slide.width, slide.height))


def _number(
  picture: Image.Image, place: tuple[float, float], number: int
) -> None:
  """Writes a number on white, with its middle at a place."""
  pen, text = ImageDraw.Draw(picture), str(number)
  left, top, right, bottom = pen.textbbox(place, text, anchor='mm')
  pen.rectangle([left - 2, top - 1, right + 2, bottom + 1], 'white')
  pen.text(place, text, 'black', anchor='mm')


def _with_tiles(
  picture: Image.Image, tiles: np.ndarray, first: int
) -> Image.Image:
  """Returns a picture with tiles, in rows and numbered, below it."""
  size = tiles.shape[1]
  width = max(_PICTURE, size + _GAP)
  columns = width // (size + _GAP)
  rows = -(-len(tiles) // columns)
  height = picture.height + _GAP + rows * (size + 2 * _GAP)
  sheet = Image.new('RGB', (width, height), 'white')
  sheet.paste(picture)
  for i, tile in enumerate(tiles):
    y, x = divmod(i, columns)
    left = x * (size + _GAP)
    top = picture.height + 2 * _GAP + y * (size + 2 * _GAP)
    sheet.paste(Image.fromarray(tile), (left, top))
    _number(sheet, (left + size / 2, top - _GAP), first + i)
  return sheet
