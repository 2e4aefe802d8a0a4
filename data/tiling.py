"""Places tiles of one physical size on the tissue of a slide."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import pathlib
import warnings

import numpy as np
from PIL import Image
import scipy

from data import files, outlines
from data.ahead import ahead
from data.labelled_tiles import TileError
from data.slides import Slide, SlideError, corner
from data.tissue import RULE, Rule, tissue_mask

NATIVE = 0.01  # A level this close to the wanted scale is read as it is.
MAX_UPSAMPLING = 2.0  # Beyond it a tile would be mostly interpolation.
MASK_MPP = 8.0  # um/px at which tissue is looked for.


@dataclasses.dataclass(frozen=True)
class Tissue:
  """What counts as tissue of a slide.

  Attributes:
    regions: outlines, level-0 pixels; if given, nothing outside them counts.
    regions_only: whether all inside them does.
    rule: of what is found.
  """

  regions: Sequence[outlines.Ring] | None = None
  regions_only: bool = False
  rule: Rule = RULE

  def mask(self, slide: Slide, mpp: float = MASK_MPP) -> np.ndarray:
    """Returns True on tissue, bool [H, W], at about `mpp` um/px."""
    image = slide.thumbnail(mpp)
    mask = np.ones(image.shape[:2], bool)
    if not (self.regions and self.regions_only):
      mask = tissue_mask(image, mpp, self.rule)
    if self.regions is not None:
      scale = np.divide((slide.height, slide.width), mask.shape)
      mask &= outlines.rasterise(self.regions, mask.shape, scale)
    return mask


FOUND = Tissue()


@dataclasses.dataclass(frozen=True)
class Grid:
  """Where the tiles of one slide lie and how they are read.

  Tiles are upright squares on a lattice that starts at (0, 0), of `size_level0`
  level-0 pixels or less where they overlap; those with enough tissue are kept,
  in row-major order.

  Attributes:
    coords: upper left corners in level-0 pixels (x, y), int32 [T, 2].
    tile_size: side of a tile as delivered, in pixels.
    level: pyramid level that is read.
    level_size: pixels of that level that are read, per side.
    size_level0: side of a tile in level-0 pixels, rounded to a whole number.
    footprint: side of a tile in pixels of the level, exactly; `tile_size` if
      the level is within 1 % of the um/px asked for and is not resampled.
    effective_mpp: um/px of the tiles as delivered: those asked for if they are
      resampled, else the level's own scale.
    blurred: corners of tiles that are left out for their blur.
  """

  coords: np.ndarray
  tile_size: int
  level: int
  level_size: int
  size_level0: int
  footprint: float
  effective_mpp: float
  blurred: np.ndarray


def tile_grid(
  slide: Slide,
  *,
  tile_size: int = 256,
  mpp: float = 0.5,
  min_tissue: float = 0.5,
  overlap: int = 0,
  tissue: Tissue = FOUND,
) -> Grid:
  """Returns the tiles of a slide that hold tissue.

  The level read is the smallest that is not coarser than `mpp`, compared as
  floats. A level within 1 % of `mpp` (0.499 for 0.5) is read as it is; any
  other is resampled to `mpp` exactly.

  Args:
    slide: an open slide.
    tile_size: side of a tile, in pixels.
    mpp: um/px of the tiles; 0.5 is what scanners call 20x.
    min_tissue: least part of a tile's area that is tissue, 0 to 1; 0 takes
      every tile.
    overlap: pixels that neighbours share.
    tissue: what counts as such; no tile outside its outlines is taken.

  Raises:
    SlideError: if the slide is more than twice as coarse as `mpp`, smaller than
      a tile, or has no tile with enough tissue.
  """
  grid = _lattice(slide, tile_size, mpp, overlap)
  if not len(grid.coords):
    raise SlideError(
      f'{slide.path.name}: {slide.width} x {slide.height} px are smaller than '
      f'one tile of {tile_size} px at {mpp:g} um/px ({grid.size_level0} '
      'level-0 px). Ask for smaller tiles or leave the slide out.'
    )
  regions, inside = tissue.regions, np.ones(len(grid.coords))
  if regions is not None:
    size = slide.width, slide.height
    outlines.warn_of_beyond(slide.path.name, regions, size)
    inside = outlines.covered(regions, grid.coords, grid.size_level0)
    source = f'of its {len(regions)} outlines'
  part = inside
  if min_tissue > 0 and not (regions and tissue.regions_only):
    mask = tissue.mask(slide, min(MASK_MPP, grid.size_level0 * slide.mpp / 4))
    part = tissue_part(mask, slide, grid.coords, grid.size_level0)
    source = f'{mask.mean():.1%} of the slide looks like tissue and'
  enough = (inside > 0) & (part >= min_tissue)
  if not enough.any():
    raise SlideError(
      f'{slide.path.name}: no tissue: {source} the fullest tile has'
      f' {part.max():.0%}, below --min_tissue={min_tissue:g}. Look'
      ' at the slide, and at its outlines if it has any, which are in level-0'
      ' pixels. Lower --min_tissue, with a new --features_dir, or leave the'
      ' slide out.'
    )
  return dataclasses.replace(grid, coords=grid.coords[enough])


def _lattice(slide: Slide, tile_size: int, mpp: float, overlap: int) -> Grid:
  """Returns every tile whose pixels are all in the level."""
  downsample = mpp / slide.mpp
  if downsample * MAX_UPSAMPLING < 1 - NATIVE:
    raise SlideError(
      f'{slide.path.name}: {slide.mpp:g} um/px is more than '
      f'{MAX_UPSAMPLING:g} times as coarse as the {mpp:g} um/px asked for. Ask '
      f'for --tile_mpp={slide.mpp:.2g} or leave the slide out.'
    )
  level = slide.level_for(downsample * (1 + NATIVE))
  factor = slide.level_downsamples[level]
  scale = downsample / factor  # Pixels of the level per pixel of the tile.
  native = abs(scale - 1) <= NATIVE
  footprint = float(tile_size) if native else tile_size * scale
  level_size = math.ceil(footprint * (1 - 1e-9))  # 2.1 / 0.3 is above 7.
  size_level0 = max(1, round(footprint * factor))
  step = max(1, round((1 - overlap / tile_size) * footprint * factor))
  in_level = np.subtract(slide.level_dimensions[level], level_size) * factor
  in_slide = np.subtract((slide.width, slide.height), size_level0)
  last = np.floor(np.minimum(in_slide, in_level))
  x, y = np.meshgrid(*(np.arange(0, n + 1, step) for n in last))
  return Grid(
    coords=np.stack([x.ravel(), y.ravel()], 1).astype(np.int32),
    tile_size=tile_size,
    level=level,
    level_size=level_size,
    size_level0=size_level0,
    footprint=footprint,
    effective_mpp=slide.mpp * factor if native else mpp,
    blurred=np.empty((0, 2), np.int32),
  )


def read_regions(
  folder: pathlib.Path | str, slides: Mapping[str, pathlib.Path]
) -> dict[str, list[outlines.Ring]]:
  """Returns what a user outlined as tissue of slides, by slide id.

  Args:
    folder: holds <slide_id>.geojson (QuPath) or .xml (ASAP), see
      `outlines.read`; slides without a file are not in the result.
    slides: all slides by id.

  Raises:
    SlideError: naming every file that cannot be used: it is damaged, has no
      outlines, is of no slide, or is the second of one.
  """
  folder, regions, faults = pathlib.Path(folder), {}, []
  if not folder.is_dir():
    raise SlideError(f'{folder}: no such folder. Check --regions_dir.')
  kind = folder, outlines.EXTENSIONS, '*'
  for line in files.left_out(*kind):
    warnings.warn(line, stacklevel=2)
  for path in files.listed(*kind):
    slide = files.clean(path.stem)
    if slide not in slides:
      faults.append(f'{path}: there is no slide {slide}. Rename or remove it.')
    elif slide in regions:
      faults.append(f'{path}: a second file of slide {slide}. Keep one.')
    else:
      try:
        regions[slide] = outlines.read(path, corner(slides[slide]))
      except TileError as e:
        faults.append(str(e))
        continue
      if not regions[slide]:
        faults.append(f'{path}: no outlines. Remove the file to find tissue.')
  if not regions and not faults:
    faults.append(f'{folder}: no {", ".join(outlines.EXTENSIONS)} of slides.')
  if faults:
    raise SlideError('\n'.join(faults))
  return regions


def tissue_part(
  mask: np.ndarray, slide: Slide, coords: np.ndarray, size_level0: int
) -> np.ndarray:
  """Returns the part of each tile's area that is tissue, float64 [T].

  Exact for a mask of pixels that tile the slide: the integral image is linear
  between pixel borders.

  Args:
    mask: True on tissue, bool [H, W], covering the whole slide.
    slide: the slide, for its size.
    coords: upper left corners, level-0 pixels, [T, 2].
    size_level0: side of a tile, level-0 pixels.
  """
  scale = np.array([mask.shape[1] / slide.width, mask.shape[0] / slide.height])
  integral = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0))).astype(float)
  (x0, y0), (x1, y1) = (coords * scale).T, ((coords + size_level0) * scale).T

  def up_to(x, y):
    return scipy.ndimage.map_coordinates(
      integral, [y, x], order=1, mode='nearest'
    )

  area = up_to(x1, y1) - up_to(x0, y1) - up_to(x1, y0) + up_to(x0, y0)
  return area / (size_level0**2 * scale.prod())


def read_tile(slide: Slide, grid: Grid, i: int) -> np.ndarray:
  """Returns tile `i`, uint8 [tile_size, tile_size, 3].

  Resampling is bicubic, over an area that grows with the scale, from the exact
  (fractional) footprint of the tile; a tile depends on its own pixels only.

  Args:
    slide: an open slide.
    grid: its tiles.
    i: which of them.

  Raises:
    SlideError: if the region cannot be read.
  """
  x, y = grid.coords[i].tolist()
  if grid.footprint == grid.tile_size:
    return slide.read(x, y, grid.level, grid.tile_size, grid.tile_size)
  region = slide.read(x, y, grid.level, grid.level_size, grid.level_size)
  tile = Image.fromarray(region).resize(
    (grid.tile_size, grid.tile_size),
    Image.Resampling.BICUBIC,
    box=(0, 0, grid.footprint, grid.footprint),
  )
  return np.asarray(tile)


def read_tiles(
  slide: Slide, grid: Grid, *, count: int, threads: int
) -> Iterator[np.ndarray]:
  """Yields the tiles of a grid in its order.

  Reading goes on while the caller works on a tile.

  Args:
    slide: an open slide.
    grid: its tiles.
    count: how many tiles are read in advance.
    threads: how many threads read.

  Yields:
    red, green and blue, uint8 [tile_size, tile_size, 3].

  Raises:
    SlideError: if a tile cannot be read; no later one is yielded.
  """
  read, places = lambda i: read_tile(slide, grid, i), range(len(grid.coords))
  return ahead(read, places, count=count, threads=threads)
