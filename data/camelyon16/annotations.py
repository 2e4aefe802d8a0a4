"""Where the tumour of CAMELYON16's slides lies, from any of its file formats.

They are the organisers' XML of ASAP and mask TIFFs, and the JSON of NCRF
(https://github.com/baidu-research/NCRF), one file per slide or all in one.
"""

from collections.abc import Collection
import dataclasses
import gzip
import json
import pathlib
import re
from typing import Any
import warnings
import zlib

import numpy as np

from data import outlines
from data.camelyon16 import polygons
from data.labelled_tiles import TileError
from data.outlines import Ring
from data.slides import Slide, SlideError

_MASKS = ('.tif', '.tiff')
_FORMATS = ('.xml', '.json', *_MASKS)
# ASAP's masks hold 1, the organisers' for evaluation 255; 2 is a hole.
_TUMOUR, _OTHER = (1, 255), (0, 2)
_ROWS = 1024  # Of a mask that are read at a time.
_NEAR = 0.01  # Relative difference between the scales of a level and a map.


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
        f'{", ".join(missing)}'
      )

  def rings(self, slide: str) -> list[Ring]:
    """Returns outlines and holes, level-0 pixels.

    Outlines of one or two corners, which tumor_054 has, are left out with a
    warning.

    Raises:
      TileError: if there are none, the file cannot be read, or is a mask.
    """
    self.require([slide])
    file = self.files[slide]
    if isinstance(file, dict):
      return _rings(file, f'{self.source}: {slide}')
    if file.suffix.lower() == '.json':
      return _rings(_load(file), str(file))
    if file.suffix.lower() == '.xml':
      return outlines.read(file, drop_empty=True)
    raise TileError(f'{file}: a mask has no outlines; XML or JSON is needed')

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
      TileError: as `rings`, or if a mask has no level of that scale or values
        other than 0, 1, 2 and 255.
    """
    self.require([slide])
    file = self.files[slide]
    if isinstance(file, dict) or file.suffix.lower() not in _MASKS:
      return polygons.rasterise(self.rings(slide), shape, scale, holes=holes)
    found = _read_mask(file, scale)[: shape[0], : shape[1]]
    out = np.zeros(shape, bool)
    out[: found.shape[0], : found.shape[1]] = found
    return out


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
    content = _load(source)
    if not all(isinstance(entry, dict) for entry in content.values()):
      raise TileError(
        f'{source}: found no polygons by slide; of a single slide pass the '
        'folder of its file'
      )
    return Annotations(source, {n.lower(): e for n, e in content.items()})
  files, problems = {}, []
  for path in sorted(source.rglob('*')):
    suffix, stem = path.suffix.lower(), path.stem.lower()
    if path.name.startswith('.') or suffix not in _FORMATS:
      continue
    if suffix in _MASKS and not stem.endswith('_mask'):
      continue  # A slide.
    name = re.sub('_mask$', '', stem)
    if (other := files.setdefault(name, path)) != path:
      problems.append(f'{name}: both {other} and {path}; keep one of them')
  if not files and not problems:
    problems.append('no <slide>.xml, <slide>.json or <slide>_mask.tif')
  if problems:
    raise TileError.listing(problems, str(source))
  return Annotations(source, files)


def _load(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = path.read_bytes()
    if path.suffix.lower() == '.gz':
      content = gzip.decompress(content)
    content = json.loads(content)
  except (OSError, EOFError, ValueError, RecursionError, zlib.error) as e:
    raise TileError(
      f'{path}: cannot be read as JSON ({type(e).__name__}: {e})'
    ) from e
  if not isinstance(content, dict):
    raise TileError(f'{path}: found a {type(content).__name__}, not an object')
  return content


def _rings(entry: dict[str, Any], name: str) -> list[Ring]:
  """Returns the polygons of NCRF's JSON, bare or with a name each."""
  found = []
  for key, hole in (('positive', False), ('negative', True)):
    listed = entry.get(key)
    if not isinstance(listed, list):
      raise TileError(f'{name}: no list {key!r} of polygons')
    for i, polygon in enumerate(listed):
      if isinstance(polygon, dict):
        polygon = polygon.get('vertices')
      try:
        corners = np.array(polygon, float)
      except (OverflowError, TypeError, ValueError):
        corners = np.zeros(0)
      if corners.shape[1:] != (2,) or not np.isfinite(corners).all():
        raise TileError(f'{name}: {key} {i} is not a list of finite [x, y]')
      if len(corners) > 1 and (corners[0] == corners[-1]).all():
        corners = corners[:-1]
      if len(corners) < 3:
        warnings.warn(
          f'{name}: {key} {i} has {len(corners)} corner(s), no area: left out',
          stacklevel=3,
        )
        continue
      found.append(Ring(corners, hole))
  return found


def _read_mask(path: pathlib.Path, scale: int) -> np.ndarray:
  """Returns True on tumour at the level of a mask that has a scale."""
  try:
    with Slide(path, default_mpp=1.0) as slide:  # Its own scale is no matter.
      off = np.abs(np.array(slide.level_downsamples) / scale - 1)
      level = int(off.argmin())
      if off[level] > _NEAR:
        raise TileError(
          f'{path}: no level is {scale} times as coarse as level 0; found '
          + ', '.join(f'{d:g}' for d in slide.level_downsamples)
        )
      width, height = slide.level_dimensions[level]
      mask, values = np.zeros((height, width), bool), set()
      for top in range(0, height, _ROWS):
        rows = min(_ROWS, height - top)
        region = np.empty((rows, width, 4), np.uint8)
        y = round(top * slide.level_downsamples[level])
        slide.read_bgrx(0, y, level, region)
        # What a sparse file does not hold is no tumour.
        red = np.where(region[..., 3] == 255, region[..., 2], 0)
        values |= set(np.unique(red).tolist())
        mask[top : top + rows] = np.isin(red, _TUMOUR)
  except SlideError as e:
    raise TileError(str(e)) from e
  if unknown := sorted(values - {*_TUMOUR, *_OTHER}):
    raise TileError(
      f'{path}: found the value(s) {", ".join(map(str, unknown[:5]))}; masks '
      'hold 1 or 255 on tumour, 0 or 2 elsewhere'
    )
  if set(_TUMOUR) <= values:
    raise TileError(f'{path}: found both 1 and 255; one of them is tumour')
  return mask
