"""A set of labelled tiles of one size that are decoded on demand."""

from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import functools
import itertools
import os

import numpy as np

IN_MEMORY = 2**30  # Bytes up to which a set is decoded once and kept.
_NAMED = 10  # Problems that an error lists; the others are counted.
_COLUMNS = ('id', 'label', 'group')
_CHUNK = 64  # Tiles that a thread decodes at a time.


class TileError(ValueError):
  """Tiles that cannot be used; names the files or rows and what to do."""

  @classmethod
  def listing(cls, problems: Sequence[str], where: str = '') -> 'TileError':
    """Returns one error for all problems: ten in words, the others' number."""
    named = list(problems[:_NAMED])
    if more := len(problems) - len(named):
      named.append(f'and {more} more')
    if where:
      named.insert(0, f'{where}: {len(problems)} problem(s)')
    return cls('\n  '.join(named))


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTiles:
  """Tiles with their labels; n of them, all [S, S, C].

  Attributes:
    id: unique names, str [n].
    label: place in `classes`, int32 [n].
    group: patient or slide, str [n]; what splits keep together. Empty where it
      is not known.
    classes: names of the classes.
    read: returns the tile of a row of this set, uint8 [S, S, C], or float32,
      which is used as it is and should lie in 0..1; from any thread. A tile
      that cannot be read raises a TileError with its name.
    size: S, pixels.
    channels: C.
    dtype: of the tiles, uint8 or float32.
    xy: places on a grid or in a slide, int [n, 2], or None.
  """

  id: np.ndarray
  label: np.ndarray
  group: np.ndarray
  classes: tuple[str, ...]
  read: Callable[[int], np.ndarray]
  size: int
  channels: int = 3
  dtype: np.dtype = np.dtype(np.uint8)  # noqa: RUF009
  xy: np.ndarray | None = None

  def __post_init__(self):
    n = len(self.id)
    for name in ('label', 'group', 'xy'):
      column = getattr(self, name)
      if column is not None and len(column) != n:
        raise TileError(f'found {n} tiles and {len(column)} rows of {name}')
    ids, count = np.unique(self.id, return_counts=True)
    if len(ids) < n:
      raise TileError.listing(
        [f'{i}: {k} tiles' for i, k in zip(ids, count, strict=True) if k > 1],
        'tiles of the same id',
      )
    if n and not 0 <= self.label.min() <= self.label.max() < len(self.classes):
      raise TileError(
        f'labels run from {self.label.min()} to {self.label.max()}. There are '
        f'{len(self.classes)} classes: {", ".join(self.classes)}.'
      )

  def __len__(self) -> int:
    return len(self.id)

  def take(self, index: np.ndarray) -> 'LabelledTiles':
    """Returns the tiles at `index`, distinct rows or a bool mask [n]."""
    rows = np.asarray(index)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(int)
    columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
    xy = None if self.xy is None else self.xy[rows]
    read = lambda i: self.read(rows[i])
    return dataclasses.replace(self, read=read, xy=xy, **columns)

  def load(self, rows: np.ndarray) -> np.ndarray:
    """Reads tiles, [len(rows), S, S, C], many of them in several threads.

    Raises:
      TileError: naming the tiles that cannot be read, hold NaN or infinity, or
        are of another shape or type than the set's.
    """
    shape = (len(rows), self.size, self.size, self.channels)
    out = np.empty(shape, self.dtype)
    cuts = range(_CHUNK, len(rows), _CHUNK)
    chunks = np.split(out, cuts), np.split(np.asarray(rows), cuts)
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      problems = [*itertools.chain(*pool.map(self._fill, *chunks))]
    if problems:
      raise TileError.listing(problems, 'tiles that cannot be read')
    return out

  @functools.cached_property
  def pixels(self) -> np.ndarray | None:
    """All tiles [n, S, S, C], decoded once, or None if above `IN_MEMORY`.

    Raises:
      TileError: as `load`, of all tiles at once.
    """
    area = self.size**2 * self.channels
    if len(self) * area * self.dtype.itemsize > IN_MEMORY:
      return None
    return self.load(np.arange(len(self)))

  def _fill(self, out: np.ndarray, rows: np.ndarray) -> list[str]:
    """Reads tiles into `out`; returns what is wrong with some."""
    problems = []
    for place, row in zip(out, rows, strict=True):
      try:
        tile = self.read(int(row))
      except TileError as e:
        problems.append(str(e))
        continue
      if tile.shape != place.shape or tile.dtype != place.dtype:
        problems.append(
          f'{self.id[row]}: {tile.dtype} {list(tile.shape)}, where the set '
          f'holds {self.dtype} {list(place.shape)}'
        )
      elif tile.dtype.kind == 'f' and not np.isfinite(tile).all():
        bad = tile.size - np.isfinite(tile).sum()
        problems.append(
          f'{self.id[row]}: {bad} of {tile.size} values are NaN or infinite. '
          'Leave it out.'
        )
      else:
        place[:] = tile
    return problems


def from_arrays(
  images: np.ndarray,
  label: np.ndarray,
  group: Sequence[str],
  classes: Sequence[str],
  *,
  ids: Sequence[str] | None = None,
) -> LabelledTiles:
  """Returns tiles that are in memory.

  Args:
    images: uint8 or float32 [n, S, S, C]; floats in 0..1.
    label: place in `classes`, [n].
    group: patient or slide, [n].
    classes: names of the classes.
    ids: unique names, [n]; by default the row as a number.
  """
  ids = np.array(
    [f'{i:07d}' for i in range(len(images))] if ids is None else ids
  )
  return LabelledTiles(
    id=ids.astype(str),
    label=np.asarray(label, np.int32),
    group=np.array(group, str),
    classes=tuple(classes),
    read=lambda i: images[i],
    size=images.shape[1],
    channels=images.shape[3],
    dtype=images.dtype,
  )


def concatenate(sets: Sequence[LabelledTiles]) -> LabelledTiles:
  """Returns all tiles of several sets, one set after the other, without `xy`.

  Raises:
    TileError: if the sets differ in classes, size, channels or type, or share
      an id.
  """
  first = sets[0]
  for name in ('classes', 'size', 'channels', 'dtype'):
    values = dict.fromkeys(str(getattr(tiles, name)) for tiles in sets)
    if len(values) > 1:
      raise TileError(
        f'sets of different {name} cannot be joined: found {", ".join(values)}'
      )
  starts = np.cumsum([0] + [len(tiles) for tiles in sets])

  def read(i: int) -> np.ndarray:
    k = int(np.searchsorted(starts, i, 'right')) - 1
    return sets[k].read(int(i - starts[k]))

  columns = {
    name: np.concatenate([getattr(tiles, name) for tiles in sets])
    for name in _COLUMNS
  }
  return dataclasses.replace(first, read=read, xy=None, **columns)


def binary(tiles: LabelledTiles, positive: str | None) -> LabelledTiles:
  """Returns tiles of two classes with the positive one second.

  Args:
    tiles: of two classes.
    positive: name of the positive one; by default the second.

  Raises:
    TileError: if there are other than two, or none of that name.
  """
  classes = tiles.classes
  if len(classes) != 2:
    raise TileError(
      f'found the classes {", ".join(classes)}. Two are needed, one of them'
      ' positive.'
    )
  if positive is not None and positive not in classes:
    raise TileError(
      f'--positive={positive}: the classes are {", ".join(classes)}'
    )
  if positive in (None, classes[1]):
    return tiles
  return dataclasses.replace(
    tiles, classes=classes[::-1], label=(1 - tiles.label).astype(np.int32)
  )
