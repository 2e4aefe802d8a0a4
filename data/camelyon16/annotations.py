"""Where the tumour of CAMELYON16's slides lies, from any of its file formats.

They are the organisers' XML of ASAP and mask TIFFs, and the JSON of NCRF
(https://github.com/baidu-research/NCRF), one file per slide or all in one.
"""

from collections.abc import Collection
import dataclasses
import gzip
import json
import pathlib
from typing import Any
import warnings
import zlib

import numpy as np

from data import outlines
from data.files import listed
from data.labelled_tiles import TileError
from data.outlines import Ring
from data.slides import Slide

_MASKS = ('.tif', '.tiff')
_OUTLINES = ('.xml', '.json')
# ASAP's masks hold 1, the organisers' for evaluation 255; 2 is a hole.
_TUMOUR, _OTHER = (1, 255), (0, 2)
_NEAR = 0.01  # Relative difference between the scales of a level and a map,
_PIXEL = 1  # or between their sides: levels leave out what is no whole pixel.
_OTHER_SIZE = 0.1  # Relative difference of sides from which on it is said.


@dataclasses.dataclass(frozen=True)
class Annotations:
  """Annotations by slide id, in lower case.

  Attributes:
    source: the folder or file, for messages.
    files: of each slide; its polygons where one file holds them all.
  """

  source: pathlib.Path
  files: dict[str, pathlib.Path | dict]

  def require(self, slides: Collection[str]) -> None:
    """Raises a TileError that names every one of `slides` without any."""
    if missing := sorted(set(slides) - set(self.files)):
      raise TileError(
        f'{self.source}: {len(missing)} tumour slide(s) without annotation: '
        f'{", ".join(missing)}. Add a file for each, or take the slides out.'
      )

  def rings(self, slide: str) -> list[Ring]:
    """Returns outlines and holes of a slide that has them, level-0 pixels.

    Outlines of one or two corners, which tumor_054 has, are left out with a
    warning.

    Raises:
      TileError: if the file cannot be read.
    """
    file = self.files[slide]
    if isinstance(file, dict):
      return outlines.from_ncrf(f'{self.source}: {slide}', file)
    return outlines.read(file)

  def mask(
    self,
    slide: str,
    shape: tuple[int, int],
    scale: int,
    *,
    holes: bool = True,
  ) -> np.ndarray:
    """Returns True on tumour, bool [H, W].

    Args:
      slide: its id.
      shape: (H, W); mask TIFFs are cut to it or continued without tumour.
      scale: level-0 pixels per pixel: 32 for level 5, 64 for level 6.
      holes: whether holes are cut out; masks have it done already.

    Raises:
      TileError: if there is no annotation, the file cannot be read, or a mask
        has no level of that scale or values other than 0, 1, 2 and 255.
      SlideError: if a mask cannot be read.
    """
    self.require([slide])
    file = self.files[slide]
    if isinstance(file, dict) or file.suffix.lower() not in _MASKS:
      rings, size = self.rings(slide), (shape[1] * scale, shape[0] * scale)
      outlines.warn_of_beyond(f'{self.source}: {slide}', rings, size)
      return outlines.rasterise(rings, shape, scale, holes=holes)
    whole, mask = _read_mask(file, scale), np.zeros(shape, bool)
    if np.abs(np.divide(whole.shape, shape) - 1).max() > _OTHER_SIZE:
      sides = (
        ' x '.join(str(n * scale) for n in m.shape) for m in (whole, mask)
      )
      warnings.warn(
        f'{file}: about {next(sides)} level-0 pixels (height x width), and its'
        f' slide has {next(sides)}. Is it of this slide, in full resolution?',
        stacklevel=2,
      )
    whole = whole[: shape[0], : shape[1]]
    mask[: len(whole), : whole.shape[1]] = whole
    return mask


def find(source: pathlib.Path | str) -> Annotations:
  """Returns the annotations of a folder, or of one file for all slides.

  Args:
    source: a folder with, or with subfolders with, <slide>.xml, <slide>.json
      or <slide>_mask.tif, names in any case; or a .json or .json.gz file
      {slide: {'positive': [...], 'negative': [...]}}.

  Raises:
    TileError: if there is none, the file cannot be read, or a slide has two.
  """
  source = pathlib.Path(source)
  if not source.is_dir():
    return Annotations(source, _load(source))
  files, problems = {}, []
  for path in listed(source):
    stem, suffix = path.stem.lower(), path.suffix.lower()
    if suffix in _OUTLINES or (suffix in _MASKS and stem.endswith('_mask')):
      name = stem.removesuffix('_mask')
      if (other := files.setdefault(name, path)) != path:
        problems.append(f'{name}: both {other} and {path}. Keep one of them.')
  if not files:
    problems.append('no <slide>.xml, <slide>.json or <slide>_mask.tif')
  if problems:
    raise TileError.listing(problems, str(source))
  return Annotations(source, files)


def _load(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Returns the polygons of all slides, by id in lower case."""
  opener = gzip.open if path.suffix.lower() == '.gz' else open
  try:
    with opener(path, 'rb') as file:
      content = json.load(file)
  except (OSError, EOFError, ValueError, RecursionError, zlib.error) as e:
    raise TileError(
      f'{path}: cannot be read as JSON ({type(e).__name__}: {e}). Copy it anew.'
    ) from e
  entries = content.values() if isinstance(content, dict) else [content]
  if not all(isinstance(entry, dict) for entry in entries):
    raise TileError(
      f'{path}: found no polygons by slide. For one slide, pass the folder '
      'of its file.'
    )
  return {name.lower(): entry for name, entry in content.items()}


def _read_mask(path: pathlib.Path, scale: int) -> np.ndarray:
  """Returns True on tumour at the level of a mask that has a scale."""
  with Slide(path, default_mpp=1.0) as slide:  # Its own scale is no matter.
    sides = np.divide(slide.level_dimensions[0], scale)
    off = np.abs(slide.level_dimensions - sides).max(1)
    level = int(off.argmin())
    if off[level] > max(_PIXEL, _NEAR * sides.max()):
      raise TileError(
        f'{path}: no level is {scale} times as coarse as level 0, only '
        + ', '.join(f'{d:g}' for d in slide.level_downsamples)
      )
    width, height = slide.level_dimensions[level]
    # What a sparse file does not hold is no tumour.
    red = slide.read(0, 0, level, width, height, white=False)[..., 0]
  values = np.unique(red).tolist()
  if not any({*values} <= {*_OTHER, tumour} for tumour in _TUMOUR):
    raise TileError(
      f'{path}: found the value(s) {", ".join(map(str, values[:9]))}. Masks'
      ' hold 1 or 255 on tumour, not both 1 and 255, and 0 or 2 elsewhere.'
    )
  return np.isin(red, _TUMOUR)
