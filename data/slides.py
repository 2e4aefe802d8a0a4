"""Finds whole-slide images and reads pixels at a known physical scale."""

import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import ctypes
import functools
import hashlib
import math
from pathlib import Path
import threading
import warnings

import numpy as np
import openslide
from openslide import lowlevel
from PIL import Image

from data import files
from data.tiff_reader import LengthError, TiffReader

# What OpenSlide 4 opens (https://openslide.org/formats/).
EXTENSIONS = frozenset(
  '.bif .czi .dcm .mrxs .ndpi .scn .svs .svslide .tif .tiff .vms .vmu'.split()
)
MPP_RANGE = (0.05, 20.0)  # um/px; outside it a scale is a default or a lie.
SCANNER_MPP = (0.1, 2.0)  # um/px that scanners have; else a warning.
# Pictures, archives and slides of other kinds, which are named where they lie.
_OTHERS = frozenset(
  '.7z .bmp .gz .isyntax .jp2 .jpeg .jpg .kfb .lif .png .qptiff .rar .sdpc .vsi'
  ' .zip'.split()
)
_TIFF_UNITS = {'centimeter': 1e4, 'inch': 25400.0}  # um
_POWER = 0.2  # Relative difference of scales, or objective, to be warned of.
_ANISOTROPY = 0.02  # Relative difference of mpp-x and mpp-y that is warned of.
_ROUNDING = 2  # By which decoders of JPEG may differ.
READERS = ('auto', 'openslide', 'tifffile')
_LARGEST_TILE = 2**30  # Bytes, four of each pixel.
_BLOCK = 4096  # Side, in pixels, of the largest region read at once.


class SlideError(Exception):
  """A slide cannot be used: its name, what was found, and what to do."""


