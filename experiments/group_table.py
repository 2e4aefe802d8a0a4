"""What the test parts come to in each group of slides, as a site's."""

from collections.abc import Mapping
import pathlib

import numpy as np

from experiments import files, predictions, scores, tables
from kmil_jax import intervals, metrics

NAME = 'groups.csv'
_METRICS = ('auroc', 'accuracy', 'f1_macro')


def write(
  folder: pathlib.Path, group_of: Mapping[str, str], classes: tuple[str, ...]
) -> str:
  """Writes groups.csv of a results folder; returns its table as text.

  Args:
    folder: with predictions of its folds.
    group_of: group of each slide.
    classes: names, C.

  Returns:
    A line for each group, its test slides pooled over folds, with 95 %
    intervals over patients; n/a where a group lacks a class.
  """
  folds = predictions.read_folds(folder, classes)
  tests = {fold: parts['test'] for fold, parts in folds.items()}
  p = predictions.pool(list(tests.values()))
  fold_of = {
    group_of[slide]: fold
    for fold, test in tests.items()
    for slide in test.slide.tolist()
  }
  group = np.array([group_of[slide] for slide in p.slide.tolist()])
  rows = [['group', 'fold', 'cases', 'slides']]
  rows[0] += [name + end for name in _METRICS for end in ('', '_low', '_high')]
  width = max(5, *map(len, group.tolist()))
  lines = [f'{"group":{width}}  fold cases slides'.ljust(width + 20)]
  lines[0] += '  '.join(f'{name:22}' for name in _METRICS).rstrip()
  for name in sorted(set(group.tolist())):
    own = group == name
    label, prob, case = p.label[own], p.prob[own], p.case[own]
    values = metrics.evaluate(label, prob)
    bounds = intervals.of_metrics(label, prob, case)
    found = [
      scores.number(x)
      for metric in _METRICS
      for x in (values[metric], *bounds[metric])
    ]
    counts = [len(set(case.tolist())), int(own.sum())]
    numbers = ('' if x is None else x for x in found)
    rows.append([name, fold_of[name], *counts, *numbers])
    cells = [
      f'{tables.number(a)} [{tables.number(b)},{tables.number(c)}]'
      for a, b, c in zip(*[iter(found)] * 3, strict=True)
    ]
    line = f'{name:{width}}  {fold_of[name]:4} {counts[0]:5} {counts[1]:6} '
    lines.append(line + '  '.join(f'{cell:22}' for cell in cells).rstrip())
  files.write_csv(folder / NAME, rows)
  return '\n'.join(lines)
