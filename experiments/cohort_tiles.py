"""Cuts the slides of a cohort into tiles, all of them or a sample."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np

from data import pipeline, slides, tiling
from data.outlines import Ring

_CALIBRATION_TILES = 128
_CALIBRATION_SLIDES = 16  # That they come from, where there are as many.


@dataclasses.dataclass(frozen=True)
class TileSpec:
  """How slides are cut into tiles.

  Attributes:
    tile_size: pixels.
    mpp: micrometres per pixel of the tiles.
    min_tissue: least part of a tile that is tissue.
    default_mpp: of level 0, for slides that do not state it.
    mpp_of: of level 0 by slide id, whatever the slides state.
    regions: outlines of what counts as tissue, by slide id; where there are
      none, it is found.
    threads: that read at the same time.
    augment_seed: of random flips and colours; None for the tiles as they are.
  """

  tile_size: int = 256
  mpp: float = 0.5
  min_tissue: float = 0.5
  default_mpp: float | None = None
  mpp_of: Mapping[str, float] = dataclasses.field(default_factory=dict)
  regions: Mapping[str, Sequence[Ring]] = dataclasses.field(
    default_factory=dict
  )
  threads: int = 2
  augment_seed: int | None = None

  def open(self, path: pathlib.Path) -> slides.Slide:
    """Opens a slide at the scale that is meant."""
    mpp = self.mpp_of.get(slides.slide_id(path))
    return slides.Slide(path, self.default_mpp, mpp)

  def attributes(self) -> dict[str, Any]:
    """Returns what features of such tiles say of their making."""
    seed = self.augment_seed
    return {
      'patch_size': self.tile_size,
      'mpp': float(self.mpp),
      'overlap': 0,
      'min_tissue': float(self.min_tissue),
      'augment': 'none' if seed is None else str(seed),
    }

  def differences(
    self,
    path: pathlib.Path,
    file: pathlib.Path,
    found: Mapping[str, Any],
    encoder: Mapping[str, str],
  ) -> list[str]:
    """Says in what a feature file is not what these tiles would give.

    Args:
      path: of the slide.
      file: <slide_id>.h5.
      found: its attributes.
      encoder: attributes of the encoder that is asked for, as far as known.
    """
    wanted = {**encoder, **self.attributes(), **self._scale(file.stem, found)}
    wanted |= {'regions': None, **self.outlined(file.stem)}
    made_of = found.get('slide_sha256')  # Older files do not say.
    if made_of is not None and made_of != slides.digest(path):
      return [f'{file}: was made of another slide of this name than {path}']
    return [
      f'{file}: {key} is {found.get(key)!r}, not {value!r} as asked'
      for key, value in wanted.items()
      if found.get(key) != value
    ]

  def outlined(self, slide_id: str) -> dict[str, str]:
    """Returns the attribute that tells a slide's outlines, if it has any."""
    if slide_id not in self.regions:
      return {}
    digest = hashlib.sha256()
    for corners, hole in self.regions[slide_id]:
      digest.update(bytes([hole]) + np.float64(corners).tobytes())
    return {'regions': digest.hexdigest()[:16]}

  def _scale(
    self, slide_id: str, attributes: Mapping[str, Any]
  ) -> dict[str, float | None]:
    """Returns the level0_mpp that features made with these attributes need.

    Nothing where the slide itself stated it.
    """
    source = attributes.get('level0_mpp_source')
    if slide_id in self.mpp_of or source == 'mpp_csv':
      return {'level0_mpp': self.mpp_of.get(slide_id)}
    return {'level0_mpp': self.default_mpp} if source == 'default_mpp' else {}

  def grid(self, slide: slides.Slide) -> tiling.Grid:
    """Returns where the tiles of a slide lie."""
    return tiling.tile_grid(
      slide,
      tile_size=self.tile_size,
      mpp=self.mpp,
      min_tissue=self.min_tissue,
      regions=self.regions.get(slides.slide_id(slide.path)),
    )

  def tiles(
    self, slide: slides.Slide, grid: tiling.Grid, batch: int
  ) -> Iterator[np.ndarray]:
    """Yields normalised tiles [n, S, S, 3] in order, n <= batch, read ahead."""
    for tiles, weight in pipeline.slide_batches(
      slide,
      grid,
      batch=batch,
      threads=self.threads,
      augment_seed=self.augment_seed,
    ):
      yield tiles[weight > 0]


def calibration_tiles(
  slide_paths: Sequence[pathlib.Path], spec: TileSpec
) -> np.ndarray:
  """Returns 128 tiles or fewer, spread over the cohort, for a random trunk.

  Slides are taken in an order that is spread over the list, an equal number of
  evenly spaced tiles from each, until there are enough; those that cannot be
  read are passed over, as `extract` will report them. The choice depends on
  the slides and `spec` alone.

  Returns:
    Normalised tiles, [T, tile_size, tile_size, 3] float32.

  Raises:
    slides.SlideError: if no slide yields a tile.
  """
  spec = dataclasses.replace(spec, augment_seed=None)
  slides_used = min(_CALIBRATION_SLIDES, max(1, len(slide_paths)))
  share = -(-_CALIBRATION_TILES // slides_used)
  taken, reasons = [], []
  for path in _spread(slide_paths):
    try:
      with spec.open(path) as slide:
        grid = spec.grid(slide)
        rows = np.linspace(0, len(grid.coords) - 1, share).round().astype(int)
        grid = dataclasses.replace(grid, coords=grid.coords[np.unique(rows)])
        taken += spec.tiles(slide, grid, len(grid.coords))
    except slides.SlideError as error:
      reasons.append(str(error))
    if sum(map(len, taken)) >= _CALIBRATION_TILES:
      break
  if not taken:
    raise slides.SlideError('no slide has tiles:\n' + '\n'.join(reasons))
  return np.concatenate(taken)[:_CALIBRATION_TILES]


def _spread(items: Sequence) -> list:
  """Returns `items` so that any first few lie evenly over the whole list."""
  golden = (5**0.5 - 1) / 2
  places = (np.arange(4 * len(items)) * golden % 1 * len(items)).astype(int)
  order = dict.fromkeys([*places.tolist(), *range(len(items))])
  return [items[i] for i in order]