class Slide(contextlib.AbstractContextManager):
  """An open slide; close it, or use it in a `with` statement.

  Reads may come from several threads. Positions are level-0 pixels, sizes are
  pixels of the level that is read.

  Tiled TIFF files are read by `tiff_reader` where pixels are OpenSlide's.

  Attributes:
    path: the file, or the folder of a DICOM slide.
    slide_id: see `slide_id`.
    width, height: of level 0, in pixels.
    mpp: micrometres per level-0 pixel: the mean of both directions, with a
      warning if they differ by more than 2 %.
    mpp_source: 'mpp_csv' (given for this slide), 'openslide', 'tiff'
      (resolution tags) or 'default_mpp'.
    level_downsamples: float factor of each level, 1.0 first.
    level_dimensions: (width, height) of each level.
  """

  def __init__(
    self,
    path: Path | str,
    default_mpp: float | None = None,
    mpp: float | None = None,
    *,
    reader: str = 'auto',
  ):
    """Opens a slide.

    Args:
      path: a slide file, or a folder with the files of one DICOM slide.
      default_mpp: um/px of level 0 for slides that do not state it.
      mpp: um/px of level 0, whatever the slide states.
      reader: of `READERS`; 'auto' is 'tifffile' where it reads the pixels of
        OpenSlide and notices all damage, which of JPEG 2000 it does not.

    Raises:
      SlideError: if the slide cannot be opened by that reader, or has no usable
        scale.
    """
    self.path = Path(path)
    self.slide_id = slide_id(path)
    self._lock, self._tiff = threading.Lock(), None
    with contextlib.ExitStack() as self._files:  # Closed with the slide.
      self._handle = self._files.enter_context(self._open())
      self.width, self.height = self._handle.dimensions
      self.level_downsamples = self._handle.level_downsamples
      self.level_dimensions = self._handle.level_dimensions
      self.mpp, self.mpp_source = pixel_size(
        self.path.name, self._handle.properties, default_mpp, mpp
      )
      self._tiff = self._open_tiff(reader)
      if reader == 'tifffile' and not self._tiff:
        raise SlideError(
          f'{self.path.name}: tifffile does not read the pixels that OpenSlide'
          ' reads. Leave --reader=tifffile out.'
        )
      self._files = self._files.pop_all()

  def __exit__(self, *exception):
    self.close()

  def close(self):
    self._files.close()

  def _open(self) -> openslide.OpenSlide:
    if fault := files.link_fault(self.path):
      raise SlideError(fault)
    data = self.path.with_suffix('')
    if self.path.suffix.lower() == '.mrxs' and not data.is_dir():
      raise SlideError(
        f'{self.path}: there is no folder {data.name} beside it, which has the'
        ' pixels. Copy it, too.'
      )
    try:
      handle = openslide.OpenSlide(first_file(self.path))
    except (openslide.OpenSlideError, OSError) as error:
      raise SlideError(
        f'{self.path.name}: OpenSlide cannot open it '
        f'({str(error) or type(error).__name__}). If it is of a format that'
        f' OpenSlide reads, copy {self.path} again, else convert it or leave it'
        ' out.'
      ) from error
    # OpenSlide ends the process if there is no memory for one of its tiles.
    for level in range(handle.level_count):
      tile = f'openslide.level[{level}].tile-'
      sides = (handle.properties.get(tile + n, 0) for n in ('width', 'height'))
      width, height = map(int, sides)
      if 4 * width * height > _LARGEST_TILE:
        handle.close()
        raise self._damaged(
          f'tiles of {width} x {height} pixels are said to be in it'
        )
    return handle

  def _damaged(self, what: str) -> SlideError:
    return SlideError(
      f'{self.path.name}: {what}. The file is damaged: copy {self.path} again'
      ' or leave it out.'
    )

  def _open_tiff(self, reader: str) -> TiffReader | None:
    """Returns what reads the slide's tiles if it is a TIFF, and they are equal.

    Those in the middle of every level are compared with OpenSlide's.

    Raises:
      SlideError: if the file says that a tile is longer than all of it.
    """
    strict = reader == 'auto'
    try:
      tiff = TiffReader(self.path, self.level_dimensions, strict)
      self._files.callback(tiff.close)
    except LengthError as error:
      raise self._damaged(str(error)) from error
    except Exception:  # It is no TIFF, or none that tifffile knows.
      return None
    if reader == 'openslide' or not tiff.has(0):
      return None
    levels = filter(tiff.has, range(len(self.level_dimensions)))
    with contextlib.suppress(Exception):  # Whoever reads there will be told.
      if all(self._is_alike(tiff, level) for level in levels):
        return tiff
    return None

  def _is_alike(self, tiff: TiffReader, level: int) -> bool:
    """Whether the middle of a level is the same by both."""
    size, factor = self.level_dimensions[level], self.level_downsamples[level]
    corner = [max(n // 2 - 128, 0) for n in size]
    place = [n * factor for n in corner]
    if any(n % 1 for n in place):  # Only the first pixel is on one of level 0.
      corner = place = [0, 0]
    sides = [min(256, n) for n in size]
    pixels = tiff.read(level, *corner, *sides).astype(int)
    off = pixels - self._read_by_openslide((*map(int, place), level, *sides))
    return np.abs(off).max() <= _ROUNDING

  def read(
    self,
    x: int,
    y: int,
    level: int,
    width: int,
    height: int,
    *,
    white: bool = True,
  ) -> np.ndarray:
    """Returns a region: red, green and blue, uint8 [height, width, 3].

    Where the file declares that it holds no data (transparent pixels of a
    sparse pyramid) the region is white, or black; nothing else is filled in.

    Args:
      x, y: upper left corner, in level-0 pixels.
      level: pyramid level.
      width, height: of the region, in pixels of the level.
      white: whether pixels that the file does not hold are white.

    Raises:
      SlideError: if the region lies outside the slide or cannot be read.
    """
    factor = self.level_downsamples[level]
    across, down = self.level_dimensions[level]
    slack = factor if level else 0  # Levels are rounded to whole pixels.
    # And a narrow one has, in all its length, the mean factor of both sides.
    if (
      min(x, y) < 0
      or x + width * factor > max(self.width, across * factor) + slack
      or y + height * factor > max(self.height, down * factor) + slack
    ):
      raise SlideError(
        f'{self.path.name}: {width} x {height} px of level {level} at ({x}, '
        f'{y}) lie outside its {self.width} x {self.height} px.'
      )
    left, top = x / factor, y / factor
    # Between pixels OpenSlide interpolates; and it names what is damaged.
    inside = left + width <= across and top + height <= down
    whole = inside and left % 1 == top % 1 == 0
    if self._tiff and self._tiff.has(level) and whole:
      with contextlib.suppress(Exception):
        return self._tiff.read(level, int(left), int(top), width, height)
    return self._read_by_openslide((x, y, level, width, height), white)

  def _read_by_openslide(
    self, region: tuple[int, int, int, int, int], white: bool = True
  ) -> np.ndarray:
    """Returns a region; see `read`.

    An OpenSlide handle is dead after an error, so the slide is opened again and
    the region read a second time before it is given up.
    """
    x, y, level, width, height = region
    # Blue, green, red and alpha, by which the colours are multiplied.
    out = np.empty((height, width, 4), np.uint8)
    try:
      _read_region(self._handle, x, y, level, out)
    except openslide.OpenSlideError:
      self._read_again(x, y, level, out)
    alpha = out[..., 3:]
    if white and alpha.min() < 255:
      out[..., :3] += 255 - alpha
    image = Image.frombuffer('RGB', (width, height), out, 'raw', 'BGRX', 0, 1)
    return np.asarray(image)

  def _read_again(self, x: int, y: int, level: int, out: np.ndarray):
    """Reads from a handle of its own, which then replaces the dead one.

    That is closed with the slide: other threads may be reading from it.
    """
    with self._lock:
      handle = self._open()
      try:
        _read_region(handle, x, y, level, out)
      except openslide.OpenSlideError as error:
        handle.close()
        raise self._damaged(
          f'{out.shape[1]} x {out.shape[0]} px of level {level} at ({x}, {y})'
          f' cannot be read ({error})'
        ) from error
      self._handle = self._files.enter_context(handle)

  def level_for(self, downsample: float) -> int:
    """Returns the smallest level that is not coarser than `downsample`."""
    fine = [d <= downsample for d in self.level_downsamples]
    return max(0, sum(fine) - 1)

  def thumbnail(self, mpp: float) -> np.ndarray:
    """Returns the whole slide, uint8 [H, W, 3], at about `mpp` um/px.

    H and W are the nearest whole numbers, at least 1, and the pixels cover the
    slide exactly, so the scales are `height / H` and `width / W` level-0
    pixels. Blocks of at most 4096 x 4096 pixels are read and averaged in turn,
    so memory does not grow with a slide that has no small level.

    Raises:
      SlideError: if a block cannot be read.
    """
    shape = [
      max(1, round(n * self.mpp / mpp)) for n in (self.height, self.width)
    ]
    level = self.level_for(mpp / self.mpp)
    factor = self.level_downsamples[level]
    level_width, level_height = self.level_dimensions[level]
    scale_y, scale_x = level_height / shape[0], level_width / shape[1]
    image = np.empty((*shape, 3), np.uint8)
    for top, bottom, y0, y1 in _blocks(shape[0], scale_y, level_height):
      for left, right, x0, x1 in _blocks(shape[1], scale_x, level_width):
        corner = int(x0 * factor), int(y0 * factor)
        region = self.read(*corner, level, x1 - x0, y1 - y0)
        block = Image.fromarray(region).resize(
          (right - left, bottom - top),
          Image.Resampling.BOX,
          box=(
            left * scale_x - x0,
            top * scale_y - y0,
            min(right * scale_x - x0, x1 - x0),
            min(bottom * scale_y - y0, y1 - y0),
          ),
        )
        image[top:bottom, left:right] = np.asarray(block)
    return image


def _read_region(
  handle: openslide.OpenSlide, x: int, y: int, level: int, out: np.ndarray
):
  """Calls OpenSlide's C function, which writes to `out` directly.

  The function of the same name in the Python binding copies the pixels twice
  more on their way into an array, a tenth of the time of reading.
  """
  height, width, _ = out.shape
  pixels = out.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
  lowlevel._read_region(handle._osr, pixels, x, y, level, width, height)


def _blocks(
  outputs: int, scale: float, limit: int
) -> Iterator[tuple[int, int, int, int]]:
  """Yields (first, past the last output, first, past the last input pixel)."""
  step = max(1, int(_BLOCK / scale))
  for start in range(0, outputs, step):
    stop = min(start + step, outputs)
    yield (
      start,
      stop,
      math.floor(start * scale),
      min(math.ceil(stop * scale), limit),
    )


def scale_bar(width: float, pixels: float) -> tuple[float, str]:
  """Returns the um of a bar for a picture, and what to write below it.

  That is the length and the magnification, 10 / (um per pixel): 10x is 1 um.

  Args:
    width: of the picture, um.
    pixels: of its width.
  """
  unit = 10 ** math.floor(math.log10(width / 3))  # Rounded, it may be above.
  length = unit * max(n for n in (0.5, 1, 2, 5) if n * unit <= width / 3)
  text = f'{length:g} µm' if length < 1000 else f'{length / 1000:g} mm'
  return length, f'{text}, {10 * pixels / width:.2g}x'


def first_file(path: Path) -> Path:
  """Returns what OpenSlide is given: of a DICOM folder its first file."""
  if not path.is_dir():
    return path
  return next(iter(files.listed(path, {'.dcm'}, '*')), path)


def corner(path: Path) -> tuple[int, int]:
  """Returns where QuPath's image of a slide begins, level-0 pixels (x, y).

  It shows the part that OpenSlide says was scanned: of MIRAX, SCN and other
  formats that know of glass around it not all of level 0.
  """
  # Whoever reads a slide that cannot be opened is told.
  with contextlib.suppress(openslide.OpenSlideError, OSError):
    with openslide.OpenSlide(first_file(path)) as handle:
      bounds = 'openslide.bounds-x', 'openslide.bounds-y'
      return tuple(int(handle.properties.get(name, 0)) for name in bounds)
  return 0, 0


def slide_id(path: Path | str) -> str:
  """Returns the file name less its last extension, if that is a slide's.

  'TCGA-3C.01Z.svs' gives 'TCGA-3C.01Z', '007.tiff' gives '007', and a DICOM
  folder 'case.3' keeps its whole name. Accents are as tables have them.
  """
  path = Path(path)
  is_file = path.suffix.lower() in EXTENSIONS
  return files.clean(path.stem if is_file else path.name)


def digest(path: Path) -> str:
  """Returns a hash that tells a slide from others of its name.

  It is of the edges of the file, or of those of all files of a DICOM folder, or
  of the folder of MIRAX: its .mrxs is a picture of the label, or empty.
  """
  folder = path.with_suffix('') if path.suffix.lower() == '.mrxs' else path
  parts = [path]
  if folder.is_dir():
    parts = sorted(p for p in folder.iterdir() if p.is_file())
  edges = ''.join(map(files.hash_of_edges, parts))
  return hashlib.sha256(edges.encode()).hexdigest()[:16]


def list_slides(folder: Path | str) -> list[Path]:
  """Returns every slide under a folder, sorted by path.

  Files count by extension, in subfolders and linked folders too; names that
  start with a dot are ignored. What OpenSlide does not open but may have been
  meant as a slide, and links to what is not there, are warned of by name; such
  a link is listed if it has the extension of a slide. The DICOM files of one
  series are one slide: it is named by their folder if that lies below `folder`
  and holds no other slide, and by the first file of the series otherwise.

  Raises:
    SlideError: if the folder is absent or holds no slide, or two slides have
      the same id, so that their features would overwrite each other.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise SlideError(f'{folder}: no such folder of slides. Check --slides_dir.')
  slides, dicom, dicom_slides = [], collections.defaultdict(list), []
  others = []
  for path in files.listed(folder):
    kind = path.suffix.lower()
    if kind == '.dcm' and not files.broken(path):
      dicom[path.parent].append(path)
    else:
      (slides if kind in EXTENSIONS - {'.dcm'} else others).append(path)
  for parent, paths in dicom.items():
    series = _first_of_each_series(paths)
    shared = any(slide.parent == parent for slide in slides)
    alone = parent != folder and len(series) == 1 and not shared
    dicom_slides += [parent] if alone else series
  ids = {}
  for path in sorted(slides + dicom_slides):
    other = ids.setdefault(slide_id(path), path)
    if other != path:
      raise SlideError(
        f'{path.name}: has the same slide id, {slide_id(path)!r}, as {other}. '
        'Rename one of them.'
      )
  if not ids:
    names = files.first_of([path.name for path in others]) or 'nothing'
    raise SlideError(
      f'{folder}: holds no slides. Found {names}. Names of slides end in'
      f' {", ".join(sorted(EXTENSIONS))}.'
    )
  # The pictures beside a .vms are parts of it, those with a slide's name its.
  parts = {path.parent for path in slides if path.suffix.lower() == '.vms'}
  odd = [
    path.name
    for path in others
    if files.broken(path)
    or (
      (
        path.suffix.lower() in _OTHERS
        # As a.svs.part, of a download that was stopped.
        or Path(path.stem).suffix.lower() in EXTENSIONS
      )
      and slide_id(path.stem) not in ids
      and path.parent not in parts
    )
  ]
  if odd:
    warnings.warn(
      f'{folder}: left out, as OpenSlide does not open such files or they are'
      f' links to what does not exist: {files.first_of(odd)}',
      stacklevel=2,
    )
  return list(ids.values())


def _first_of_each_series(paths: list[Path]) -> list[Path]:
  """Returns the first DICOM file of each series; an unreadable one is kept."""
  first = {}
  for path in paths:
    try:
      with openslide.OpenSlide(path) as handle:
        key = handle.properties['openslide.quickhash-1']  # Of the series.
    except (openslide.OpenSlideError, OSError, KeyError):
      key = path  # Listed, so that whoever opens it reports it.
    first.setdefault(key, path)
  return list(first.values())


def pixel_size(
  name: str,
  properties: Mapping[str, str],
  default_mpp: float | None,
  mpp: float | None = None,
) -> tuple[float, str]:
  """Returns the level-0 scale, um/px, and where it comes from.

  Tried in turn: `mpp`, OpenSlide's own figure, the TIFF resolution tags, and
  `default_mpp`. A figure outside `MPP_RANGE` counts as absent: 72 dpi, for
  instance, is what image editors write who know no scale.

  Args:
    name: of the slide, for messages.
    properties: OpenSlide's properties.
    default_mpp: um/px of a slide that does not state it, or None.
    mpp: um/px of this slide, whatever it states, or None.

  Raises:
    SlideError: if no source states a plausible scale.
  """
  number = functools.partial(_number, properties)
  unit = _TIFF_UNITS.get(properties.get('tiff.ResolutionUnit'), math.nan)
  stated = {
    'mpp_csv': [mpp or math.nan] * 2,
    'openslide': [number(f'openslide.mpp-{a}') for a in 'xy'],
    'tiff': [unit / (number(f'tiff.{a}Resolution') or math.nan) for a in 'XY'],
    'default_mpp': [default_mpp or math.nan] * 2,
  }
  least, most = MPP_RANGE
  usable = {
    source: pair
    for source, pair in stated.items()
    if all(least <= value <= most for value in pair)
  }
  for source, (x, y) in usable.items():
    mean, odd = (x + y) / 2, []
    own = sum(usable.get('openslide', usable.get('tiff', (x, y)))) / 2
    if abs(x - y) > _ANISOTROPY * mean:
      odd.append(
        f'{x:g} um/px across but {y:g} um/px down ({source}). The mean is used,'
        ' and tiles are distorted by that much.'
      )
    power, (low, high) = number('openslide.objective-power'), SCANNER_MPP
    if abs(own / mean - 1) > _POWER:
      odd.append(
        f'{mean:g} um/px ({source}), but the slide states {own:g}. The former'
        ' is used. Is it a mistake?'
      )
    elif not low <= mean <= high:
      odd.append(
        f'{mean:g} um/px ({source}), where scanners have {low:g} to {high:g}.'
        ' Is it a mistake?'
      )
    # An objective of 40x gives 0.25 um/px on all common scanners.
    elif power > 0 and abs(mean * power / 10 - 1) > _POWER:
      odd.append(
        f'{mean:g} um/px ({source}), but an objective of {power:g}x, which'
        f' gives about {10 / power:g}. The former is used.'
      )
    for text in odd:
      warnings.warn(f'{name}: {text}', stacklevel=4)
    return mean, source
  figures = ', '.join(
    f'{source}: {x:g} x {y:g}'
    for source, (x, y) in stated.items()
    if not math.isnan(x + y)
  )
  raise SlideError(
    f'{name}: no usable um/px of level 0 (found {figures or "none"}; usable'
    f' are {least:g} to {most:g}). Pass --slide_mpp or --slide_mpp_csv.'
  )


def _number(properties: Mapping[str, str], key: str) -> float:
  """Returns a property as a number, NaN if it is absent or is not one."""
  try:
    return float(properties.get(key, 'nan'))
  except ValueError:
    return math.nan


def read_mpp_csv(path: Path | str) -> dict[str, float]:
  """Returns um/px of level 0 by slide id; see `read_numbers`.

  A table of labels may have the column, mpp.
  """
  rows = read_numbers(path, ('mpp',), MPP_RANGE, ' um/px')
  return {slide: row['mpp'] for slide, row in rows.items()}


def read_numbers(
  path: Path | str,
  columns: Sequence[str],
  bounds: tuple[float, float] = (0, math.inf),
  unit: str = '',
) -> dict[str, dict[str, float]]:
  """Returns numbers by slide id and column, as a user gives them.

  Args:
    path: CSV with the column slide_id and these; others are ignored, and so are
      empty cells.
    columns: of the numbers.
    bounds: the least and the largest that they may be.
    unit: of the bounds, for messages.

  Raises:
    SlideError: if the file cannot be read, or naming all wrong rows.
  """
  numbers, faults, (low, high) = {}, [], bounds
  for line, row in files.read_csv(path, ('slide_id', *columns), SlideError):
    slide = row['slide_id']
    if any(map(str.strip, row.get(None, ()))):
      faults.append(
        f'row {line}: more cells than the header: write 0.5, not 0,5'
      )
    for name in filter(row.get, columns):
      value, given = _number(row, name), f'{name} {row[name]!r}'
      if not low <= value <= high:
        faults.append(f'row {line}: {given}, not {low:g} to {high:g}{unit}')
      elif not slide:
        faults.append(f'row {line}: empty slide_id')
      elif numbers.setdefault(slide, {}).setdefault(name, value) != value:
        faults.append(f'row {line}: slide {slide} has another {name} above')
  if faults:
    raise SlideError(f'{path}: ' + '; '.join(faults))
  return numbers
