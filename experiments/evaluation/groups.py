"""Metrics of the test slides of each group, as of a site or a scanner."""

from collections.abc import Mapping, Sequence
import itertools

import numpy as np

from experiments.evaluation import predictions
from experiments.evaluation.summary import number
from experiments.evaluation.tables import Row, Table
from experiments.run.results import Folder
from kmil_jax import intervals, metrics

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
    A row for each group, its test slides pooled over folds, with 95 %
    intervals over patients; undefined where a group lacks a class.
  """
  folds = predictions.read_folds(folder, classes)
  tests = {f: predictions.evaluated(parts) for f, parts in folds.items()}
  p = predictions.pool(list(tests.values()))
  fold_of = {
    group_of[slide]: fold
    for fold, test in tests.items()
    for slide in test.slide.tolist()
  }
  group = np.array([group_of[slide] for slide in p.slide.tolist()])
  ends = [name + end for name in _METRICS for end in ('', '_low', '_high')]
  lines, rows = [['group', 'fold', 'cases', 'slides', *ends]], []
  for name in sorted(set(group.tolist())):
    own = group == name
    label, prob, case = p.label[own], p.prob[own], p.case[own]
    values = metrics.evaluate(label, prob)
    bounds = intervals.of_metrics(label, prob, case)
    cells = [[number(x) for x in (values[m], *bounds[m])] for m in _METRICS]
    counts = fold_of[name], len(set(case.tolist())), int(own.sum())
    lines.append([name, *counts, *itertools.chain(*cells)])
    shown = [x for value, *ends in cells for x in (value, tuple(ends))]
    rows.append(Row((name,), {'': [*counts, *shown]}))
  folder.write(NAME, lines)
  columns = dict.fromkeys(('fold', 'cases', 'slides'), 'd')
  for metric in _METRICS:
    columns |= {metric: '.3f', f'{metric}, 95 %': '.3f'}
  title = 'Test slides by group, all folds pooled'
  return Table('groups', title, ('group',), columns, rows)
