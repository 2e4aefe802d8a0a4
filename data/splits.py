"""Splits: whole cases in folds, tiles in parts, and CLAM's files of them."""

from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
import pathlib

import numpy as np

from data import dealing, files
from data.dealing import SplitError
from data.labelled_tiles import LabelledTiles, TileError
from data.labels import Manifest

PARTS = ('train', 'val', 'test')


@dataclasses.dataclass(frozen=True)
class Split:
  """One fold; every slide of the manifest is in one part or in none."""

  train: np.ndarray  # bool [n]
  val: np.ndarray  # bool [n]
  test: np.ndarray  # bool [n]


def make(
  manifest: Manifest, k: int, seed: int, group: np.ndarray | None = None
) -> list[Split]:
  """Splits cases into k folds of 8/1/1 parts where k is 10.

  The cases of each class are shuffled and dealt into k groups, continuing where
  the class before ended so that the groups are of nearly equal size. Fold i
  tests group i, validates on group i + 1 and trains on the others. A case with
  slides of several classes counts for the last of them in the order of labels.

  With groups, as the cases of a site, those are dealt instead: see `dealing`.

  Args:
    manifest: slides.
    k: number of folds, at least 3.
    seed: of the shuffles.
    group: of each slide, str [n], whole in every part; None: cases are.

  Returns:
    k splits whose tests are disjoint and cover all slides.

  Raises:
    SplitError: if a class has fewer than k cases; with groups, if there are
      fewer than k, a case is in two, or a training part lacks a class.
  """
  if k < 3:
    raise SplitError(f'--k={k}: train, val and test parts need at least 3')
  case, label = manifest.case, manifest.label
  if group is None:
    fold = dealing.fold_of_cases(case, label, k, seed)
  else:
    fold = dealing.fold_of_groups(case, label, group, k, seed)
  splits = [
    Split(
      train=(fold != i) & (fold != (i + 1) % k),
      val=fold == (i + 1) % k,
      test=fold == i,
    )
    for i in range(k)
  ]
  if lines := faults(manifest, splits):
    raise SplitError(
      '\n'.join([*lines, 'choose another --k, or join groups or classes'])
    )
  return splits


def faults(
  manifest: Manifest, splits: list[Split], names: Sequence[str] | None = None
) -> list[str]:
  """Returns what every protocol here relies on and does not hold, a line each.

  That is: no case straddles parts of a fold, no part is empty, and every class
  is trained on.

  Args:
    manifest: slides.
    splits: of all folds.
    names: what the lines call the folds; 'fold 0' and so on by default.
  """
  lines = []
  names = names or [f'fold {i}' for i in range(len(splits))]
  for name, split in zip(names, splits, strict=True):
    cases = {part: set(manifest.case[getattr(split, part)]) for part in PARTS}
    lines += [f'{name}: its {p} part is empty' for p in PARTS if not cases[p]]
    lines += [
      f'{name}: case {files.first_of(both)} is in both {a} and {b}:'
      ' slides of one case belong in one part'
      for a, b in itertools.combinations(PARTS, 2)
      if (both := sorted(cases[a] & cases[b]))
    ]
    lost = sorted(set(manifest.label) - set(manifest.label[split.train]))
    if lost:
      lines.append(f'{name}: no training slide of class {files.first_of(lost)}')
  return lines


def tested_again(manifest: Manifest, splits: list[Split]) -> list[str]:
  """Returns the slides that are in the test part of several folds.

  Repeated random splits, as CLAM's, have such slides. Pooled figures count them
  each time; intervals, which resample patients, allow for that.
  """
  tested = np.sum([split.test for split in splits], axis=0)
  return manifest.slide[tested > 1].tolist()


def write(
  folder: str | pathlib.Path, manifest: Manifest, splits: list[Split]
) -> None:
  """Writes `splits_<i>.csv` with CLAM's columns: index, train, val, test."""
  for i, split in enumerate(splits):
    columns = [manifest.slide[getattr(split, part)] for part in PARTS]
    rows = enumerate(itertools.zip_longest(*columns, fillvalue=''))
    files.write_rows(
      pathlib.Path(folder) / f'splits_{i}.csv',
      [['', *PARTS], *([j, *row] for j, row in rows)],
    )


def fingerprint(manifest: Manifest, splits: list[Split]) -> str:
  """Returns a hash of which slide is in which part of which fold."""
  digest = hashlib.sha256()
  for split, part in itertools.product(splits, PARTS):
    slides = manifest.slide[getattr(split, part)]
    digest.update((part + '\n' + '\n'.join(slides)).encode())
  return digest.hexdigest()


def read(
  folder: str | pathlib.Path,
  manifest: Manifest,
  k: int,
  left_out: frozenset[str] = frozenset(),
) -> tuple[list[Split], list[str]]:
  """Reads `splits_<i>.csv` for i below k; slides not named are in no part.

  Slides `left_out` of the manifest, by a relabelling, may be named: one folder
  of splits serves all tasks. Other columns and empty cells, which end CLAM's
  shorter columns, are ignored. There pandas writes whole numbers as 12.0: slide
  12, if there is no slide 12.0.

  Returns:
    The splits whose files can be read, and all that is wrong, a line each: a
    file is missing, lacks a column, names an unknown slide or one slide twice,
    or is at fault by `faults`.
  """
  place = {slide: i for i, slide in enumerate(manifest.slide.tolist())}
  folder = pathlib.Path(folder)
  splits, lines, names = [], [], []
  for i in range(k):
    path = folder / f'splits_{i}.csv'
    try:
      rows = _rows(path, k)
    except SplitError as e:
      lines.append(str(e))
      continue
    parts = {part: np.zeros(len(place), bool) for part in PARTS}
    seen, unknown = set(), {}
    for part in PARTS:
      for slide in filter(None, (row[part] for _, row in rows)):
        whole = slide.removesuffix('.0')
        if slide not in place and (whole in place or whole in left_out):
          slide = whole
        if slide in left_out:
          continue
        if slide not in place:
          unknown.setdefault(part, []).append(slide)
          continue
        if slide in seen:
          lines.append(f'{path}: slide {slide} is named twice')
        seen.add(slide)
        parts[part][place[slide]] = True
    lines += [
      f'{path}: slide {files.first_of(slides)} ({part}) is not among the'
      ' labelled slides'
      for part, slides in unknown.items()
    ]
    splits.append(Split(**parts))
    names.append(str(path))
  return splits, lines + faults(manifest, splits, names)


def _rows(path: pathlib.Path, k: int) -> list[tuple[int, dict[str, str]]]:
  if not path.exists():
    stems = (p.stem for p in path.parent.glob('splits_*.csv'))
    there = sum(stem.removeprefix('splits_').isdecimal() for stem in stems)
    advice = f'; there are {there}: --k={there}?' if there else ''
    raise SplitError(
      f'{path}: no such file; --k={k} needs splits_0.csv to splits_{k - 1}.csv'
      + advice
    )
  return files.read_csv(path, PARTS, SplitError)


def split_tiles(
  tiles: LabelledTiles,
  fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
  *,
  seed: int,
  by: str = 'group',
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Splits tiles into parts that hold the same share of every class.

  Groups are dealt as `dealing.part_of_groups` says. Neither the order of tiles
  nor the names of classes matter, only names and tiles of the groups.

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
    part = dealing.part_of_each(tiles.label[np.argsort(group)], share, rng)
  else:
    part = dealing.part_of_groups(count, share, rng)
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
