"""What feature files of several tools say of themselves, in one vocabulary."""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np


def unified(attributes: Mapping[str, Any]) -> dict[str, Any]:
  """Adds `encoder`, `patch_size`, `mpp` and `patch_size_level0` where implied.

  STAMP calls them extractor, tile_size_px and tile_size_um; what a file says
  under our names is kept. TRIDENT's magnifications are nominal: no mpp is made
  of them.

  Args:
    attributes: as stored; NumPy scalars or Python values.

  Returns:
    All of them as Python values, and those that follow from them.
  """
  found = {
    name: value.item() if isinstance(value, np.generic) else value
    for name, value in attributes.items()
  }
  side, micrometres = _size(found, 'tile_size_px'), _size(found, 'tile_size_um')
  level0_mpp = _size(found, 'level0_mpp')
  implied = {'encoder': found.get('extractor'), 'patch_size': side}
  if side and micrometres:
    implied['mpp'] = round(micrometres / side, 6)
  if micrometres and level0_mpp:
    implied['patch_size_level0'] = _whole(micrometres / level0_mpp)
  known = {name: v for name, v in implied.items() if v is not None}
  return known | found


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
  for axis in (0, 1):
    across, along = coords[:, axis], coords[:, 1 - axis]
    order = np.lexsort((along, across))
    same = np.diff(across[order]) == 0
    gaps.append(np.diff(along[order])[same])
  gaps = np.concatenate(gaps)
  values, counts = np.unique(gaps[gaps > 0], return_counts=True)
  if not len(values) or counts.max() < 2:
    return None
  return int(values[counts.argmax()])


def _size(attributes: Mapping[str, Any], name: str) -> float | None:
  """Returns a positive number, or None if there is none of that name."""
  value = attributes.get(name)
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  return value if 0 < value < math.inf else None


def _whole(value: float) -> float:
  """Returns the whole number that float32 coordinates made inexact."""
  return round(value) if abs(value - round(value)) < 1e-2 else value
