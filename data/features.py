"""Reads and writes the feature file of a slide, in the layouts users have."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data import atomic

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
_NAMES = ('features', 'feats')  # CLAM and TRIDENT; STAMP.


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
    attributes: of the file, its features and its coordinates, as Python values.
  """

  path: Path
  features: np.ndarray
  coords: np.ndarray | None
  attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Header:
  """N, D and the attributes of a feature file."""

  length: int
  width: int
  attributes: dict[str, Any]


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
  if features.dtype not in (np.float16, np.float32):
    raise FeatureError(
      f'{path}: features are {features.dtype}; pass float16 or float32.'
    )
  _check(path, features, coords)
  with atomic.replacing(path) as part, h5py.File(part, 'w') as file:
    file['features'] = features
    file['coords'] = coords.astype(np.int32)
    file.attrs.update(attributes)
    file['coords'].attrs.update(attributes)


def read(path: Path | str, level0_mpp: float | None = None) -> FeatureFile:
  """Returns the features of one slide, checked.

  Features are called `features` (CLAM, TRIDENT) or `feats` (STAMP), are float16
  or float32, and have shape [N, D] or [1, N, D]. Coordinates are level-0
  pixels, or micrometres where the file has the attribute unit='um' (STAMP);
  these are divided by the file's attribute `level0_mpp` or, failing that, by
  the argument, since STAMP does not store the scale of the slide.

  Args:
    path: the file.
    level0_mpp: um/px of the slide's level 0, if the caller knows it.

  Raises:
    FeatureError: if the file cannot be opened, has no features, is empty, holds
      NaN or infinity, or has not one coordinate per row.
  """
  path = Path(path)
  with _open(path) as file:
    try:
      dataset = _features(path, file)
      features = dataset[()].reshape(dataset.shape[-2:])
      coords = _read_coords(path, file)
      attributes = _attributes(file, dataset)
    except OSError as error:
      raise _damaged(path, error) from error
  _check(path, features, coords)
  if coords is not None and attributes.get('unit') == 'um':
    mpp = attributes.get('level0_mpp', level0_mpp)
    coords = None if mpp is None else np.rint(coords / mpp)
  if coords is not None:
    coords = coords.astype(np.int32)
  return FeatureFile(path, features.astype(np.float32), coords, attributes)


def header(path: Path | str) -> Header:
  """Returns what a feature file says of itself, reading no features.

  Raises:
    FeatureError: if the file cannot be opened or has no features.
  """
  path = Path(path)
  with _open(path) as file:
    dataset = _features(path, file)
    length, width = dataset.shape[-2:]
    return Header(length, width, _attributes(file, dataset))


def _open(path: Path) -> h5py.File:
  if not path.exists():
    raise FeatureError(f'{path}: no such file; extract the slide first.')
  try:
    return h5py.File(
      path, 'r', locking=False
    )  # Network disks often lack locks.
  except OSError as error:
    raise _damaged(path, error) from error


def _damaged(path: Path, error: OSError) -> FeatureError:
  return FeatureError(
    f'{path}: not a complete HDF5 file ({error}); delete it and extract the '
    'slide again.'
  )


def _features(path: Path, file: h5py.File) -> h5py.Dataset:
  """Returns the dataset of the features, its shape and type checked."""
  for name in _NAMES:
    if isinstance(file.get(name), h5py.Dataset):
      break
  else:
    raise FeatureError(
      f'{path}: has neither {" nor ".join(_NAMES)} but '
      f'{", ".join(file) or "nothing"}; is it a file of coordinates only?'
    )
  dataset = file[name]
  flat = dataset.ndim == 2 or (dataset.ndim == 3 and dataset.shape[0] == 1)
  if not flat or dataset.dtype not in (np.float16, np.float32):
    raise FeatureError(
      f'{path}: {name} is {dataset.dtype} {list(dataset.shape)}; float16 or '
      'float32, [N, D] or [1, N, D], is needed.'
    )
  return dataset


def _read_coords(path: Path, file: h5py.File) -> np.ndarray | None:
  coords = file.get('coords')
  if coords is None:
    return None
  if not isinstance(coords, h5py.Dataset) or coords.dtype.kind not in 'iuf':
    raise FeatureError(f'{path}: coords are not numbers [N, 2].')
  return coords[()].reshape(coords.shape[-2:])


def _attributes(file: h5py.File, features: h5py.Dataset) -> dict[str, Any]:
  """Returns all attributes; those of the file win over the datasets'."""
  holders = [features, file]
  if 'coords' in file:
    holders.insert(0, file['coords'])
  return {
    name: value.item() if isinstance(value, np.generic) else value
    for holder in holders
    for name, value in holder.attrs.items()
  }


def _check(path: Path, features: np.ndarray, coords: np.ndarray | None) -> None:
  """Raises FeatureError unless the arrays can be the features of a slide."""
  if features.ndim != 2 or not features.size:
    raise FeatureError(
      f'{path}: features have shape {list(features.shape)}; [N, D] with at '
      'least one row and one column is needed.'
    )
  bad = np.flatnonzero(~np.isfinite(features).all(1))
  if len(bad):
    raise FeatureError(
      f'{path}: NaN or infinity in {len(bad)} of {len(features)} rows, first '
      f'in row {bad[0]}; extract the slide again.'
    )
  if coords is not None and coords.shape != (len(features), 2):
    raise FeatureError(
      f'{path}: coords have shape {list(coords.shape)} for {len(features)} '
      'rows of features; one (x, y) per row is needed.'
    )
  if coords is not None and not (np.abs(coords) < 2**31).all():
    raise FeatureError(
      f'{path}: coords are not all finite and below 2**31; extract the slide '
      'again.'
    )
