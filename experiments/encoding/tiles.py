"""Slides as tiles: all of them, or a sample."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import os
import pathlib
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from data import slides, tiling, tissue
from data.files import broken, first_of
from experiments.run import progress
from experiments.run.options import OptionError, field
from experiments.run.start import gathered

_AHEAD = 128  # Tiles that are read in advance.
_SAMPLE = 128  # Tiles, from 16 slides where there are as many.


@dataclasses.dataclass(frozen=True)
class Scale:
  """Scale of slides."""

  slide_mpp: float | None = field(
    None,
    'Micrometres per level-0 pixel of slides that do not state it.',
    least=1e-3,
    only={'slides_dir': True},
  )
  slide_mpp_csv: pathlib.Path | None = field(
    None,
    'CSV with the columns slide_id,mpp: micrometres per level-0 pixel of slides'
    ' that state none or a wrong one. Slides that it does not name, or with an'
    ' empty cell, are taken as they state.',
    only={'slides_dir': True},
  )


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Tiles."""

  tile_size: int = field(256, 'Side of a tile in pixels.', least=32)
  tile_mpp: float | None = field(None, 'um/px; by default 0.5.', least=1e-3)
  magnification: float | None = field(None, '20 is 0.5 um/px.', least=0.1)
  overlap: int = field(0, 'Pixels that neighbouring tiles share.', least=0)
  min_tissue: float = field(
    0.5,
    'Least part of a tile that is tissue; 0 takes every tile.',
    least=0,
    most=1,
  )
  regions_dir: pathlib.Path | None = field(
    None,
    'Folder with <slide_id>.geojson (QuPath, contours_geojson of TRIDENT) or'
    ' .xml (ASAP), level-0 pixels: of slides with such a file, only tissue'
    ' inside these outlines counts.',
  )
  regions_only: bool = field(
    False, 'Take all inside them, tissue or not.', only={'regions_dir': True}
  )
  saturation: float | None = field(
    None, 'Least saturation of tissue, 0 to 1; by default by Otsu.', least=0
  )
  min_piece_mm2: float = field(0.005, 'Smaller tissue is dust.', least=0)
  max_hole_mm2: float = field(0.01, 'Smaller holes are tissue.', least=0)
  tissue_csv: pathlib.Path | None = field(
    None,
    'CSV with the columns slide_id,saturation,min_piece_mm2,max_hole_mm2, which'
    ' hold for single slides in place of the flags. Cells may be empty.',
  )
  min_focus: float = field(0.0, 'Leave out blurred tiles: try 100.', least=0)
  threads: int = field(os.cpu_count(), 'Threads that read tiles.', least=1)
  reader: str = field(
    'auto',
    'What reads pixels. tifffile is faster on tiled TIFF files than OpenSlide;'
    ' auto takes it where pixels are the same, but for JPEG 2000, of which it'
    ' misses some damage.',
    choices=slides.READERS,
  )
  augment: bool = field(False, 'Flip tiles and change their colours.')
  seed: int = field(
    0,
    'Seed of a random encoder and of --augment.',
    least=0,
    most=2**32 - 1,
  )

  def __post_init__(self):
    mpp, power = self.tile_mpp, self.magnification
    if mpp and power and abs(mpp * power / 10 - 1) > tiling.NATIVE:
      raise OptionError(
        f'--magnification={power:g} is --tile_mpp={10 / power:.3g}, not'
        f' {mpp:g}. Leave one of them out.'
      )
    if self.overlap >= self.tile_size:
      raise OptionError('--overlap must be less than --tile_size.')


