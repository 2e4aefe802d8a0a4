"""Reads and writes the feature file of a slide, in the layouts users have."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data import atomic, feature_attributes, feature_h5, torch_files
from data.feature_h5 import FeatureError

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
SUFFIXES = ('.h5', '.pt')  # Of feature files.


@dataclasses.dataclass(frozen=True)
class FeatureFile:
  """The features of one slide.

  Attributes:
    path: where they were read.
    features: float32 [N, D], finite, N > 0.
    coords: upper left corners of the tiles, level-0 pixels (x, y), int32
      [N, 2]; None if the file has none, or has micrometres and no scale.
    attributes: of the file, its features and its coordinates, as Python values,
      see `feature_attributes.unified`. `patch_size_level0` is the coordinates'
      spacing, and `patch_size_level0_source` says so, where the file is silent.
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
  dtype: str = dataclasses.field(compare=False)  # as stored, 'float16' say


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
  the argument, since STAMP does not store the scale of the slide. A .pt file
  (CLAM's pt_files) is one tensor [N, D] and has no coordinates.

  Args:
    path: the file, .h5 or .pt.
    level0_mpp: um/px of the slide's level 0, if the caller knows it.

  Raises:
    FeatureError: if the file cannot be opened, has no features, is empty, holds
      NaN or infinity, or has not one coordinate per row.
  """
  path = Path(path)
  if path.suffix == '.pt':
    with _torch_errors(path):
      found = torch_files.read(path)
    found = found.reshape(_flat_shape(path, 'the tensor', found.shape))
    _check(path, found, None)
    return FeatureFile(path, found.astype(np.float32), None, {})
  with feature_h5.opened(path) as file:
    dataset = feature_h5.features(path, file)
    held = feature_h5.coords(path, file, dataset.shape[-2])
    features = dataset[()].reshape(dataset.shape[-2:])
    coords = None if held is None else held[()].reshape(held.shape[-2:])
    attributes = feature_h5.attributes(file, dataset)
  if attributes.get('unit') == 'unknown':
    coords = None  # Pixels of which level, or micrometres.
  if coords is not None and attributes.get('unit') == 'um':
    mpp = attributes.get('level0_mpp', level0_mpp)
    coords = None if mpp is None else _pixels(path, coords, mpp)
    if coords is not None:
      del attributes['unit']
      attributes['level0_mpp'] = mpp
  _check(path, features, coords)
  attributes = feature_attributes.unified(attributes)
  if coords is not None:
    coords = coords.astype(np.int32)
    if 'patch_size_level0' not in attributes:
      side = feature_attributes.spacing(coords)
      if side is not None:
        attributes['patch_size_level0'] = side
        attributes['patch_size_level0_source'] = 'spacing of coords'
  return FeatureFile(path, features.astype(np.float32), coords, attributes)


def header(path: Path | str) -> Header:
  """Returns what a feature file says of itself, reading no features.

  Raises:
    FeatureError: if the file cannot be opened, has no features, or has not one
      coordinate per row.
  """
  path = Path(path)
  if path.suffix == '.pt':
    with _torch_errors(path):
      found = torch_files.describe(path)
    length, width = _flat_shape(path, 'the tensor', found.shape)
    half = found.kind == 'HalfStorage'
    return Header(length, width, {}, 'float16' if half else 'float32')
  with feature_h5.opened(path) as file:
    dataset = feature_h5.features(path, file)
    length, width = dataset.shape[-2:]
    feature_h5.coords(path, file, length)
    attributes = feature_attributes.unified(
      feature_h5.attributes(file, dataset)
    )
    return Header(length, width, attributes, dataset.dtype.name)


@contextlib.contextmanager
def _torch_errors(path: Path) -> Iterator[None]:
  try:
    yield
  except torch_files.TorchFileError as error:
    raise FeatureError(str(error)) from error
  except OSError as error:
    raise FeatureError(
      f'{path}: cannot be opened ({error.strerror}); extract the slide first.'
    ) from error


def _flat_shape(
  path: Path, name: str, shape: tuple[int, ...]
) -> tuple[int, int]:
  """Returns N and D of features [N, D] or [1, N, D]."""
  if len(shape) == 2 or (len(shape) == 3 and shape[0] == 1):
    return shape[-2], shape[-1]
  raise FeatureError(
    f'{path}: {name} has shape {list(shape)}; [N, D] or [1, N, D] is needed.'
  )


def _pixels(path: Path, coords: np.ndarray, mpp: Any) -> np.ndarray:
  """Turns micrometres into level-0 pixels."""
  if not isinstance(mpp, int | float) or not 0 < mpp < np.inf:
    raise FeatureError(f'{path}: level0_mpp is {mpp!r}; um/px are needed.')
  return np.rint(coords / mpp)


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
