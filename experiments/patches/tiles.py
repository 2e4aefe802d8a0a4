"""Labelled tiles of a study: their files, parts, hash and check."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from data.files import first_of
from data.labelled_tiles import LabelledTiles, TileError
from data.splits import PARTS
from experiments.evaluation.tables import Row, Table
from experiments.run import progress
from experiments.run.options import free
from experiments.run.start import Findings
from kmil_jax import splits

_HASHED = 64  # Tiles whose pixels are hashed where they do not fit in memory.
_AT_ONCE = 256  # Tiles decoded before the memory is given back.


@dataclasses.dataclass(frozen=True)
class TileFiles:
  """Labelled tiles of your own, in one zip file."""

  tiles_zip: pathlib.Path | None = free(
    None, 'Zip file of images. Requires --tiles_csv.', only={'tiles_csv': True}
  )
  tiles_csv: pathlib.Path | None = free(
    None,
    'Table of these images, with the columns patient,x,y,label,zip_path.',
    only={'tiles_zip': True},
  )


def split(
  tiles: LabelledTiles,
  fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
  *,
  seed: int,
  by: str = 'group',
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Splits tiles into parts that hold the same share of every class.

  Groups are dealt as `kmil_jax.splits.part_of_groups` says. Neither the order
  of tiles nor the names of classes matter, only names and tiles of the groups.

  Args:
    tiles: to split.
    fractions: of train, val and test; they sum to 1, and a part of 0 is empty.
    seed: another seed is another split.
    by: 'group' keeps a patient's or slide's tiles in one part; 'tile' does not,
      as in papers whose patches of one slide are trained and tested on.

  Returns:
    The rows of each part, ascending, which together are all rows once.

  Raises:
    TileError: if a class has no tile, or fewer groups (tiles, for 'tile') than
      there are parts, or a tile has no group.
  """
  share = np.array(fractions, float)
  if len(share) != 3 or share.min() < 0 or not np.isclose(share.sum(), 1):
    raise TileError(
      f'Fractions {fractions}: give three, none below 0, that sum to 1.'
    )
  unit = {'group': tiles.group, 'tile': tiles.id}[by]
  if (unit == '').any():
    unknown = [
      f'{i}: its patient or slide is not known. Name it.'
      for i in tiles.id[unit == '']
    ]
    raise TileError.listing(unknown, 'tiles cannot be split by group')
  names, row = np.unique(unit, return_inverse=True)
  count = np.zeros((len(names), len(tiles.classes)), int)
  np.add.at(count, (row, tiles.label), 1)
  used = np.flatnonzero(share)
  problems = []
  for name, has in zip(tiles.classes, count.T > 0, strict=True):
    if (n := has.sum()) < len(used):
      problems.append(
        f'class {name}: tiles of {n} {by}(s) only ({", ".join(names[has])})'
        f' for {len(used)} parts. Add tiles of more {by}s.'
      )
  if problems:
    raise TileError.listing(problems, 'tiles cannot be split')
  rng = np.random.default_rng(seed)
  if by == 'tile':
    part = splits.part_of_each(tiles.label[np.argsort(row)], share, rng)
  else:
    part = splits.part_of_groups(count, share, rng)
  of_tile = part[row]
  for c, name in enumerate(tiles.classes):
    for p in np.setdiff1d(used, of_tile[tiles.label == c]):
      raise TileError(
        f'The {PARTS[p]} part got no tile of class {name}: its fraction'
        f' {share[p]:g} is too small for {len(names)} {by}s. Enlarge it, or'
        ' get more data.'
      )
  return tuple(np.flatnonzero(of_tile == p) for p in range(3))


def fingerprint(tiles: LabelledTiles) -> str:
  """Returns a hash of ids, labels, classes and pixels.

  Of a set that does not fit in memory, the pixels of some tiles stand for all.
  """
  digest = hashlib.sha256(
    json.dumps([tiles.classes, tiles.id.tolist()]).encode()
  )
  digest.update(tiles.label.astype('<i4').tobytes())
  pixels = tiles.pixels
  if pixels is None:
    pixels = tiles.load(np.linspace(0, len(tiles) - 1, _HASHED).astype(int))
  digest.update(np.ascontiguousarray(pixels))
  return digest.hexdigest()


def shared(sets: Sequence[LabelledTiles]) -> list[str]:
  """Returns a warning of equal tiles of several groups, if there are any.

  Those of one colour, as of glass, may be equal. All are decoded.

  Args:
    sets: in which no id is twice.

  Raises:
    TileError: naming tiles that cannot be decoded.
  """
  owners, n = collections.defaultdict(dict), sum(map(len, sets))
  with progress.over(None, 'equal tiles', n, 'tile') as bar:
    for tiles in sets:
      for first in range(0, len(tiles), _AT_ONCE):
        rows = np.arange(len(tiles))[first : first + _AT_ONCE]
        held = tiles.pixels
        images = tiles.load(rows) if held is None else held[rows]
        for row, image in zip(rows, images, strict=True):
          if (image != image[0, 0]).any():
            same = owners[hashlib.sha256(image).digest()]
            same[str(tiles.id[row])] = tiles.group[row]
        bar.update(len(rows))
  pairs = [
    ' and '.join(list(same)[:3])
    for same in owners.values()
    if len(set(same.values())) > 1
  ]
  return [
    f'{len(pairs)} tiles are there under several patients, which may be in'
    f' several parts: {first_of(pairs)}. Keep each once.'
  ] * bool(pairs)


def counts(sets: Mapping[str, LabelledTiles], title: str) -> Table:
  """Returns a table of the tiles of each class, and of patients.

  Args:
    sets: by name, of the same classes.
    title: of the table.
  """
  classes = next(iter(sets.values())).classes
  rows = []
  for name, tiles in sets.items():
    by_class = np.bincount(tiles.label, minlength=len(classes)).tolist()
    cells = (len(tiles), *by_class, len(set(tiles.group)), tiles.size)
    rows.append(Row((name,), {'': cells}))
  columns = ('tiles', *classes, 'patients', 'pixels a side')
  return Table('tiles', title, ('set',), dict.fromkeys(columns, 'd'), rows)


def check(findings: Findings, sets: Mapping[str, LabelledTiles]) -> None:
  """Decodes every tile and adds what is wrong, for --check.

  Args:
    findings: to add to.
    sets: by name.
  """
  for name, tiles in sets.items():
    for first in range(0, len(tiles), _AT_ONCE):
      try:
        tiles.load(np.arange(first, min(first + _AT_ONCE, len(tiles))))
      except TileError as e:
        findings.problems.append(f'{name}: {e}')