class SlideTiles:
  """The slides of a cohort, and how they are cut into tiles.

  Attributes:
    paths: as of `slides.list_slides`; made of a folder, all in it.
    warnings: what may be wrong with the slides, tables and outlines.
    tiles: how they are cut.
    mpp: of the tiles.
    summary: of their size and scale.
    scale: of slides that state none.
    mpp_of: of level 0 by slide id, whatever the slides state.
    regions: outlines of what counts as tissue, by slide id.
    rule: what is found as tissue.
    rules: the same of slides that have their own, by slide id.

  Raises:
    SlideError: if a table, or a file of outlines, cannot be used, or the folder
      holds no slides.
  """

  def __init__(
    self,
    paths: pathlib.Path | Sequence[pathlib.Path],
    tiles: Tiles,
    scale: Scale = Scale(),
  ):
    self.tiles, self.scale = tiles, scale
    self.warnings, self.mpp_of, self.regions, self.rules = [], {}, {}, {}
    self.mpp = tiles.tile_mpp or 10 / (tiles.magnification or 20)
    self.summary = f'tiles of {tiles.tile_size} px at {self.mpp:g} um/px'
    self.summary += f' ({10 / self.mpp:.3g}x)'
    self.rule = tissue.Rule(*(getattr(tiles, n) for n in tissue.Rule._fields))
    with gathered(self.warnings):
      if isinstance(paths, pathlib.Path):
        paths = slides.list_slides(paths)
      self.paths, ids = paths, {slides.slide_id(path): path for path in paths}
      if scale.slide_mpp_csv:
        self.mpp_of = slides.read_mpp_csv(scale.slide_mpp_csv)
      if tiles.tissue_csv:
        rows = slides.read_numbers(tiles.tissue_csv, tissue.Rule._fields)
        self.rules = {s: self.rule._replace(**rows[s]) for s in rows}
      tables = {scale.slide_mpp_csv: self.mpp_of, tiles.tissue_csv: self.rules}
      for table, named in tables.items():
        if absent := sorted(named.keys() - ids):
          warnings.warn(
            f'{table}: no slide files of {first_of(absent)}', stacklevel=2
          )
      if tiles.regions_dir:
        self.regions = tiling.read_regions(tiles.regions_dir, ids)
      same = {}
      for path in paths:
        with contextlib.suppress(OSError):  # It is named when it is opened.
          if path != (first := same.setdefault(slides.digest(path), path)):
            warnings.warn(
              f'{first.name} and {path.name} are the same slide. Keep one, or'
              ' give them one case_id, so that no patient is in two parts of a'
              ' split.',
              stacklevel=2,
            )

  def open(self, path: pathlib.Path) -> slides.Slide:
    """Opens a slide at the scale that is meant."""
    mpp = self.mpp_of.get(slides.slide_id(path))
    reader = self.tiles.reader
    return slides.Slide(path, self.scale.slide_mpp, mpp, reader=reader)

  def each(self, function: Callable) -> tuple[dict[pathlib.Path, Any], ...]:
    """Returns a function's result of each slide's path, and why it failed.

    Args:
      function: of a path; threads call it, and a bar shows.

    Returns:
      The results, and of other slides the reasons, by path.
    """
    results, failures = {}, {}

    def keep(path: pathlib.Path) -> None:
      try:
        results[path] = function(path)
      except slides.SlideError as error:
        failures[path] = str(error)
      except Exception as error:  # Whatever it is, the other slides go on.
        failures[path] = f'{path.name}: {type(error).__name__}: {error}'

    about = {'total': len(self.paths), 'desc': 'slides', 'unit': 'slide'}
    with futures.ThreadPoolExecutor(self.tiles.threads) as pool:
      list(progress.bar(pool.map(keep, self.paths), **about))
    return results, dict(sorted(failures.items()))

  def tissue(self, slide_id: str) -> tiling.Tissue:
    """Returns what counts as tissue of a slide."""
    regions, tiles = self.regions.get(slide_id), self.tiles
    # Of tiles that need no tissue, the outlines alone decide.
    only = tiles.regions_only or not tiles.min_tissue
    return tiling.Tissue(regions, only, self.rules.get(slide_id, self.rule))

  def grid(self, slide: slides.Slide, *, whole: bool = False) -> tiling.Grid:
    """Returns where the tiles of a slide lie, with glass if it is `whole`.

    Raises:
      SlideError: if there are none, or one has to be read for its focus and
        cannot be.
    """
    least = self.tiles.min_focus
    grid = tiling.tile_grid(
      slide,
      tile_size=self.tiles.tile_size,
      mpp=self.mpp,
      min_tissue=0 if whole else self.tiles.min_tissue,
      overlap=self.tiles.overlap,
      tissue=tiling.FOUND if whole else self.tissue(slide.slide_id),
    )
    if whole or not least:
      return grid
    focus = np.array([*map(tissue.focus, self.read(slide, grid))])
    if focus.max() < least:
      raise slides.SlideError(
        f'{slide.path.name}: all tiles are blurred, of {focus.max():.3g} at'
        f' most. Lower --min_focus={least:g} or leave the slide out.'
      )
    sharp, blurred = grid.coords[focus >= least], grid.coords[focus < least]
    return dataclasses.replace(grid, coords=sharp, blurred=blurred)

  def read(
    self, slide: slides.Slide, grid: tiling.Grid, count: int = _AHEAD
  ) -> Iterator[np.ndarray]:
    """Yields tiles, uint8 [S, S, 3], in order, `count` of them read ahead."""
    threads = self.tiles.threads
    return tiling.read_tiles(slide, grid, count=count, threads=threads)

  def augmented(self, tiles: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """Returns uint8 tiles as --augment changes them, by places in slides."""
    if not self.tiles.augment:
      return tiles
    seed = np.uint32(self.tiles.seed % 2**32)
    return np.asarray(_changed(tiles, seed, np.resize(places, len(tiles))))

  def attributes(self, slide_id: str) -> dict[str, Any]:
    """Returns what features of a slide's tiles say of their making.

    None is not said: it is as by default, and older files say nothing of it.
    """
    digest, tiles = hashlib.sha256(), self.tiles
    rings, own = self.regions.get(slide_id), self.rules.get(slide_id)
    for corners, hole, polygon in rings or ():
      digest.update(bytes([hole]) + np.float64(corners).tobytes())
      digest.update(polygon.encode() * hole)
    within = '' if self.tissue(slide_id).regions_only else 'tissue in '
    default = tissue.RULE._asdict().items()
    return {
      'patch_size': tiles.tile_size,
      'mpp': float(self.mpp),
      'overlap': tiles.overlap,
      'min_tissue': float(tiles.min_tissue),
      'augment': f'stain {tiles.seed}' if tiles.augment else 'none',
      'regions': rings and within + digest.hexdigest()[:16],
      'min_focus': tiles.min_focus or None,
      **dict.fromkeys(self.rule._fields),
      **dict(self.rule._asdict().items() - default),
      'tissue_csv': own and str(tuple(own)),
    }

  def differences(
    self,
    path: pathlib.Path,
    file: pathlib.Path,
    attributes: Mapping[str, Any],
    encoder: Mapping[str, str],
  ) -> list[str]:
    """Returns in what a feature file is not what these tiles would give.

    Args:
      path: of the slide.
      file: <slide_id>.h5.
      attributes: of that file.
      encoder: attributes of the encoder that is asked for, as far as known.
    """
    digest = attributes.get('slide_sha256')  # Not in older files.
    gone = broken(path)  # Then there is no other slide either.
    if digest is not None and not gone and digest != slides.digest(path):
      return [f'{file}: was made of another slide of this name than {path}']
    name, source = file.stem, attributes.get('level0_mpp_source')
    wanted = {**encoder, **self.attributes(name)}
    if name in self.mpp_of or source == 'mpp_csv':
      wanted['level0_mpp'] = self.mpp_of.get(name)
    elif source == 'default_mpp':
      wanted['level0_mpp'] = self.scale.slide_mpp
    return [
      f'{file}: {key} is {attributes.get(key)!r}, not {value!r} as asked'
      for key, value in wanted.items()
      if attributes.get(key) != value
    ]

  def sample(self) -> np.ndarray:
    """Returns 128 tiles or fewer, spread over the cohort, for a random trunk.

    Slides are taken in an order that is spread over the list, an equal number
    of evenly spaced tiles from each of 16, until there are enough; those that
    cannot be read are passed over, as `extract` will report them. The choice
    depends on the slides and how they are cut alone.

    Returns:
      Tiles, uint8 [T, tile_size, tile_size, 3].

    Raises:
      SlideError: if no slide yields a tile.
    """
    share = -(-_SAMPLE // min(16, max(1, len(self.paths))))
    taken, reasons = [], []
    for path in _spread(self.paths):
      try:
        with self.open(path) as slide:
          taken += self.read(slide, few(self.grid(slide), share))
      except slides.SlideError as error:
        reasons.append(str(error))
      if len(taken) >= _SAMPLE:
        break
    if not taken:
      raise slides.SlideError('no slide has tiles:\n' + '\n'.join(reasons))
    return np.stack(taken[:_SAMPLE])


@jax.jit
def _changed(tiles: jax.Array, seed: int, place: jax.Array) -> jax.Array:
  """Returns uint8 tiles changed at random, by seed and place in the slide."""
  from kmil_jax import augment  # And models, which exported ones do without.

  key, policy = jax.random.key(seed), augment.PRESETS['stain']
  changed = augment.apply(tiles, key, place, policy)
  return jnp.round(255 * changed).astype(jnp.uint8)


def few(grid: tiling.Grid, most: int) -> tiling.Grid:
  """Returns at most so many tiles, evenly spaced, of a grid."""
  count = len(grid.coords)
  rows = np.linspace(0, count - 1, min(most, count)).round()
  coords = grid.coords[np.unique(rows.astype(int))]
  return dataclasses.replace(grid, coords=coords)


def _spread(items: Sequence) -> list:
  """Returns `items` so that any first few lie evenly over the whole list."""
  golden = (5**0.5 - 1) / 2
  places = (np.arange(4 * len(items)) * golden % 1 * len(items)).astype(int)
  order = dict.fromkeys([*places.tolist(), *range(len(items))])
  return [items[i] for i in order]
