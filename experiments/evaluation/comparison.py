"""Compares models on the same test slides, patients being what varies."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import pathlib
from typing import Any

import numpy as np

from experiments.bags.options import OPTIONS
from experiments.evaluation import predictions, summary as summaries
from experiments.evaluation.predictions import Folds, Predictions
from experiments.evaluation.tables import INTERVAL, Row, Table
from experiments.run import progress
from experiments.run.options import decisive, renamed, to_json
from experiments.run.results import CONFIG, Folder, ResultsError
from kmil_jax import delong, intervals, metrics

_HOLM = (
  'Holm: p corrected within each metric for all pairs of runs, not across'
  ' metrics.'
)


@dataclasses.dataclass(frozen=True)
class Run:
  """What a results folder holds of its finished folds."""

  name: str
  folder: Folder
  summary: Mapping[str, Any]  # as `summary.summarise` writes it
  folds: Folds
  patients: str | None = None  # how slides are joined, see `of_cases`

  @property
  def classes(self) -> list[str]:
    """The names of the classes."""
    return self.summary['classes']

  def test(self) -> Predictions:
    """Returns the test parts of all folds, sorted by slide within each.

    Of patients, those whose slides are of several classes are left out.
    """
    parts = [parts['test'] for parts in self.folds.values()]
    if not self.patients:
      return predictions.pool([predictions.by_slide(p) for p in parts])
    joined = self._joined()
    pooled = predictions.pool(joined)
    pooled = pooled.take(pooled.label >= 0)
    if not len(pooled):
      raise ResultsError(
        f'{self.folder.path}: every patient has slides of several classes.'
        ' Compare slides, without --patients.'
      )
    return pooled

  def mixed(self) -> int:
    """Returns how many test patients have slides of several classes."""
    return len({case for p in self._joined() for case in p.case[p.label < 0]})

  def few_patients(self) -> list[str]:
    """Returns the classes with few test patients, as 'lymphoma (2)'."""
    test, few = self.test(), []
    for c, name in enumerate(self.classes):
      count = len(set(test.case[test.label == c]))
      if count < summaries.FEW_CASES:
        few.append(f'{name} ({count})')
    return few

  def _joined(self) -> list[Predictions]:
    parts = (parts['test'] for parts in self.folds.values())
    return [predictions.of_cases(p, self.patients or 'mean') for p in parts]

  def external(self) -> Predictions:
    """Returns the mean of the folds' models on the second cohort."""
    folds = predictions.read_external(self.folder, self.classes)
    return predictions.mean(folds)


def read(path: pathlib.Path, name: str) -> Run:
  """Reads a results folder.

  Raises:
    ResultsError: if it has no results, or tests nothing.
  """
  folder = Folder(path)
  summary = summaries.read(folder)
  if summary.get('part') == 'val':
    raise ResultsError(
      f'{path}: was trained with --k=1, so there is no test part to compare.'
      ' Train with 3 folds or more.'
    )
  folds = predictions.read_folds(folder, summary['classes'])
  return Run(name, folder, summary, folds)


def read_all(paths: Sequence[pathlib.Path]) -> list[Run]:
  """Reads results folders, named as short as they can be told apart.

  Raises:
    ResultsError: if a folder has no results, or is given twice.
  """
  for one, other in itertools.combinations(paths, 2):
    if one.resolve() == other.resolve():
      raise ResultsError(f'{one} is given twice. Leave it out once.')
  short = len({path.name for path in paths}) == len(paths)
  return [read(path, path.name if short else str(path)) for path in paths]


def compare(
  runs: Sequence[Run], pairs: Sequence[tuple[int, int]] | None = None
) -> list[dict[str, Any]]:
  """Compares pairs of runs in every metric.

  Args:
    runs: two or more.
    pairs: places in `runs` of a and b; every pair by default.

  Returns:
    Rows of the same keys: values on the pooled test parts; `difference`, b - a;
    its 95 % interval and two-sided `p` from paired resamples of patients; that
    p adjusted by Holm for the pairs of runs, within the metric; and, for an
    AUROC, p of the test in closed form with components summed within patients,
    adjusted likewise. Metrics are not adjusted for one another. `auroc <class>`
    is the class against the rest, where there are more than two. What is
    undefined is None, as the interval of models that never differ.

  Raises:
    ResultsError: if a run differs from the first in classes, folds, slides,
      cases, labels or splits.
  """
  for run in runs[1:]:
    if differ := _differences(runs[0], run):
      raise ResultsError(
        f'{runs[0].folder.path} (first) and {run.folder.path} (second) differ:'
        f'\n  {differ}\nOnly models that were trained and tested on the same'
        ' slides can be compared.'
      )
  shown = progress.over(runs, 'resampling', unit='run')
  draws = [_resampled(run) for run in shown]
  rows = []
  for a, b in pairs or itertools.combinations(range(len(runs)), 2):
    p_delong = _delong(runs[a], runs[b])
    for name, (value_a, draws_a) in draws[a].items():
      value_b, draws_b = draws[b][name]
      change = draws_b - draws_a
      low, high = intervals.percentile(change)
      row = {
        'a': runs[a].name,
        'b': runs[b].name,
        'metric': name,
        'value_a': value_a,
        'value_b': value_b,
        'difference': value_b - value_a,
        'ci_low': low,
        'ci_high': high,
        'p': intervals.p_value(change),
        'p_holm': np.nan,
        'p_delong': p_delong.get(name, np.nan),
        'p_delong_holm': np.nan,
      }
      rows.append(row)
  for metric in draws[0]:
    tests = [row for row in rows if row['metric'] == metric]
    for name in ('p', 'p_delong'):
      adjusted = intervals.holm(np.array([row[name] for row in tests]))
      for row, p in zip(tests, adjusted, strict=True):
        row[f'{name}_holm'] = p
  return [{key: _digits(value) for key, value in row.items()} for row in rows]


def tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
  """Returns the rows of `compare` as a table for each pair of runs."""
  columns = {'a': '.3f', 'b': '.3f', 'b - a': '+.3f', INTERVAL: '+.3f'}
  columns |= dict.fromkeys(('p', 'p, Holm', 'DeLong p', 'DeLong p, Holm'), 'p')
  result = []
  for (a, b), group in itertools.groupby(rows, lambda r: (r['a'], r['b'])):
    lines = []
    for row in group:
      _, _, metric, *values = row.values()
      values[3:5] = [tuple(values[3:5])]
      lines.append(Row((metric,), {'': values}))
    title = f'a: {a}, b: {b}'
    result.append(
      Table('comparison', title, ('metric',), columns, lines, (_HOLM,))
    )
  return result


def other_options(runs: Sequence[Run]) -> list[str]:
  """Returns lines on options that differ between runs, the model apart.

  What a script does not ask for, as ablations for --seeds, is as by default.
  """
  held, lines = [], []
  defaults = to_json([of() for of in OPTIONS])
  for run in runs:
    is_known = run.folder.at(CONFIG).exists()
    values = run.folder.config().values if is_known else dict.fromkeys(defaults)
    values = defaults | renamed(values, OPTIONS)
    seed = run.folder.path.resolve().name.removeprefix('seed_')
    if is_known and values['seeds'] != 1 and seed.isdecimal():
      values |= {'seed': int(seed), 'seeds': 1}  # One of those of the folder.
    held.append(values)
  for name in sorted(decisive(OPTIONS) - {'model'}):
    values = [of_run.get(name) for of_run in held]
    if any(value != values[0] for value in values):
      pairs = zip(runs, values, strict=True)
      shown = ', '.join(f'{run.name} {value}' for run, value in pairs)
      lines.append(f'--{name} differs: {shown}')
  return lines


def _digits(value: Any) -> Any:
  """Six digits, also of a p near 0; None where it is undefined."""
  if isinstance(value, str):
    return value
  return None if np.isnan(value) else float(f'{value:.6g}')


def _differences(one: Run, other: Run) -> str:
  """Says what differs between two runs first, '' if nothing does."""
  if one.classes != other.classes:
    return f'classes: {", ".join(one.classes)} or {", ".join(other.classes)}'
  if list(one.folds) != list(other.folds):
    return f'finished folds: {list(one.folds)} or {list(other.folds)}'
  for fold, parts in one.folds.items():
    for part, p in parts.items():
      if differing := predictions.differences(p, other.folds[fold][part]):
        return '\n  '.join(f'fold {fold}, {part} part, {x}' for x in differing)
    if strangers := _trained(one, fold) ^ _trained(other, fold):
      named = ', '.join(sorted(strangers)[:3])
      return f'fold {fold}: only one of them trains on {named}'
  return ''


def _trained(run: Run, fold: int) -> set[str]:
  """Returns the slides that a fold trains on."""
  rows = run.folder.read(f'splits/splits_{fold}.csv')
  return {row['train'] for row in rows} - {''}


def _resampled(run: Run) -> dict[str, tuple[float, np.ndarray]]:
  """Value and replicates of each metric, by its name in the table.

  The draws depend on the cases alone: those of runs that can be compared agree.
  """
  p = run.test()
  values = metrics.evaluate(p.label, p.prob)
  drawn = intervals.replicates(p.label, p.prob, p.case)
  table = {name: (values[name], drawn[name]) for name in metrics.NAMES}
  if len(run.classes) > 2:
    aurocs, draws = values['class_auroc'], drawn['class_auroc'].T
    for name, *both in zip(run.classes, aurocs, draws, strict=True):
      table[f'auroc {name}'] = tuple(both)
  return table


def _delong(one: Run, other: Run) -> dict[str, float]:
  """p of each AUROC's difference, by its name in the table."""
  a, b = one.test(), other.test()
  count = len(one.classes)
  positive = np.tile(a.label == np.arange(count)[:, None], (2, 1))
  value, covariance = delong.covariance(
    positive, np.concatenate([a.prob.T, b.prob.T]), a.case
  )
  change = value[count:] - value[:count]
  # Var(b - a), of all classes with one another.
  blocks = covariance.reshape(2, count, 2, count)
  spread = blocks[0, :, 0] + blocks[1, :, 1] - blocks[0, :, 1] - blocks[1, :, 0]
  weight = summaries.summary_weight(count)
  p = lambda w: delong.p_value(w @ change, w @ spread @ w)
  table = {'auroc': p(weight)}
  if count > 2:
    # A class without slides must not spoil the others.
    for c, name in enumerate(one.classes):
      table[f'auroc {name}'] = delong.p_value(change[c], spread[c, c])
  return table
