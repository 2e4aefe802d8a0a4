"""Opens the HDF5 file of a slide's features and checks what it announces."""

from collections.abc import Iterator
import contextlib
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data import reading

_STAMP = 'feats'
_NAMES = ('features', _STAMP)  # The first is CLAM's and TRIDENT's.
# A dataset may be so many times larger than what is stored of it: more than any
# compression saves, so that a few bytes cannot ask for all memory there is.
_EXPANSION = 2000


class FeatureError(ValueError):
  """A feature file cannot be used: its path, what was found, what to do."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
  """Opens a file without a lock; whatever fails in the block names the file."""
  try:
    if not path.exists():
      raise FeatureError(f'{path}: no such file; extract the slide first.')
    # Network disks often lack locks.
    with h5py.File(path, 'r', locking=False) as file:
      yield file
  except FeatureError:
    raise
  except Exception as error:  # Damaged files raise errors of many kinds.
    if fault := reading.outer_fault(error):
      raise FeatureError(f'{path}: {fault}.') from error
    raise FeatureError(
      f'{path}: not a complete HDF5 file ({error}); delete it and extract the '
      'slide again.'
    ) from error


def features(path: Path, file: h5py.File) -> h5py.Dataset:
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
      f'{path}: {name} is {dataset.dtype} {list(dataset.shape or ())}; float16 '
      'or float32, [N, D] or [1, N, D], is needed.'
    )
  _check_written(path, name, dataset)
  return dataset


def coords(path: Path, file: h5py.File, length: int) -> h5py.Dataset | None:
  """Returns the dataset of the coordinates, if any, shape and type checked."""
  dataset = file.get('coords')
  if dataset is None:
    return None
  if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in 'iuf':
    raise FeatureError(f'{path}: coords are not numbers [N, 2].')
  if dataset.shape not in ((length, 2), (1, length, 2)):
    raise FeatureError(
      f'{path}: coords have shape {list(dataset.shape or ())} for {length} '
      'rows of features; one (x, y) per row is needed.'
    )
  _check_written(path, 'coords', dataset)
  return dataset


def _check_written(path: Path, name: str, dataset: h5py.Dataset) -> None:
  """Refuses a dataset of which less is stored than its shape announces.

  A writer that was killed leaves rows that HDF5 would read as zeros.
  """
  size = math.prod(dataset.shape) * dataset.dtype.itemsize
  stored = dataset.id.get_storage_size()
  parts, written = 1, int(bool(stored))
  if dataset.chunks:
    pieces = zip(dataset.shape, dataset.chunks, strict=True)
    parts = math.prod(-(-n // chunk) for n, chunk in pieces)
    written = dataset.id.get_num_chunks()
  if size and (written < parts or size > _EXPANSION * stored):
    raise FeatureError(
      f'{path}: {name} {list(dataset.shape)} was never written in full '
      f'({stored} of {size} bytes); delete it and extract the slide again.'
    )


def attributes(file: h5py.File, features: h5py.Dataset) -> dict[str, Any]:
  """Returns all attributes; those of the file win over the datasets'.

  Bytes become text. `unit` of STAMP's files, which early ones lack, is added:
  'um' where the tiles' side is in micrometres, else 'unknown'.
  """
  holders = [features, file]
  if 'coords' in file:
    holders.insert(0, file['coords'])
  found = {
    name: _python(value)
    for holder in holders
    for name, value in holder.attrs.items()
  }
  if features.name == f'/{_STAMP}' and 'patch_size_level0' not in found:
    known = 'tile_size_um' in found
    found.setdefault('unit', 'um' if known else 'unknown')
  return found


def _python(value: Any) -> Any:
  value = value.item() if isinstance(value, np.generic) else value
  return value.decode(errors='replace') if isinstance(value, bytes) else value
