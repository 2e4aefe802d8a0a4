"""Compares models on the same test slides, patients being what varies."""

from collections.abc import Sequence
import csv
import dataclasses
import itertools
import pathlib

import numpy as np

from experiments.bags.options import OPTIONS
from experiments.evaluation import predictions, summary
from experiments.evaluation.predictions import Predictions
from experiments.run.options import decisive, renamed
from experiments.run.results import CONFIG, Folder, ResultsError
from kmil_jax import delong, intervals, metrics

COLUMNS = (
  'a',
  'b',
  'metric',
  'value_a',
  'value_b',
  'difference',
  'ci_low',
  'ci_high',
  'p',
  'p_holm',
  'p_delong',
  'p_delong_holm',
)


@dataclasses.dataclass(frozen=True)
class Run:
  """What a results folder holds of its finished folds."""

  name: str
  folder: pathlib.Path
  classes: tuple[str, ...]
  folds: dict[int, dict[str, Predictions]]

  def test(self) -> Predictions:
    """Test parts of all folds, sorted by slide within each."""
    parts = [parts['test'] for parts in self.folds.values()]
    return predictions.pool([predictions.by_slide(p) for p in parts])


def read(folders: Sequence[str]) -> list[Run]:
  """Reads results folders that can be compared.

  Raises:
    ResultsError: if a folder has no results, is given twice, or differs from
      the first in classes, folds, slides, cases, labels or splits.
  """
  paths = [pathlib.Path(folder) for folder in folders]
  for one, other in itertools.combinations(paths, 2):
    if one.resolve() == other.resolve():
      raise ResultsError(f'{one} is given twice')
  short = len({path.name for path in paths}) == len(paths)
  runs = [_read(path, path.name if short else str(path)) for path in paths]
  for run in runs[1:]:
    if differ := _differences(runs[0], run):
      raise ResultsError(
        f'{runs[0].folder} (first) and {run.folder} (second) differ, so that'
        ' their difference would not be that of the models:\n  '
        + '\n  '.join(differ)
      )
  return runs


def compare(
  runs: Sequence[Run], pairs: Sequence[tuple[int, int]] | None = None
) -> list[dict]:
  """Compares pairs of runs in every metric.

  Args:
    runs: as `read` returns them.
    pairs: places in `runs` of a and b; every pair by default.

  Returns:
    Rows of `COLUMNS`: values on the pooled test parts; `difference`, b - a; its
    95 % interval and two-sided `p` from paired resamples of patients; that p
    adjusted by Holm for the pairs of runs, within the metric; and, for an
    AUROC, p of the test in closed form with components summed within patients,
    adjusted likewise. Metrics are not adjusted for one another. `auroc <class>`
    is the class against the rest, where there are more than two. What is
    undefined is None, as the interval of models that never differ.
  """
  if pairs is None:
    pairs = list(itertools.combinations(range(len(runs)), 2))
  found = [_resampled(run) for run in runs]
  rows = []
  for a, b in pairs:
    by_delong = _delong(runs[a], runs[b])
    for name, (value_a, draws_a) in found[a].items():
      value_b, draws_b = found[b][name]
      low, high = intervals.percentile(draws_b - draws_a)
      rows.append(
        {
          'a': runs[a].name,
          'b': runs[b].name,
          'metric': name,
          'value_a': value_a,
          'value_b': value_b,
          'difference': value_b - value_a,
          'ci_low': low,
          'ci_high': high,
          'p': intervals.p_value(draws_b - draws_a),
          'p_delong': by_delong.get(name, np.nan),
        }
      )
  for metric in found[0]:
    tests = [row for row in rows if row['metric'] == metric]
    for name in ('p', 'p_delong'):
      adjusted = intervals.holm(np.array([row[name] for row in tests]))
      for row, p in zip(tests, adjusted, strict=True):
        row[f'{name}_holm'] = p
  return [
    {
      key: row[key] if isinstance(row[key], str) else _digits(row[key])
      for key in COLUMNS
    }
    for row in rows
  ]


def other_settings(runs: Sequence[Run]) -> list[str]:
  """Lines on what differs between runs besides the model, if anything does."""
  decides = decisive(OPTIONS) - {'model'}
  decided = []
  for run in runs:
    folder = Folder(run.folder)
    values = folder.config().values if folder.at(CONFIG).exists() else {}
    values = renamed(values, OPTIONS)
    decided.append({k: v for k, v in values.items() if k in decides})
  names = sorted(set().union(*decided))
  found = {name: [of.get(name) for of in decided] for name in names}
  return [
    f'--{name} differs: '
    + ', '.join(f'{run.name} {v}' for run, v in zip(runs, values, strict=True))
    for name, values in found.items()
    if any(value != values[0] for value in values)
  ]


def _digits(value: float) -> float | None:
  """Six digits, also of a p near 0; None where it is undefined."""
  return None if np.isnan(value) else float(f'{value:.6g}')


def _read(folder: pathlib.Path, name: str) -> Run:
  results = Folder(folder)
  classes = tuple(results.read('summary.json')['classes'])
  return Run(name, folder, classes, predictions.read_folds(results, classes))


def _differences(one: Run, other: Run) -> list[str]:
  """Says what differs between two runs, the first difference alone."""
  if one.classes != other.classes:
    return [f'classes: {", ".join(one.classes)} or {", ".join(other.classes)}']
  if list(one.folds) != list(other.folds):
    return [f'finished folds: {list(one.folds)} or {list(other.folds)}']
  for fold, parts in one.folds.items():
    for part in ('test', 'val'):
      if found := predictions.differences(parts[part], other.folds[fold][part]):
        return [f'fold {fold}, {part} part, {line}' for line in found]
    if strangers := _trained(one, fold) ^ _trained(other, fold):
      named = ', '.join(sorted(strangers)[:3])
      return [f'fold {fold}: only one of them trains on {named}']
  return []


def _trained(run: Run, fold: int) -> set[str]:
  """Slides that a fold trains on."""
  path = run.folder / 'splits' / f'splits_{fold}.csv'
  with path.open(newline='', encoding='utf-8') as f:
    return {row['train'] for row in csv.DictReader(f)} - {''}


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
  weight = summary.summary_weight(count)
  p = lambda w: delong.p_value(w @ change, w @ spread @ w)
  table = {'auroc': p(weight)}
  if count > 2:
    # A class without slides must not spoil the others.
    for c, name in enumerate(one.classes):
      table[f'auroc {name}'] = delong.p_value(change[c], spread[c, c])
  return table
