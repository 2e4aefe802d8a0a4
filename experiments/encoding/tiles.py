"""Slides as tiles: all of them, or a sample."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import os
import pathlib
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from data import slides, tiling
from data.files import broken, first_of
from experiments.run.check import gathered
from experiments.run.options import field

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
  tile_mpp: float = field(
    0.5, 'Micrometres per pixel of the tiles. 0.5 is called 20x.', least=1e-3
  )
  min_tissue: float = field(
    0.5,
    'Least part of a tile that is tissue; 0 takes every tile.',
    least=0,
    most=1,
  )
  regions_dir: pathlib.Path | None = field(
    None,
    'Folder with <slide_id>.geojson (QuPath, contours_geojson of TRIDENT) or'
    ' .xml (ASAP), level-0 pixels: of slides with such a file, take only tiles'
    ' inside these outlines.',
  )
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


class SlideTiles:
  """The slides of a cohort, and how they are cut into tiles.

  Attributes:
    paths: as of `slides.list_slides`; made of a folder, all in it.
    warnings: what may be wrong with the slides, scales and outlines.
    tiles: how they are cut.
    scale: of slides that state none.
    mpp_of: of level 0 by slide id, whatever the slides state.
    regions: outlines of what counts as tissue, by slide id; where there are
      none, it is found.

  Raises:
    SlideError: if the file of scales, or one of outlines, cannot be used, or
      the folder holds no slides.
  """

  def __init__(
    self,
    paths: pathlib.Path | Sequence[pathlib.Path],
    tiles: Tiles,
    scale: Scale = Scale(),
  ):
    self.tiles, self.scale = tiles, scale
    self.warnings, self.mpp_of, self.regions = [], {}, {}
    with gathered(self.warnings):
      if isinstance(paths, pathlib.Path):
        paths = slides.list_slides(paths)
      self.paths, ids = paths, set(map(slides.slide_id, paths))
      if scale.slide_mpp_csv:
        self.mpp_of = slides.read_mpp_csv(scale.slide_mpp_csv)
        if absent := sorted(self.mpp_of.keys() - ids):
          warnings.warn(
            f'{scale.slide_mpp_csv}: no slide files of {first_of(absent)}',
            stacklevel=2,
          )
      if tiles.regions_dir:
        self.regions = tiling.read_regions(tiles.regions_dir, ids)

  def open(self, path: pathlib.Path) -> slides.Slide:
    """Opens a slide at the scale that is meant."""
    mpp = self.mpp_of.get(slides.slide_id(path))
    reader = self.tiles.reader
    return slides.Slide(path, self.scale.slide_mpp, mpp, reader=reader)

  def grid(self, slide: slides.Slide, *, whole: bool = False) -> tiling.Grid:
    """Returns where the tiles of a slide lie, with glass if it is `whole`."""
    return tiling.tile_grid(
      slide,
      tile_size=self.tiles.tile_size,
      mpp=self.tiles.tile_mpp,
      min_tissue=0 if whole else self.tiles.min_tissue,
      regions=None if whole else self.regions.get(slide.slide_id),
    )

  def read(
    self,
    slide: slides.Slide,
    grid: tiling.Grid,
    batch: int,
    *,
    augment: bool = False,
  ) -> Iterator[np.ndarray]:
    """Yields tiles, uint8 [n, S, S, 3], in order, n <= batch, read ahead."""
    place, seed = np.arange(batch), np.uint32(self.tiles.seed)
    for tiles in tiling.read_tiles(
      slide, grid, batch=batch, threads=self.tiles.threads
    ):
      if augment:
        # A full batch, whose shape is compiled once.
        full = np.resize(tiles, (batch, *tiles.shape[1:]))
        tiles = np.asarray(_changed(full, seed, place))[: len(tiles)]
      yield tiles
      place += batch

  def attributes(self, slide_id: str) -> dict[str, Any]:
    """Returns what features of a slide's tiles say of their making."""
    digest = hashlib.sha256()
    for corners, hole, polygon in self.regions.get(slide_id, ()):
      digest.update(bytes([hole]) + np.float64(corners).tobytes())
      digest.update(polygon.encode() * hole)
    outlined = {'regions': digest.hexdigest()[:16]}
    return {
      'patch_size': self.tiles.tile_size,
      'mpp': float(self.tiles.tile_mpp),
      'overlap': 0,
      'min_tissue': float(self.tiles.min_tissue),
      'augment': f'stain {self.tiles.seed}' if self.tiles.augment else 'none',
    } | (outlined if slide_id in self.regions else {})

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
    wanted = {**encoder, 'regions': None, **self.attributes(name)}
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
          taken += self.read(slide, few(self.grid(slide), share), share)
      except slides.SlideError as error:
        reasons.append(str(error))
      if sum(map(len, taken)) >= _SAMPLE:
        break
    if not taken:
      raise slides.SlideError('no slide has tiles:\n' + '\n'.join(reasons))
    return np.concatenate(taken)[:_SAMPLE]


@jax.jit
def _changed(tiles: jax.Array, seed: int, place: jax.Array) -> jax.Array:
  """Returns uint8 tiles changed at random, by seed and place in the slide."""
  from kmil_jax import augment  # And models, which exported ones do without.

  key, policy = jax.random.key(seed), augment.PRESETS['stain']
  changed = augment.apply(tiles, key, place, policy)
  return jnp.round(255 * changed).astype(jnp.uint8)


def few(grid: tiling.Grid, most: int) -> tiling.Grid:
  """Returns at most so many tiles, evenly spaced, of a grid."""
  rows = np.linspace(0, len(grid.coords) - 1, most).round()
  coords = grid.coords[np.unique(rows.astype(int))]
  return dataclasses.replace(grid, coords=coords)


def _spread(items: Sequence) -> list:
  """Returns `items` so that any first few lie evenly over the whole list."""
  golden = (5**0.5 - 1) / 2
  places = (np.arange(4 * len(items)) * golden % 1 * len(items)).astype(int)
  order = dict.fromkeys([*places.tolist(), *range(len(items))])
  return [items[i] for i in order]
