"""Splits tiles into training, validation and test parts."""

import numpy as np

from data import dealing
from data.labelled_tiles import LabelledTiles, TileError

PARTS = ('train', 'val', 'test')


def split(
  tiles: LabelledTiles,
  fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
  *,
  seed: int,
  by: str = 'group',
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Splits tiles into parts that hold the same share of every class.

  By group: groups, the large ones mostly first, are dealt to the part that
  lacks most of their tiles. The first random dealing is taken whose parts hold
  their fractions of every class to 2 %, which leaves the seeds their variety,
  or else the closest of many. Neither the order of tiles nor the names of
  classes matter, only names and tiles of the groups.

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
      f'found the fractions {fractions}; three that sum to 1 are needed'
    )
  if by not in ('group', 'tile'):
    raise TileError(f"found by={by!r}; split by 'group' or by 'tile'")
  if by == 'group' and (tiles.group == '').any():
    named = tiles.id[tiles.group == '']
    raise TileError.listing(
      [f'{i}: its patient or slide is not known' for i in named],
      'tiles cannot be split by group',
    )
  names, group = np.unique(
    tiles.id if by == 'tile' else tiles.group, return_inverse=True
  )
  count = np.zeros((len(names), len(tiles.classes)), int)
  np.add.at(count, (group, tiles.label), 1)
  _check(tiles.classes, names, count, int((share > 0).sum()), by)
  rng = np.random.default_rng(seed)
  if by == 'tile':
    part = _cut(tiles.label[np.argsort(group)], share, rng)
  else:
    part = dealing.evenly(count, share, rng)
  of_tile = part[group]
  for c, name in enumerate(tiles.classes):
    for p in np.flatnonzero(share):
      if not (of_tile[tiles.label == c] == p).any():
        raise TileError(
          f'the {PARTS[p]} part got no tile of class {name}: its fraction '
          f'{share[p]:g} is too small for {len(names)} {by}s; enlarge it, or '
          'get more data'
        )
  train, val, test = (np.flatnonzero(of_tile == p) for p in range(3))
  return train, val, test


def _check(
  classes: tuple[str, ...],
  names: np.ndarray,
  count: np.ndarray,
  parts: int,
  by: str,
) -> None:
  """Raises a TileError if some class cannot be in every part."""
  problems = []
  for c, name in enumerate(classes):
    held = names[count[:, c] > 0]
    if not len(held):
      problems.append(f'class {name}: no tile')
    elif len(held) < parts:
      problems.append(
        f'class {name}: tiles of {len(held)} {by}(s) only '
        f'({", ".join(held)}) for {parts} parts; get tiles of more'
      )
  if problems:
    raise TileError.listing(problems, 'tiles cannot be split')


def _cut(
  label: np.ndarray, share: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Returns the part of every tile, each class cut by itself, [n]."""
  part = np.empty(len(label), int)
  for c in np.unique(label):
    rows = rng.permutation(np.flatnonzero(label == c))
    cuts = np.rint(np.cumsum(share)[:2] * len(rows)).astype(int)
    for p, some in enumerate(np.split(rows, cuts)):
      part[some] = p
  return part
