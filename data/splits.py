"""Splits of a cross-validation as CLAM's files, and what is wrong with them."""

import collections
from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
import pathlib

import numpy as np

from data import files
from data.files import first_of
from data.labels import Manifest, hints

PARTS = ('train', 'val', 'test')
_OTHER_FORM = ('_bool', '_descriptor')  # Of the same splits, by CLAM.


class SplitError(ValueError):
  """Splits that cannot be used; says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Split:
  """One fold; every slide of the manifest is in one part or in none."""

  train: np.ndarray  # bool [n]
  val: np.ndarray  # bool [n]
  test: np.ndarray  # bool [n]

  @property
  def evaluated(self) -> np.ndarray:
    """The test part; validation where nothing is tested."""
    return self.test if self.test.any() else self.val


def faults(
  manifest: Manifest, splits: list[Split], names: Sequence[str]
) -> list[str]:
  """Returns what every protocol here relies on and does not hold, a line each.

  That is: no case straddles parts of a fold, no part is empty, and every class
  is trained on.

  Args:
    manifest: slides.
    splits: of all folds.
    names: what the lines call the folds.
  """
  lines = []
  for name, split in zip(names, splits, strict=True):
    cases = {part: set(manifest.case[getattr(split, part)]) for part in PARTS}
    lines += [f'{name}: its {p} part is empty' for p in PARTS if not cases[p]]
    lines += [
      f'{name}: case {first_of(both)} is in both {a} and {b}:'
      ' slides of one case belong in one part'
      for a, b in itertools.combinations(PARTS, 2)
      if (both := sorted(cases[a] & cases[b]))
    ]
    lost = sorted(set(manifest.label) - set(manifest.label[split.train]))
    if lost:
      lines.append(f'{name}: no training slide of class {first_of(lost)}')
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
    files.write_csv(
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
  folder = pathlib.Path(folder)
  place = {slide: i for i, slide in enumerate(manifest.slide.tolist())}
  splits, lines, names = [], [], []
  for i in range(k):
    path = folder / f'splits_{i}.csv'
    if not (path.is_file() or files.broken(path)):
      there = [
        p.name
        for p in files.listed(folder, ('.csv',), '*')
        if not p.stem.endswith(_OTHER_FORM)
      ]
      advice = f' There are {len(there)}: --k={len(there)}?'
      if {*there} != {f'splits_{j}.csv' for j in range(len(there))}:
        advice = (
          f' There are {first_of(there)}. Rename them so that numbers begin at'
          ' 0, without gaps or zeros in front.'
        )
      if not there:
        advice = ' No .csv file is there. Give another --split_dir.'
      lines.append(
        f'{path}: no such file. --k={k} needs splits_0.csv to'
        f' splits_{k - 1}.csv.' + advice
      )
      continue
    try:
      rows = files.read_csv(path, PARTS, SplitError)
    except SplitError as e:
      lines.append(str(e))
      continue
    parts = {part: np.zeros(len(place), bool) for part in PARTS}
    seen, unknown = set(), collections.defaultdict(list)
    for part, row in itertools.product(PARTS, rows):
      slide = row[1][part]
      whole = slide.removesuffix('.0')
      if slide not in place and (whole in place or whole in left_out):
        slide = whole
      if not slide or slide in left_out:
        continue
      if slide not in place:
        unknown[part].append(slide)
        continue
      if slide in seen:
        lines.append(f'{path}: slide {slide} is named twice')
      seen.add(slide)
      parts[part][place[slide]] = True
    spare = [slide for slide in place if slide not in seen]
    for part, slides in unknown.items():
      meant = hints(slides, spare, '{} in this file, {} in the CSV')
      lines.append(
        f'{path}: slide {first_of(slides)} ({part}) is not among the labelled'
        f' slides{meant and "."}{meant}'
      )
    splits.append(Split(**parts))
    names.append(str(path))
  return splits, lines + faults(manifest, splits, names)
