"""Cross-validation splits: whole cases, stratified by class, CLAM's files."""

from collections.abc import Sequence
import csv
import dataclasses
import hashlib
import itertools
import pathlib

import numpy as np

from data import atomic, dealing
from data.dealing import SplitError
from data.manifest import Manifest

PARTS = ('train', 'val', 'test')
_SHOWN = 5  # Names listed in an error.


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
  if group is None:
    place = dealing.cases(manifest, k, seed)
  else:
    place = dealing.groups(manifest, k, seed, group)
  splits = [
    Split(
      train=(place != i) & (place != (i + 1) % k),
      val=place == (i + 1) % k,
      test=place == i,
    )
    for i in range(k)
  ]
  if group is not None and (found := faults(manifest, splits)):
    raise SplitError(
      '\n'.join([*found, 'choose another --k, or join groups or classes'])
    )
  check(manifest, splits)
  return splits


def check(
  manifest: Manifest, splits: list[Split], names: Sequence[str] | None = None
) -> None:
  """Asserts what every protocol here relies on.

  Args:
    manifest: slides.
    splits: of all folds.
    names: what errors call the folds; 'fold 0' and so on by default.

  Raises:
    SplitError: if a case straddles parts of a fold, a part is empty or a class
      is not trained on; the message names them all.
  """
  found = faults(manifest, splits, names)
  if found:
    raise SplitError('\n'.join(found))


def faults(
  manifest: Manifest, splits: list[Split], names: Sequence[str] | None = None
) -> list[str]:
  """Returns all that `check` would raise for, a line each."""
  found = []
  names = names or [f'fold {i}' for i in range(len(splits))]
  for name, split in zip(names, splits, strict=True):
    cases = {part: set(manifest.case[getattr(split, part)]) for part in PARTS}
    found += [f'{name}: its {p} part is empty' for p in PARTS if not cases[p]]
    for a, b in itertools.combinations(PARTS, 2):
      both = sorted(cases[a] & cases[b])
      if both:
        found.append(
          f'{name}: case {_some(both)} is in both {a} and {b}:'
          ' slides of one case belong in one part'
        )
    lost = sorted(set(manifest.label) - set(manifest.label[split.train]))
    if lost:
      found.append(f'{name}: no training slide of class {_some(lost)}')
  return found


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
    path = pathlib.Path(folder) / f'splits_{i}.csv'
    with (
      atomic.replacing(path) as part,
      part.open('w', newline='', encoding='utf-8') as f,
    ):
      writer = csv.writer(f)
      writer.writerow(['', *PARTS])
      rows = itertools.zip_longest(*columns, fillvalue='')
      writer.writerows([j, *row] for j, row in enumerate(rows))


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
) -> list[Split]:
  """Reads `splits_<i>.csv` for i below k; slides not named are in no part.

  Slides `left_out` of the manifest, by a relabelling, may be named: one folder
  of splits serves all tasks. Other columns and empty cells, which end CLAM's
  shorter columns, are ignored. There pandas writes whole numbers as 12.0: slide
  12, if there is no slide 12.0.

  Raises:
    SplitError: if a file is missing, lacks a column, names an unknown slide or
      one slide twice, or fails `check`; all faults at once.
  """
  splits, found = scan(folder, manifest, k, left_out)
  if found:
    raise SplitError('\n'.join(found))
  return splits


def scan(
  folder: str | pathlib.Path,
  manifest: Manifest,
  k: int,
  left_out: frozenset[str] = frozenset(),
) -> tuple[list[Split], list[str]]:
  """Returns the splits whose files can be read, and all faults; see `read`."""
  place = {slide: i for i, slide in enumerate(manifest.slide.tolist())}
  folder = pathlib.Path(folder)
  splits, found, names = [], [], []
  for i in range(k):
    path = folder / f'splits_{i}.csv'
    try:
      columns = _columns(path, k)
    except SplitError as e:
      found.append(str(e))
      continue
    parts = {part: np.zeros(len(place), bool) for part in PARTS}
    seen, unknown = set(), {}
    for part, slides in columns.items():
      for slide in slides:
        whole = slide.removesuffix('.0')
        if slide not in place and (whole in place or whole in left_out):
          slide = whole
        if slide in left_out:
          continue
        if slide not in place:
          unknown.setdefault(part, []).append(slide)
          continue
        if slide in seen:
          found.append(f'{path}: slide {slide} is named twice')
        seen.add(slide)
        parts[part][place[slide]] = True
    found += [
      f'{path}: slide {_some(slides)} ({part}) is not among the labelled slides'
      for part, slides in unknown.items()
    ]
    splits.append(Split(**parts))
    names.append(str(path))
  return splits, found + faults(manifest, splits, names)


def _columns(path: pathlib.Path, k: int) -> dict[str, list[str]]:
  """Returns the slides that a file names, by part."""
  try:
    with path.open(newline='', encoding='utf-8-sig') as f:
      rows = list(csv.DictReader(f))
  except FileNotFoundError as e:
    stems = (p.stem for p in path.parent.glob('splits_*.csv'))
    there = sum(stem.removeprefix('splits_').isdecimal() for stem in stems)
    advice = f'; there are {there}: --k={there}?' if there else ''
    raise SplitError(
      f'{path}: no such file; --k={k} needs splits_0.csv to splits_{k - 1}.csv'
      + advice
    ) from e
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise SplitError(f'{path}: cannot be read as CSV: {e}') from e
  if not rows or any(part not in rows[0] for part in PARTS):
    raise SplitError(f'{path}: the columns {", ".join(PARTS)} are needed')
  return {
    part: [cell for row in rows if (cell := (row[part] or '').strip())]
    for part in PARTS
  }


def _some(names: list[str]) -> str:
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more
