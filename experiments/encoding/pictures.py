"""Pictures of what is taken as tissue and where the tiles lie."""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageOps
import scipy
import shapely

from data import features, outlines, slides, tiling
from data.files import counted, replacing
from experiments.encoding.tiles import SlideTiles, few

_PICTURE = 1000  # Pixels of the longer side.
_SHOWN = 8  # Tiles at full size, below the slide.
_GAP = 8  # Pixels between them; above them, where their numbers are, twice.
_TISSUE_COLOUR = (0, 140, 60)
_BLURRED, _TAKEN, _LARGE = (130, 130, 130), (30, 60, 220), (230, 90, 0)
_SHAPES = '{"type": "FeatureCollection", "features": [\n%s\n]}\n'
_SHAPE = (
  '{"type": "Feature", "properties": {"objectType": "%s"}, "geometry": %s}'
)


def draw(cohort: SlideTiles, features_dir: pathlib.Path) -> None:
  """Writes `<features_dir>/grids/<slide_id>.png` where there is no newer one.

  Each shows the tiles of the feature file in blue, see `_Picture`: none of a
  slide that has no features.
  """
  folder = features_dir / 'grids'
  for path in cohort.paths:
    file = features_dir / f'{slides.slide_id(path)}.h5'
    picture = folder / f'{file.stem}.png'
    written = lambda path: path.stat().st_mtime_ns if path.exists() else -1
    if file.exists() and written(picture) >= written(file):
      continue
    try:
      with cohort.open(path) as slide:
        drawn = _Picture(cohort, slide)
    except slides.SlideError as error:
      if file.exists():  # Its coarse levels, which the tiles did without.
        print(f'warning: no picture of {error}')
      continue
    if file.exists():
      bag = features.read(file)
      drawn.take(bag.coords, bag.attributes['patch_size_level0'])
    drawn.write(folder)


def preview(cohort: SlideTiles, features_dir: pathlib.Path) -> dict[str, str]:
  """Writes `<features_dir>/previews/<slide_id>.png`, and prints how many tiles.

  Each is a contact sheet, see `_Picture`, with all tiles that would be taken in
  blue and, in orange, those that are shown below at full size; in grey those
  that are left out for their blur, some of which are shown below the others. Of
  a slide that would yield no tile it shows the tissue.

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
    sheet = _Picture(cohort, slide)
    try:
      grid = cohort.grid(slide)
      blurred = dataclasses.replace(grid, coords=grid.blurred)
      shown = few(grid, _SHOWN)
      sheet.frame(blurred.coords, grid.size_level0, _BLURRED)
      sheet.take(grid.coords, grid.size_level0)
      sheet.frame(shown.coords, grid.size_level0, _LARGE)
      for part in (shown, few(blurred, _SHOWN)):
        if tiles := list(cohort.read(slide, part)):
          sheet.show(part, tiles)
    finally:  # Without tiles, too.
      sheet.write(folder)
  return len(grid.coords), len(grid.blurred)


class _Picture:
  """A slide in small, on which tiles are drawn by their level-0 pixels.

  It shows the edge of the tissue in green, the outlines of --regions_dir in
  black, and a scale bar.
  """

  def __init__(self, cohort: SlideTiles, slide: slides.Slide):
    self._path, size = slide.path, (slide.width, slide.height)
    image = slide.thumbnail(slide.mpp * max(max(size) / _PICTURE, 1)).copy()
    found = cohort.tissue(slide.slide_id).mask(slide)
    pixels = image.shape[1::-1]
    mask = np.asarray(Image.fromarray(found).resize(pixels, Image.NEAREST))
    inner = scipy.ndimage.binary_erosion(mask, iterations=2)
    image[mask & ~inner] = _TISSUE_COLOUR
    self._image, self._count = Image.fromarray(image), 0
    # Pixels per level-0 pixel across and down, which differ a little.
    self._scale = np.divide(pixels, size)
    pen = ImageDraw.Draw(self._image)
    for ring in cohort.regions.get(slide.slide_id, ()):
      corners = ring.corners * self._scale
      pen.line([*map(tuple, corners), tuple(corners[0])], 'black', 2)
    width = slide.width * slide.mpp
    length, text = slides.scale_bar(width, pixels[0])
    end = 6 + length / width * pixels[0]
    pen.rectangle([0, 0, end + 6, 24], 'white')
    pen.line([6, 6, end, 6], 'black', 2)
    pen.text((6, 8), text.replace('µ', 'u'), 'black')  # The font has no µ.
    self._tissue, self._tiles = outlines.of_mask(found, size), []

  def take(self, coords: np.ndarray, side: float) -> None:
    """Draws all tiles that are taken, in blue."""
    self._tiles = shapely.box(*coords.T, *(coords + side).T)
    self.frame(coords, side, _TAKEN)

  def frame(
    self, coords: np.ndarray, side: float, colour: tuple[int, int, int]
  ) -> None:
    """Draws the edges of tiles."""
    pen = ImageDraw.Draw(self._image)
    for corner in coords:
      ends = corner * self._scale, (corner + side) * self._scale
      pen.rectangle([*np.concatenate(ends).round()], outline=colour)

  def show(self, grid: tiling.Grid, tiles: Sequence[np.ndarray]) -> None:
    """Adds tiles of a grid in rows below, numbered there and on the slide."""
    size, below = grid.tile_size, self._image.height
    width = max(_PICTURE, size + _GAP)
    columns = width // (size + _GAP)
    rows = -(-len(tiles) // columns)
    added = width - self._image.width, _GAP + rows * (size + 2 * _GAP)
    self._image = ImageOps.expand(self._image, (0, 0, *added), 'white')
    for i, (corner, tile) in enumerate(zip(grid.coords, tiles, strict=True)):
      y, x = divmod(i, columns)
      left = x * (size + _GAP)
      top = below + 2 * _GAP + y * (size + 2 * _GAP)
      self._image.paste(Image.fromarray(tile), (left, top))
      self._count += 1
      self._number((corner + grid.size_level0 / 2) * self._scale)
      self._number((left + size / 2, top - _GAP))

  def _number(self, place: Sequence[float]) -> None:
    """Writes the number of a tile on white, with its middle at a place."""
    pen, text = ImageDraw.Draw(self._image), str(self._count)
    left, top, right, bottom = pen.textbbox(place, text, anchor='mm')
    pen.rectangle([left - 2, top - 1, right + 2, bottom + 1], 'white')
    pen.text(place, text, 'black', anchor='mm')

  def write(self, folder: pathlib.Path) -> None:
    """Writes <slide_id>.png, and tiles and tissue for QuPath beside it.

    The tissue, tissue/<slide_id>.geojson, is what `tiling.read_regions` takes.
    """
    slide_id, corner = slides.slide_id(self._path), slides.corner(self._path)
    for file, kind, shapes in (
      (folder / f'tissue/{slide_id}.geojson', 'annotation', self._tissue),
      (folder / f'{slide_id}.geojson', 'detection', self._tiles),
    ):
      moved = shapely.transform(shapes, lambda place: place - corner)
      lines = ',\n'.join(_SHAPE % (kind, s) for s in shapely.to_geojson(moved))
      with replacing(file) as part:
        part.write_text(_SHAPES % lines)
    with replacing(folder / f'{slide_id}.png') as part:
      self._image.save(part, format='png')
