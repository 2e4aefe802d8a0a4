"""Splits tiles into training, validation and test parts."""

import numpy as np

from data.labelled_tiles import LabelledTiles, TileError
from data.splits import PARTS
from kmil_jax import splits


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
      f'found the fractions {fractions}; three that sum to 1 are needed'
    )
  if by not in ('group', 'tile'):
    raise TileError(f"found by={by!r}; split by 'group' or by 'tile'")
  if by == 'group' and (tiles.group == '').any():
    raise TileError.listing(
      [
        f'{i}: its patient or slide is not known'
        for i in tiles.id[tiles.group == '']
      ],
      'tiles cannot be split by group',
    )
  names, group = np.unique(
    tiles.id if by == 'tile' else tiles.group, return_inverse=True
  )
  count = np.zeros((len(names), len(tiles.classes)), int)
  np.add.at(count, (group, tiles.label), 1)
  used = np.flatnonzero(share)
  problems = []
  for c, name in enumerate(tiles.classes):
    owners = names[count[:, c] > 0]
    if not len(owners):
      problems.append(f'class {name}: no tile')
    elif len(owners) < len(used):
      problems.append(
        f'class {name}: tiles of {len(owners)} {by}(s) only '
        f'({", ".join(owners)}) for {len(used)} parts; get tiles of more'
      )
  if problems:
    raise TileError.listing(problems, 'tiles cannot be split')
  rng = np.random.default_rng(seed)
  if by == 'tile':
    part = splits.part_of_each(tiles.label[np.argsort(group)], share, rng)
  else:
    part = splits.part_of_groups(count, share, rng)
  of_tile = part[group]
  for c, name in enumerate(tiles.classes):
    for p in np.setdiff1d(used, of_tile[tiles.label == c]):
      raise TileError(
        f'the {PARTS[p]} part got no tile of class {name}: its fraction '
        f'{share[p]:g} is too small for {len(names)} {by}s; enlarge it, or '
        'get more data'
      )
  train, val, test = (np.flatnonzero(of_tile == p) for p in range(3))
  return train, val, test
