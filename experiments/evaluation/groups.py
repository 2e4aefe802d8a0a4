"""Metrics of the test slides of each group, as of a site or a scanner."""

from collections.abc import Mapping, Sequence
import itertools

import numpy as np

from experiments.evaluation import predictions
from experiments.evaluation.summary import with_intervals
from experiments.evaluation.tables import Row, Table
from experiments.run.results import Folder

NAME = 'groups.csv'
_METRICS = ('auroc', 'accuracy', 'f1_macro')


def write(
  folder: Folder, group_of: Mapping[str, str], classes: Sequence[str]
) -> Table:
  """Writes groups.csv of a results folder.

  Args:
    folder: with predictions of its folds.
    group_of: group of each slide.
    classes: names, C.

  Returns:
    See `read`: test slides pooled over folds, with 95 % intervals over
    patients.
  """
  folds = predictions.read_folds(folder, classes)
  p = folds.pooled
  fold_of = {
    group_of[slide]: fold
    for fold, test in folds.evaluated.items()
    for slide in test.slide.tolist()
  }
  group = np.array([group_of[slide] for slide in p.slide.tolist()])
  ends = [name + end for name in _METRICS for end in ('', '_low', '_high')]
  lines = [['group', 'fold', 'cases', 'slides', *ends]]
  for name in sorted(set(group.tolist())):
    own = p.take(group == name)
    values = with_intervals(own)
    counts = fold_of[name], len(set(own.case.tolist())), len(own)
    cells = itertools.chain(*(values[metric] for metric in _METRICS))
    lines.append([name, *counts, *cells])
  folder.write(NAME, lines)
  return read(folder)


def read(folder: Folder) -> Table | None:
  """Returns what `write` wrote, a row for each group; None without the file."""
  if not folder.at(NAME).exists():
    return None
  rows = []
  for row in folder.read(NAME):
    name, *cells = row.values()
    cells = [f'{float(x):.3f}' if '.' in x else x or 'n/a' for x in cells]
    rows.append(Row((name,), {'': cells}))
  title = 'Test slides by group, all folds pooled'
  columns = dict.fromkeys(list(row)[1:], '')
  notes = ('Where a group lacks a class there is no AUROC.',)
  return Table('groups', title, ('group',), columns, rows, notes)
