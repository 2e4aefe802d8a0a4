"""The metrics of a results folder, as files and as tables."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.files import counted
from experiments.evaluation import predictions
from experiments.evaluation.predictions import Folds, Predictions
from experiments.evaluation.tables import INTERVAL, Row, Table
from experiments.run.results import NUMBER, Folder, ResultsError, fits
from kmil_jax import calibration, delong, intervals, metrics

# Of fewer patients a temperature is not worth fitting.
LEAST_PATIENTS = 30
FEW_CASES = 10  # Tested, of one class.
_TOO_FEW = f'fewer than {LEAST_PATIENTS} validation patients'
_AT_BOUND = 'validation slides do not show how sure the model may be'
# Columns of summary.csv, for the test and the validation part each.
_COLUMNS = {
  'auc': 'auroc',
  'acc': 'accuracy',
  'f1_macro': 'f1_macro',
  'f1_weighted': 'f1_weighted',
  'balanced_acc': 'balanced_accuracy',
}


_POOLED = ('pooled', 'ci_low', 'ci_high')
_ERRORS = dict.fromkeys(('nll', 'brier', 'ece'), NUMBER)
_INTERVAL = {'low': NUMBER, 'high': NUMBER}


def _part(whole: str) -> dict[str, Any]:
  """What `of_folds` returns, see `results.fits`."""
  keys = 'mean', 'std', whole, 'ci_low', 'ci_high'
  metric = dict.fromkeys(keys, NUMBER) | {'per_fold': [NUMBER]}
  of_class = dict.fromkeys(('precision', 'recall', 'auroc'), NUMBER)
  of_class |= {'auroc_delong?': _INTERVAL, '*': NUMBER}
  return {
    'folds': [int],
    'metrics': dict.fromkeys(metrics.NAMES, metric),
    'auroc_delong': _INTERVAL,
    'per_class': {'*': of_class},
    'confusion': [[int]],
  }


# What `of_cases` returns.
_CASES = {
  'count': int,
  'mixed': int,
  'most_slides': int,
  '*': {name: dict.fromkeys(_POOLED, NUMBER) for name in metrics.NAMES},
}
# What summary.json holds.
_KIND = _part('pooled') | {
  'model': str,
  'task': str,
  'classes': [str],
  'k': int,
  'calibration': _ERRORS
  | {
    'after_temperature': _ERRORS,
    'temperature': [(int, float)],
    'temperature_reason?': [str],
    'temperature_bounds': [(int, float)],
    '*': object,
  },
  'part?': str,
  'cases?': _CASES,
  'external?': _part('ensemble')
  | {'slides': int, 'cases': int, 'calibration': _ERRORS, 'by_case?': _CASES},
}


class Temperature(NamedTuple):
  """What temperature.json of a fold holds."""

  temperature: float  # that log probabilities are divided by; 1 unless fitted
  reason: str  # why it was not fitted, '' if it was
  val_patients: int  # to fit it on
  val_slides: int  # of them
  val_folds: tuple[int, ...]  # whose validation parts hold them


def summarise(
  folder: Folder, model: str, task: str, k: int, classes: Sequence[str]
) -> dict[str, Any]:
  """Writes the metrics of the finished folds of a folder.

  Writes predictions.csv and validation_predictions.csv of all folds,
  summary.csv, summary.json and each fold's temperature.json; with
  fold_<i>/external.csv also external_predictions.csv and that of its cases,
  where the mean over folds has `mean` for its fold.

  Returns:
    What summary.json holds: `of_folds` of the test parts, `pooled` being all
    folds together, `of_calibration`, and `external`, if present, of
    `of_external`.

  Raises:
    ResultsError: if a file of a fold does not fit `classes`, or the folds
      differ in the external cohort.
  """
  folds = predictions.read_folds(folder, classes)
  for part in ('val', 'test'):
    of_part = {fold: parts[part] for fold, parts in folds.items()}
    if any(map(len, of_part.values())):
      written, lines = part, predictions.rows(of_part, part, classes)
      folder.write(predictions.FILES[part], lines)
  evaluated = folds.evaluated
  folder.write(predictions.CASES, predictions.case_rows(evaluated, classes))
  folder.write('summary.csv', _by_fold(folds))
  temperature = temperatures(folds)
  for fold, fitted in temperature.items():
    folder.write(f'fold_{fold}/temperature.json', fitted._asdict())
  tests = list(evaluated.values())
  summary = {
    'model': model,
    'task': task,
    'classes': list(classes),
    'k': k,
    'folds': list(folds),
    'part': written,
    'cases': of_cases(tests),
    **of_folds(folds.pooled, tests, classes, 'pooled'),
    'calibration': of_calibration(folds, temperature),
  }
  if external := predictions.read_external(folder, classes):
    summary['external'] = of_external(external, classes)
    mean = {'mean': predictions.mean(external)}
    lines = predictions.rows(external | mean, 'external', classes)
    folder.write('external_predictions.csv', lines)
    lines = predictions.case_rows(mean, classes)
    folder.write(f'external_{predictions.CASES}', lines)
  folder.write('summary.json', summary)
  return summary


def read(folder: Folder) -> dict[str, Any]:
  """Returns what `summarise` wrote, of this version or an older one.

  Raises:
    ResultsError: if it is missing or damaged.
  """
  summary = folder.read('summary.json')
  if not fits(_KIND, summary) or not _is_consistent(summary):
    raise ResultsError(
      f'{folder.at("summary.json")} is damaged, or not that of a'
      ' cross-validation. Run the command of the training again: it repeats'
      ' nothing that is done.'
    )
  return summary


def _is_consistent(summary: Mapping[str, Any]) -> bool:
  """Whether the lists of a summary are of its folds and classes."""
  calibration = summary['calibration']
  lists = [(summary['folds'], calibration['temperature'])]
  if 'temperature_reason' in calibration:
    lists.append((summary['folds'], calibration['temperature_reason']))
  for part in [summary, *filter(None, [summary.get('external')])]:
    lists.append((summary['classes'], part['per_class']))
    lists += [(summary['classes'], row) for row in part['confusion']]
    lists.append((summary['classes'], part['confusion']))
    each = part['metrics'].values()
    lists += [(part['folds'], metric['per_fold']) for metric in each]
  return all(len(one) == len(other) for one, other in lists)


def number(value: float) -> float | None:
  """A number as JSON has it: six decimals, None where it is undefined."""
  return None if np.isnan(value) else round(float(value), 6)


def of_folds(
  whole: Predictions,
  per_fold: Sequence[Predictions],
  classes: Sequence[str],
  whole_name: str,
) -> dict[str, Any]:
  """All metrics of a cohort, with intervals over patients.

  Args:
    whole: slides of all folds as one set.
    per_fold: the sets that single folds evaluated.
    classes: names, C.
    whole_name: what the value of `whole` is called.

  Returns:
    `metrics`: of each its mean and std over the folds where it is defined, its
    value on the whole, that value's 95 % interval (`intervals.of_metrics`:
    Wilson's of accuracy, precision and recall, else a bootstrap of patients),
    and the values of the folds; `auroc_delong`: the interval of the AUROC in
    closed form; `per_class`; and `confusion`, true classes in rows. Slides
    count, not patients; patients are what the intervals take for independent.
    What is undefined is None, as an interval where nothing varies.
  """
  values = metrics.evaluate(whole.label, whole.prob)
  by_fold = [metrics.evaluate(p.label, p.prob) for p in per_fold]
  bounds = intervals.of_metrics(whole.label, whole.prob, whole.case)
  table = {}
  for name in metrics.NAMES:
    each = np.array([scores[name] for scores in by_fold])
    table[name] = {
      **mean_and_std(each),
      whole_name: number(values[name]),
      'ci_low': number(bounds[name][0]),
      'ci_high': number(bounds[name][1]),
      'per_fold': [number(v) for v in each],
    }
  aurocs, covariance = class_covariance(whole)
  n = len(classes)
  cell = whole.label * n + whole.prob.argmax(1)
  weight = summary_weight(n)
  variance = weight @ covariance @ weight
  return {
    'metrics': table,
    'auroc_delong': _delong(weight @ aurocs, variance),
    'per_class': _per_class(whole, values, bounds, aurocs, covariance, classes),
    'confusion': np.bincount(cell, minlength=n * n).reshape(n, n).tolist(),
  }


def of_cases(tests: Sequence[Predictions]) -> dict[str, Any]:
  """Metrics of patients, by both ways of `predictions.of_cases`.

  Args:
    tests: evaluated slides of each fold.

  Returns:
    How many cases there are, and how many of them have slides of several
    classes; the most slides of another one; and for 'mean' and 'max' each
    metric of the pooled folds with its interval, see `of_folds`, of the others.
  """
  found = {}
  for how in predictions.JOINED:
    p = predictions.pool([predictions.of_cases(test, how) for test in tests])
    one = p.label >= 0
    found[how] = {
      name: dict(zip(_POOLED, cells, strict=True))
      for name, cells in with_intervals(p.take(one)).items()
    }
  # Repeated splits test a slide in several folds.
  joined = p.case[one]
  every = [test.case[np.isin(test.case, joined)] for test in tests]
  slides = [max(Counter(cases.tolist()).values(), default=0) for cases in every]
  return {
    'count': len(set(p.case.tolist())),
    'mixed': len(set(p.case[~one].tolist())),
    'most_slides': max(slides),
    **found,
  }


def with_intervals(p: Predictions) -> dict[str, list[float | None]]:
  """Each metric, and the ends of its 95 % interval over patients."""
  values = metrics.evaluate(p.label, p.prob)
  bounds = intervals.of_metrics(p.label, p.prob, p.case)
  return {
    name: [*map(number, (values[name], *bounds[name]))]
    for name in metrics.NAMES
  }


def mean_and_std(each: np.ndarray) -> dict[str, float | None]:
  """Mean and std over the folds where a value is defined."""
  defined = each[np.isfinite(each)]
  return {
    'mean': number(defined.mean() if len(defined) else np.nan),
    'std': number(defined.std(ddof=1) if len(defined) > 1 else np.nan),
  }


def class_covariance(p: Predictions) -> tuple[np.ndarray, np.ndarray]:
  """AUROC of each class against the rest [C] and covariance [C, C]."""
  positive = p.label == np.arange(p.prob.shape[1])[:, None]
  return delong.covariance(positive, p.prob.T, p.case)


def summary_weight(num_classes: int) -> np.ndarray:
  """The weights of the classes' AUROCs in the summary AUROC, [C].

  The same as `metrics.evaluate` has it, a mean of classes being a mean of their
  components.
  """
  if num_classes == 2:
    return np.array([0.0, 1.0])
  return np.full(num_classes, 1 / num_classes)


def temperatures(folds: Folds) -> dict[int, Temperature]:
  """Temperature of each fold's model, fitted on the validation of all folds.

  The patients that the fold tests are left out. A fold's own validation part is
  too small: where a dozen slides are all right, the fit makes the model as sure
  as the bounds allow. The temperature is 1 where there are fewer than
  `LEAST_PATIENTS` patients, or where the fit ends at a bound.
  """
  whole = predictions.pool([parts['val'] for parts in folds.values()])
  of_fold = np.repeat(list(folds), [len(p['val']) for p in folds.values()])
  fitted = {}
  for fold, parts in folds.items():
    seen = ~np.isin(whole.case, parts['test'].case)
    patients = len(set(whole.case[seen]))
    value, reason = 1.0, _TOO_FEW
    if patients >= LEAST_PATIENTS:
      value = calibration.temperature(whole.label[seen], whole.prob[seen])
      is_fitted = not calibration.at_bound(value)
      value, reason = (value, '') if is_fitted else (1.0, _AT_BOUND)
    fitted[fold] = Temperature(
      temperature=value,
      reason=reason,
      val_patients=patients,
      val_slides=int(seen.sum()),
      val_folds=tuple(np.unique(of_fold[seen]).tolist()),
    )
  return fitted


def scaled(folds: Folds, temperature: Mapping[int, Temperature]) -> np.ndarray:
  """Test probabilities of all folds at their temperatures, [N, C]."""
  pairs = zip(folds.evaluated.values(), temperature.values(), strict=True)
  return np.concatenate(
    [calibration.scale(p.prob, fitted.temperature) for p, fitted in pairs]
  )


def of_calibration(
  folds: Folds, temperature: Mapping[int, Temperature]
) -> dict[str, Any]:
  """Calibration of the pooled test parts before and after temperatures."""
  test, after = folds.pooled, scaled(folds, temperature)
  return {
    **errors(test.label, test.prob),
    'after_temperature': errors(test.label, after),
    'temperature': [number(t.temperature) for t in temperature.values()],
    'temperature_reason': [t.reason for t in temperature.values()],
    'temperature_bounds': list(calibration.TEMPERATURES),
  }


def errors(label: np.ndarray, prob: np.ndarray) -> dict[str, float | None]:
  """NLL, Brier score (summed over classes) and ECE."""
  kinds = calibration.nll, calibration.brier, calibration.ece
  return {kind.__name__: number(kind(label, prob)) for kind in kinds}


def of_external(
  parts: dict[int, Predictions], classes: Sequence[str]
) -> dict[str, Any]:
  """Metrics of the models of all folds on a cohort that none was trained on.

  Args:
    parts: the external slides as each fold's model predicts them, by fold.
    classes: names.

  Returns:
    What `of_folds` returns, `ensemble` being the mean probability over folds,
    with the number of slides and cases, the folds, and the ensemble's metrics
    by case and calibration.

  Raises:
    ResultsError: if the folds do not hold the same slides.
  """
  ensemble = predictions.mean(parts)
  return {
    'slides': len(ensemble),
    'cases': len(set(ensemble.case)),
    'folds': list(parts),
    'by_case': of_cases([ensemble]),
    **of_folds(ensemble, list(parts.values()), classes, 'ensemble'),
    'calibration': errors(ensemble.label, ensemble.prob),
  }


def name_folds(numbers: Collection[int]) -> str:
  """Returns 'fold 3', or 'folds 0, 1'."""
  return f'fold{"s" * (len(numbers) > 1)} {", ".join(map(str, numbers))}'


def text(summary: Mapping[str, Any]) -> str:
  """Returns the tables of a summary for the terminal."""
  parts = f'test parts of {name_folds(summary["folds"])}'
  if summary['part'] == 'val':
    parts = 'validation part (there is no test part)'
  task = f', task {summary["task"]}' * (summary['task'] != 'origin')
  title = f'{summary["model"]}{task}: {parts}'
  tables = [
    metrics_table(summary, 'pooled', title),
    *cases_tables(summary.get('cases')),
    _class_table(summary),
    calibration_table(summary['calibration']),
  ]
  if external := summary.get('external'):
    title = (
      f'external cohort, {counted(external["slides"], "slide")} of'
      f' {counted(external["cases"], "case")}: each fold, and the mean'
      ' probability'
    )
    tables += [
      metrics_table(external, 'ensemble', title),
      *cases_tables(external.get('by_case'), ' of the second cohort'),
      _class_table(external),
    ]
  return '\n'.join(f'\n{table.terminal()}' for table in tables)


def metrics_table(part: Mapping[str, Any], whole: str, title: str) -> Table:
  """Every metric on the whole, its interval, mean and deviation of folds."""
  every = dict(part['metrics'])
  closed = part['auroc_delong']
  every['auroc, by DeLong'] = every['auroc'] | {
    'ci_low': closed['low'],
    'ci_high': closed['high'],
  }
  rows = []
  for name, m in every.items():
    values = m[whole], (m['ci_low'], m['ci_high']), m['mean'], m['std']
    rows.append(Row((name,), {'': values}))
  columns = dict.fromkeys((whole, INTERVAL, 'mean of folds', 'std'), '.3f')
  return Table('metrics', title, ('metric',), columns, rows)


def cases_tables(
  cases: Mapping[str, Any] | None, cohort: str = ''
) -> list[Table]:
  """A table of what `of_cases` returned, if a patient has several slides.

  Args:
    cases: of patients.
    cohort: whose they are, for the title.
  """
  if not cases or cases['most_slides'] < 2:
    return []
  ways, rows = predictions.JOINED, []
  for name in metrics.NAMES:
    values = [cases[way][name] for way in ways]
    cells = [(m['pooled'], (m['ci_low'], m['ci_high'])) for m in values]
    rows.append(Row((name,), {'': [*cells[0], *cells[1]]}))
  columns = [name for way in ways for name in (way, f'{way}, 95 %')]
  notes = [
    'mean: of the probabilities of the slides of a patient',
    'max: the highest of each class, in shares of their sum',
  ]
  if mixed := cases['mixed']:
    notes.append(f'patients left out, with slides of several classes: {mixed}')
  title = f'{counted(cases["count"], "patient")}{cohort}, their slides joined'
  columns = dict.fromkeys(columns, '.3f')
  return [Table('cases', title, ('metric',), columns, rows, notes)]


def _class_table(part: Mapping[str, Any]) -> Table:
  """One row per true class: its metrics, and what its slides are taken for."""
  names = ('precision', 'recall', 'auroc')
  columns = dict.fromkeys(names, '.3f')
  classes = zip(part['per_class'].items(), part['confusion'], strict=True)
  rows = []
  for (name, m), counts in classes:
    confusion = ' '.join(f'{count:4}' for count in counts)
    values = *(m[key] for key in names), confusion
    rows.append(Row((name,), {'': values}))
  columns |= {'predicted as each class': ''}
  return Table('classes', 'Slides by true class', ('class',), columns, rows)


def calibration_table(part: Mapping[str, Any]) -> Table:
  """Errors of the probabilities, as they are and at the temperatures."""
  after = part['after_temperature']
  rows = [Row((name,), {'': (part[name], after[name])}) for name in after]
  reasons = part.get('temperature_reason')  # Since all folds share one fit.
  reasons = reasons or [''] * len(part['temperature'])
  pairs = zip(part['temperature'], reasons, strict=True)
  shown = ' '.join(f'{t:.2f}' + '*' * bool(reason) for t, reason in pairs)
  marks = [f'* 1, not fitted: {reason}' for reason in sorted({*reasons} - {''})]
  return Table(
    'calibration',
    'Calibration, and at temperatures fitted on validation',
    ('error',),
    dict.fromkeys(('as is', 'at temperature'), '.3f'),
    rows,
    [f'temperatures {shown}', *marks],
  )


def _by_fold(folds: Folds) -> list[list[Any]]:
  """Rows of summary.csv, one per fold; what is undefined is empty."""
  columns = [(part, name) for name in _COLUMNS for part in ('test', 'val')]
  lines = [['folds', *(f'{part}_{name}' for part, name in columns)]]
  for fold, parts in folds.items():
    of_part = {
      part: metrics.evaluate(p.label, p.prob) for part, p in parts.items()
    }
    values = [of_part[part][_COLUMNS[name]] for part, name in columns]
    lines.append([fold, *('' if np.isnan(v) else f'{v:.6f}' for v in values)])
  return lines


def _per_class(
  whole: Predictions,
  values: Mapping[str, np.ndarray],
  bounds: Mapping[str, np.ndarray],
  aurocs: np.ndarray,
  covariance: np.ndarray,
  classes: Sequence[str],
) -> dict[str, Any]:
  short = {key: key.removeprefix('class_') for key in metrics.CLASS_NAMES}
  table = {}
  for c, name in enumerate(classes):
    row = {short[key]: number(values[key][c]) for key in short}
    row['slides'] = int((whole.label == c).sum())
    for key, of in short.items():
      row[f'{of}_ci_low'], row[f'{of}_ci_high'] = map(number, bounds[key][:, c])
    row['auroc_delong'] = _delong(aurocs[c], covariance[c, c])
    table[name] = row
  return table


def _delong(auroc: float, variance: float) -> dict[str, float | None]:
  """Interval of an AUROC in closed form."""
  low, high = delong.interval(auroc, variance)
  return {'low': number(low), 'high': number(high)}
