"""--check of the scripts that train on labelled tiles."""

from collections.abc import Callable, Mapping
from typing import NoReturn

import numpy as np

from data.files import first_of
from data.labelled_tiles import LabelledTiles, TileError
from experiments.preflight.findings import Findings

_AT_ONCE = 256  # Tiles decoded before the memory is given back.


def check(
  sets: Mapping[str, LabelledTiles], *demands: Callable[[], object]
) -> NoReturn:
  """Decodes every tile, prints counts of classes and patients, and ends.

  Args:
    sets: by name; those that must have no patient in common, if several.
    *demands: each raises `TileError` where the tiles do not meet it, as making
      the parts does.

  Raises:
    SystemExit: always; with 1 if there are problems.
  """
  findings = Findings()
  for name, tiles in sets.items():
    count = np.bincount(tiles.label, minlength=len(tiles.classes))
    by_class = ', '.join(
      f'{label} {n}' for label, n in zip(tiles.classes, count, strict=True)
    )
    size = len(tiles) * tiles.size**2 * tiles.channels * tiles.dtype.itemsize
    print(
      f'{name}: {len(tiles)} tiles of {tiles.size} px, {len(set(tiles.group))}'
      f' patients: {by_class}; {size / 2**20:.0f} MiB'
    )
    for first in range(0, len(tiles), _AT_ONCE):
      try:
        tiles.load(np.arange(first, min(first + _AT_ONCE, len(tiles))))
      except TileError as e:
        findings.problems.append(f'{name}: {e}')
  for demand in demands:
    try:
      demand()
    except TileError as e:
      findings.problems.append(str(e))
  names = list(sets)
  for i, one in enumerate(names):
    for other in names[i + 1 :]:
      both = sorted(set(sets[one].group) & set(sets[other].group) - {''})
      if both:
        findings.problems.append(
          f'{len(both)} patients are both in {one} and {other}:'
          f' {first_of(both)}'
        )
  findings.close()
