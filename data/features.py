"""Finds, reads and writes the feature files of slides, in users' layouts."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import errno
import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data import files, torch_files

# What `write` insists on, so that mixed folders can be told apart later.
ATTRIBUTES = (
  'encoder',
  'patch_size',
  'patch_size_level0',
  'mpp',
  'level0_mpp',
  'level0_width',
  'level0_height',
  'overlap',
)
_SEEK_FAULTS = (None, errno.EINVAL)  # A damaged file's, not the disk's.
_H5, _PT = '.h5', '.pt'
# The first of these that is there, in letters of any kind, is a slide's.
READ = _H5, '.hdf5', _PT
_STAMP = 'feats'
_NAMES = ('features', _STAMP)  # The first is CLAM's and TRIDENT's.
_TRIDENT = 'features_'  # And the encoder's name: a folder.
_DEPTHS = (1, 2)  # Of folders between the one given and the files.
_ADVICE = {
  _H5: 'not a complete HDF5 file ({}). Delete it and extract the slide again.',
  _PT: 'no tensor that can be read without torch ({}). Save the features alone,'
  ' as a float32 tensor [N, D]: torch.save(features, path). Or use the .h5 file'
  ' of the slide.',
}
# A dataset above so many bytes may be so many times larger than what is stored
# of it: more than compression saves of features, so that a few bytes cannot ask
# for all memory there is.
_SMALL, _EXPANSION = 2**26, 100
_MOST = 1000  # Numbers or texts in an attribute that is read.


class FeatureError(ValueError):
  """A feature file cannot be used: its path, what was found, what to do."""


@dataclasses.dataclass(frozen=True)
class FeatureFile:
  """The features of one slide.

  Attributes:
    path: where they were read.
    features: float32 [N, D], finite, N > 0.
    coords: upper left corners of the tiles, level-0 pixels (x, y), int32
      [N, 2]; None if the file has none, or has micrometres and no scale.
    attributes: of the file, its features and its coordinates, as Python values,
      see `unified`. `patch_size_level0` is the coordinates' spacing, and
      `patch_size_level0_source` says so, where the file is silent.
  """

  path: Path
  features: np.ndarray
  coords: np.ndarray | None
  attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Header:
  """N, D, type of the numbers, and attributes of a feature file."""

  length: int
  width: int
  attributes: dict[str, Any]
  dtype: str = dataclasses.field(compare=False)  # that holds them: 16 or 32


def write(
  path: Path | str,
  features: np.ndarray,
  coords: np.ndarray,
  attributes: Mapping[str, Any],
) -> None:
  """Writes a feature file in the layout of CLAM and TRIDENT.

  The datasets are `features` [N, D], in the type given, and `coords`, int32 [N,
  2]. The attributes lie on the file and again on `coords`, where TRIDENT's
  readers look. The file is written beside its place, flushed to disk and
  renamed: at any moment it is absent, old or complete.

  Args:
    path: the file, <slide_id>.h5.
    features: float16 or float32 [N, D], finite, N > 0.
    coords: upper left corners of the tiles, level-0 pixels, [N, 2].
    attributes: at least those of `ATTRIBUTES`.

  Raises:
    FeatureError: if any of this does not hold; nothing is written then.
  """
  path = Path(path)
  features, coords = np.asarray(features), np.asarray(coords)
  missing = [name for name in ATTRIBUTES if name not in attributes]
  if missing:
    raise FeatureError(f'{path}: attributes missing: {", ".join(missing)}.')
  _check_layout(path, features, coords)
  if features.dtype not in (np.float16, np.float32):
    raise FeatureError(
      f'{path}: features are {features.dtype}. Write float16 or float32.'
    )
  _check_values(path, features, coords)
  with files.replacing(path) as part, h5py.File(part, 'w') as file:
    file['features'] = features
    file['coords'] = coords.astype(np.int32)
    file.attrs.update(attributes)
    file['coords'].attrs.update(attributes)


def read(path: Path | str, level0_mpp: float | None = None) -> FeatureFile:
  """Returns the features of one slide, checked.

  Features are called `features` (CLAM, TRIDENT) or `feats` (STAMP), are of 16,
  32 or 64 bits, and have shape [N, D] or [1, N, D]. Coordinates are level-0
  pixels, or micrometres where the file has the attribute unit='um' (STAMP);
  these are divided by the file's attribute `level0_mpp` or, failing that, by
  the argument, since STAMP does not store the scale of the slide. A .pt file
  (CLAM's pt_files) is one tensor [N, D] and has no coordinates.

  Args:
    path: the file, .h5, .hdf5 or .pt.
    level0_mpp: um/px of the slide's level 0, if the caller knows it.

  Raises:
    FeatureError: if the file cannot be opened, has no features, is empty, holds
      NaN or infinity, or has not one coordinate per row.
  """
  _, bag = steps(files.place(path), level0_mpp)
  return bag


def header(path: Path | str) -> Header:
  """Returns what a feature file states about itself, reading no features.

  Raises:
    FeatureError: if the file cannot be opened, has no features, or has not one
      coordinate per row.
  """
  with contextlib.closing(steps(files.place(path))) as parts:
    return next(parts)


def steps(
  path: Path, level0_mpp: float | None = None
) -> Iterator[Header | FeatureFile]:
  """Yields what `header` and then what `read` returns, of a file opened once.

  Args:
    path: see `read`, as `level0_mpp`.
  """
  with _opened(path) as (dataset, places, attributes):
    kind = 'float16' if dataset.dtype.itemsize == 2 else 'float32'
    yield Header(*dataset.shape[-2:], unified(attributes), kind)
    with np.errstate(over='ignore'):  # Infinity is refused below.
      features = dataset[()].astype(np.float32, copy=False)
    features = features.reshape(features.shape[-2:])
    coords = None if places is None else places[()].reshape(-1, 2)
  unit = attributes.get('unit')
  mpp = attributes.get('level0_mpp', level0_mpp)
  if unit == 'unknown' or (unit == 'um' and mpp is None):
    coords = None  # Pixels of which level, or micrometres of what scale.
  elif unit == 'um' and coords is not None:
    if not isinstance(mpp, int | float) or not 0 < mpp < np.inf:
      raise FeatureError(f'{path}: level0_mpp is {mpp!r}. Set it to um/px.')
    coords = coords / mpp
    del attributes['unit']
    attributes['level0_mpp'] = mpp
  _check_values(path, features, coords)
  attributes = unified(attributes)
  if coords is not None:
    coords = np.rint(coords).astype(np.int32)
    if 'patch_size_level0' not in attributes and (side := spacing(coords)):
      attributes['patch_size_level0'] = side
      attributes['patch_size_level0_source'] = 'spacing of coords'
  yield FeatureFile(path, features, coords, attributes)


def digest(path: Path) -> str:
  """Returns a hash of all bytes of a file."""
  return files.hash_of_edges(path, middle=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
  """Opens a file, and names it in whatever error there is.

  Yields:
    features and, if any, coordinates, whose shapes and types are checked and
    whose numbers `[()]` reads; and the attributes, see `_attributes`.
  """
  remote = not isinstance(path, Path)
  try:
    if not path.exists():
      absent = f'{path}: no such file. Extract the slide first.'
      raise FeatureError((not remote and files.link_fault(path)) or absent)
    if path.suffix.lower() == _PT:
      tensor = torch_files.load(path)
      if not isinstance(tensor, torch_files.Tensor):
        raise ValueError(f'it holds {type(tensor).__name__}, not one tensor')
      _check_layout(path, tensor, None)
      yield tensor, None, _attributes(path, {})
    else:
      # Network disks often lack locks.
      with (
        path.open('rb') if remote else contextlib.nullcontext(path) as source,
        h5py.File(source, 'r', locking=False) as file,
      ):
        parts = {name: part(file, name, path) for name in (*_NAMES, 'coords')}
        features = next(filter(None, map(parts.get, _NAMES)), None)
        if not isinstance(features, h5py.Dataset):
          raise FeatureError(
            f'{path}: has neither {" nor ".join(_NAMES)} but '
            f'{", ".join(file) or "nothing"}. Is it a file of coordinates only?'
          )
        coords = parts['coords']
        _check_layout(path, features, coords)
        yield features, coords, _attributes(path, parts | {'/': file})
  except FeatureError:
    raise
  except Exception as error:  # Damaged files raise errors of many kinds.
    reason = str(error) or type(error).__name__
    fault = _ADVICE.get(path.suffix.lower(), _ADVICE[_H5]).format(reason)
    if isinstance(error, MemoryError):
      fault = f'does not fit in memory ({reason}).'
    elif remote:
      fault = (
        f'cannot be read ({reason}). Try again, or copy or mount the bucket; if'
        ' the copy cannot be read either, extract the slide again.'
      )
    elif isinstance(error, OSError) and error.errno not in _SEEK_FAULTS:
      reason = os.strerror(error.errno)  # HDF5 says it with pointers.
      fault = f'cannot be read ({reason}). See to its permissions and its disk.'
    raise FeatureError(f'{path}: {fault}') from error


def _check_layout(path: Path, features: Any, coords: Any) -> None:
  """Raises FeatureError unless shapes and types are those of a slide's arrays.

  Axes of length 1 before the last two do not count.
  """
  shape, dtype = features.shape or (), features.dtype
  size = math.prod(shape[-2:])
  if len(shape) < 2 or not size or math.prod(shape) != size:
    raise FeatureError(
      f'{path}: features are {dtype} {list(shape)}. [N, D] or [1, N, D] with at'
      ' least one row and one column is needed.'
    )
  if dtype.kind != 'f' or dtype.itemsize not in (2, 4, 8):
    raise FeatureError(
      f'{path}: features are {dtype}. Use float16, float32 or float64.'
    )
  if coords is None:
    return
  rows, places = shape[-2], getattr(coords, 'shape', None) or ()
  if (
    places[-2:] != (rows, 2)
    or math.prod(places) != 2 * rows
    or coords.dtype.kind not in 'iuf'
  ):
    raise FeatureError(
      f'{path}: coords have shape {list(places)} for {rows} rows of features, '
      'not numbers [N, 2], one (x, y) per row.'
    )


def part(
  file: h5py.File, name: str, path: Path | None = None
) -> h5py.Dataset | h5py.Group | None:
  """Returns what a file of HDF5 has of a name; None if nothing.

  Args:
    file: an open file.
    name: of a dataset or group.
    path: of the file, for messages, where it was not opened by that.

  Raises:
    FeatureError: if it is a link, or if it is a dataset that lies in other
      files, does not fit in memory, or of which less is stored than its shape
      announces. A writer that was killed leaves rows that HDF5 would read as
      zeros.
  """
  path, link = path or file.filename, file.get(name, getlink=True)
  if not isinstance(link, h5py.HardLink | None):
    to = getattr(link, 'filename', link.path)
    raise FeatureError(
      f'{path}: {name} is a link to {to}. Copy what it holds into this file.'
    )
  dataset = link and file[name]
  shape = getattr(dataset, 'shape', None)  # Groups and nothing have none.
  if shape is None or 0 in shape:
    return dataset
  if dataset.external or dataset.is_virtual:
    raise FeatureError(
      f'{path}: {name} lies in other files. Copy it into this one.'
    )
  how = dataset.id.get_create_plist()
  steps = (how.get_filter(i)[0] for i in range(how.get_nfilters()))
  if not all(map(h5py.h5z.filter_avail, steps)):
    raise FeatureError(
      f'{path}: {name} is compressed by a plugin of HDF5 that is not installed.'
      ' Write it with gzip, or without compression.'
    )
  # A piece is read as a whole, and may be larger than all of it.
  numbers = max(math.prod(shape), math.prod(dataset.chunks or ()))
  size = numbers * dataset.dtype.itemsize
  stored = dataset.id.get_storage_size()
  parts, written = 1, int(bool(stored))
  if dataset.chunks:
    pieces = zip(shape, dataset.chunks, strict=True)
    parts = math.prod(-(-n // chunk) for n, chunk in pieces)
    written = dataset.id.get_num_chunks()
  if written < parts or size > max(_SMALL, _EXPANSION * stored):
    raise FeatureError(
      f'{path}: {name} {list(shape)} was never written in full'
      f' ({stored} of {size} bytes). Delete the file and make it again.'
    )
  if size > files.memory():
    raise FeatureError(
      f'{path}: {name} {list(shape)} does not fit in memory ({size} of'
      f' {files.memory()} bytes). Extract fewer tiles of the slide.'
    )
  return dataset


def _check_values(
  path: Path, features: np.ndarray, coords: np.ndarray | None
) -> None:
  """Raises FeatureError where numbers are not those of a slide."""
  bad = np.flatnonzero(~np.isfinite(features).all(1))
  if len(bad):
    raise FeatureError(
      f'{path}: NaN or infinity in {len(bad)} of {len(features)} rows, first '
      f'in row {bad[0]}. Extract the slide again.'
    )
  if coords is not None and not (np.abs(coords) < 2**31).all():
    raise FeatureError(
      f'{path}: coords are not all finite and below 2**31. Extract the slide '
      'again.'
    )


def _attributes(path: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
  """Returns all attributes; those of the file win over the datasets'.

  Bytes become text, arrays lists. TRIDENT names the encoder in the folder
  alone. `unit` of STAMP's files, which early ones lack, is added: 'um' where
  the tiles' side is in micrometres, else 'unknown'.
  """
  attributes = {}
  if path.parent.name.startswith(_TRIDENT):
    attributes['encoder'] = path.parent.name.removeprefix(_TRIDENT)
  for name in ('coords', *reversed(_NAMES), '/'):
    held = parts[name].attrs if parts.get(name) else {}
    for key in held:
      of = held.get_id(key)
      if math.prod((*(of.shape or ()), *of.dtype.shape)) > _MOST:
        continue
      value = np.asarray(held[key])
      if value.dtype.kind == 'S':
        value = np.char.decode(value, 'utf-8', 'replace')
      attributes[key] = value.tolist()
  if not parts.get(_NAMES[0]) and 'patch_size_level0' not in attributes:
    known = 'tile_size_um' in attributes
    attributes.setdefault('unit', 'um' if known else 'unknown')
  return attributes


def unified(attributes: dict[str, Any]) -> dict[str, Any]:
  """Adds `encoder`, `patch_size`, `mpp` and `patch_size_level0` where implied.

  STAMP calls them extractor, tile_size_px and tile_size_um; what a file states
  under our names is kept. TRIDENT's magnifications are nominal: no mpp is made
  of them.

  Args:
    attributes: as stored, as Python values.

  Returns:
    All of them, and those that follow from them.
  """

  def size(name: str) -> float | None:
    """Returns a positive number, or None if there is none of that name."""
    value = attributes.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
      return None
    return value if 0 < value < math.inf else None

  side, micrometres = size('tile_size_px'), size('tile_size_um')
  level0_mpp = size('level0_mpp')
  implied = {'encoder': attributes.get('extractor'), 'patch_size': side}
  if side and micrometres:
    implied['mpp'] = round(micrometres / side, 6)
  if micrometres and level0_mpp:
    pixels = micrometres / level0_mpp
    # Coordinates in float32 made a whole number inexact.
    whole = abs(pixels - round(pixels)) < 1e-2
    implied['patch_size_level0'] = round(pixels) if whole else pixels
  return {name: v for name, v in implied.items() if v is not None} | attributes


def spacing(coords: np.ndarray) -> int | None:
  """Returns the commonest distance between neighbours of a row or column.

  Where a file does not state the tiles' side in level-0 pixels (CLAM), this is
  it, or less where tiles overlap. Each piece of tissue may have a grid of its
  own, so only tiles of one row or column are compared.

  Args:
    coords: upper left corners, int [N, 2].

  Returns:
    None where no two distances agree.
  """
  gaps = []
  for across, along in (coords.T, coords.T[::-1]):
    order = np.lexsort((along, across))
    gaps.append(np.diff(along[order])[np.diff(across[order]) == 0])
  gaps = np.concatenate(gaps)
  values, counts = np.unique(gaps[gaps > 0], return_counts=True)
  return int(values[counts.argmax()]) if counts.max(initial=0) > 1 else None


class Folder:
  """A folder of feature files, <slide_id>.h5, .hdf5 or, failing that, .pt.

  Slide ids are file names less that last extension: they keep dots and leading
  zeros. The files are those that were there when it was opened.
  """

  def __init__(self, path: Path | str):
    """Opens the folder at or below `path`, see `locate`.

    Raises:
      FeatureError: if there is none, or several.
    """
    self.path, self.cases = locate(files.place(path)), {}  # As of `Packed`.
    # By slide, what `data.inspection` found: it is not asked of the file again.
    self.seen: dict[str, Any] = {}
    kind = lambda path: (-READ.index(path.suffix.lower()), path.name)
    paths = sorted(_feature_files(self.path), key=kind)
    self._files = {files.clean(path.stem): path for path in paths}

  def __contains__(self, slide_id: str) -> bool:
    return slide_id in self._files

  def ids(self) -> list[str]:
    """Returns the ids of all files, sorted."""
    return sorted(self._files)

  def file(self, slide_id: str) -> Path:
    """Returns where a slide's file is, or would be."""
    return self._files.get(slide_id, self.path / f'{slide_id}{_H5}')

  def header(self, slide_id: str) -> Header:
    """See `data.features.header`."""
    seen = self._seen(slide_id)
    return seen.header if seen else header(self.file(slide_id))

  def read(self, slide_id: str, level0_mpp: float | None = None) -> FeatureFile:
    """See `data.features.read`."""
    if (seen := self._seen(slide_id)) and seen.fault:
      raise FeatureError(seen.fault)
    return read(self.file(slide_id), level0_mpp)

  def digest(self, slide_id: str) -> str:
    """See `data.features.digest`."""
    if (seen := self._seen(slide_id)) and seen.digest:
      return seen.digest
    return digest(self.file(slide_id))

  def _seen(self, slide_id: str) -> Any:
    """Returns the inspection of a slide, if any; raises if it could not."""
    seen = self.seen.get(slide_id)
    if seen and not seen.header:
      raise FeatureError(seen.fault)
    return seen


def locate(path: Path) -> Path:
  """Returns the folder of feature files at or below a path.

  The path itself, if it holds .h5, .hdf5 or .pt files; else the only folder, at
  most two levels down, that is called h5_files (CLAM; or pt_files, where it is
  not beside h5_files) or features_<encoder> (TRIDENT), or whose first file has
  features (STAMP). The path, again, where there is none: its slides are then
  reported missing.

  Raises:
    FeatureError: if there is no such folder, or naming those below it, if they
      are several.
  """
  try:
    there = path.is_dir()
  except Exception as e:  # Buckets raise errors of many kinds.
    raise FeatureError(
      f'{path}: cannot be reached ({e}). Copy or mount the bucket.'
    ) from e
  if not there:
    raise FeatureError(f'{path}: no such folder of features. Check its path.')
  if any(_feature_files(path)):
    return path
  folders = (f for i in _DEPTHS for f in path.glob('/'.join('*' * i)))
  below = sorted(f for f in folders if _holds_features(f, path))
  if len(below) > 1:
    names = '\n  '.join(map(str, below))
    raise FeatureError(
      f'{path}: holds {len(below)} folders of features. Give one of them as'
      f' --features_dir:\n  {names}'
    )
  return below[0] if below else path


def _holds_features(folder: Path, root: Path) -> bool:
  hidden = any(p.startswith('.') for p in folder.relative_to(root).parts)
  first = min(_feature_files(folder), default=None)
  if hidden or first is None:
    return False
  if folder.name == 'pt_files':
    return not any(_feature_files(folder.parent / 'h5_files'))
  if folder.name == 'h5_files' or folder.name.startswith(_TRIDENT):
    return True
  with contextlib.suppress(FeatureError):
    return header(first).width > 0
  return False


def _feature_files(folder: Path) -> Iterator[Path]:
  """Yields the feature files of a folder, in no order; none of a file."""
  with contextlib.suppress(OSError):
    for path in folder.iterdir():
      if path.suffix.lower() in READ and not path.name.startswith('.'):
        yield path
