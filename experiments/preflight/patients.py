"""What patients, classes and folds have to do with one another."""

from collections.abc import Sequence

import numpy as np

from data import splits as split_files
from data.files import first_of
from data.labels import Manifest
from data.splits import Split
from experiments.preflight.findings import Findings
from kmil_jax import splits


def folds(
  table: Manifest,
  findings: Findings,
  *,
  split_dir: str | None,
  k: int,
  seed: int,
  left_out: frozenset[str] = frozenset(),
  group: np.ndarray | None = None,
) -> list[Split]:
  """Reads or makes the folds; says what is wrong with them.

  Args:
    table: all labelled slides.
    findings: receives problems and warnings.
    split_dir: of splits_<i>.csv; None to make splits.
    k: folds.
    seed: of splits that are made.
    left_out: slides that files may name though the table does not.
    group: of each slide, for splits that are made to keep whole.

  Returns:
    The folds; of a folder with problems those that could be read.
  """
  if not len(table.slide):
    return []  # Why its rows cannot be used was said.
  if split_dir:
    made, faults = split_files.read(split_dir, table, k, left_out)
    findings.problems += faults
  else:
    try:
      parts = splits.make(table.case, table.label, k, seed, group)
      made = [Split(*part) for part in parts]
    except splits.SplitError as e:
      findings.problems.append(
        f'--k={k}: {e} --labels merges classes, --split_dir reads other splits.'
      )
      return []
  findings.warnings += warnings(table, made)
  return made


def conflicts(table: Manifest) -> list[str]:
  """Returns the cases whose slides have several labels, with the labels."""
  labels: dict[str, set[str]] = {}
  for case, label in zip(table.case, table.label, strict=True):
    labels.setdefault(str(case), set()).add(str(label))
  return [
    f'{case} ({", ".join(sorted(found))})'
    for case, found in sorted(labels.items())
    if len(found) > 1
  ]


def warnings(table: Manifest, made: Sequence[Split]) -> list[str]:
  """Says what is odd about patients, classes and folds."""
  said = []
  if mixed := conflicts(table):
    said.append(
      f'{len(mixed)} cases have slides of several labels: {first_of(mixed)};'
      ' labels are those of slides, and cases stay whole in every split'
    )
  if not made:
    return said
  if again := split_files.tested_again(table, list(made)):
    said.append(
      f'{len(again)} slides are in the test part of several folds (repeated'
      f' random splits?): {first_of(again)}; pooled figures count them each'
      ' time'
    )
  classes = np.unique(table.label)
  for part in ('test', 'val'):
    without = [
      f'{name} in fold {i}'
      for i, split in enumerate(made)
      for name in classes
      if name not in table.label[getattr(split, part)]
    ]
    if without:
      said.append(
        f'{part} parts without a slide of a class: {first_of(without)}; there'
        ' is no AUROC of that fold, only the pooled one'
      )
  used = np.any([s.train | s.val | s.test for s in made], axis=0)
  if not used.all():
    unused = table.slide[~used].tolist()
    said.append(f'no fold names the slides {first_of(unused)}')
  return said
