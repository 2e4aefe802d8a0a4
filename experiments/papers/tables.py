"""The tables and the numbers of the figures of Zheng et al. 2024, beside ours.

All but Tables 3 to 5 have a row per model or task, see `comparison.Run`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments import papers
from experiments.bags.ablation import TABLE_4, TABLE_5
from experiments.bags.cohort import METASTATIC, PAPER_CLASSES
from experiments.evaluation import comparison, costs, summary as summaries
from experiments.evaluation.comparison import Run
from experiments.evaluation.tables import (
  INTERVAL,
  MEAN,
  STD,
  Published,
  Row,
  Table,
)
from kmil_jax import metrics
from kmil_jax.models import SPECS

_PAPER = papers.read('zheng')
# The models' names in the paper, in the order of Table 1.
MODELS = {name.lower(): name for (name,) in _PAPER['table_1'].values}
# Lines of what is not one value per fold, by cohort and in summary.json.
WHOLE = {
  'internal': ('pooled', 'here, all folds pooled'),
  'external': ('ensemble', 'here, mean probability'),
}
_METRICS = {'ACC': 'accuracy', 'F1 score': 'f1_macro', 'AUROC': 'auroc'}
_BALANCED = {'balanced ACC': 'balanced_accuracy'}
_CHANGE = 'here, minus nothing dropped'
_CHANGE_INTERVAL = '95 % interval of that'

_WILSON = (
  "Wilson's on the effective number of slides, of which patients hold several"
)
_BOOTSTRAP = (
  f'Intervals, 95 %: of accuracies {_WILSON}; of the others percentiles of'
  ' resampled patients. F1 is the macro average, AUROC the macro average of one'
  ' class against the rest. An interval is n/a where nothing varies.'
)
_FOLDS = (
  'Mean and std are over the folds, of those where a value is defined; the'
  ' interval is that of the value before it.'
)
_BINARY = (
  'AUROC here is of the probabilities, in B and C of the second class. What the'
  ' paper prints as AUROC of these, 0.8348 (B) and 0.9426 (C), is the balanced'
  ' accuracy of its Table 6, (0.8201 + 0.8496) / 2 and (0.9313 + 0.9538) / 2:'
  ' the released code takes the AUROC of the predicted labels.'
)
_BOTH = (
  'Internal: test parts of all folds. External: the models of the folds, and'
  ' their mean probability. Of what the paper draws without a number there is'
  ' no line.'
)
# By name: title, cohorts and notes.
_TABLES: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
  'table_1': (
    'Table 1. Recall and precision (%) by class',
    ('internal',),
    (_FOLDS, f'Intervals, 95 %: {_WILSON}.'),
  ),
  'table_2': (
    'Table 2. The external cohort',
    ('external',),
    (
      _BOOTSTRAP,
      'Mean and std are over the models of the folds, each on the whole second'
      " cohort; the mean probability is that of the folds' models. The paper"
      ' does not say which of them its numbers are.',
      "TransMIL's F1 score in the paper, 0.6273, is DSMIL's to the last digit"
      ' and far above its own accuracy of 0.4871: likely an error of copying.',
    ),
  ),
  'table_6': (
    'Table 6. KMIL by task',
    ('internal',),
    (
      'The accuracy of a class is its recall.',
      _BINARY + ' They stand in the last column too, to be compared there.',
      _FOLDS,
      _BOOTSTRAP,
    ),
  ),
  'figure_2': (
    'Figure 2A. The models',
    ('internal',),
    (
      "B and C show KMIL's recall and precision, those of Table 1. The paper"
      ' prints no numbers of the other models for A.',
      _FOLDS,
      _BOOTSTRAP,
    ),
  ),
  'figure_3': (
    'Figure 3. The models on both cohorts',
    ('internal', 'external'),
    (_BOTH, _FOLDS, _BOOTSTRAP),
  ),
  'figure_4': (
    'Figure 4. KMIL by task on both cohorts',
    ('internal', 'external'),
    (_BOTH, _BINARY, _FOLDS, _BOOTSTRAP),
  ),
}
_ABLATION_NOTES = (
  't is a share of the instances here, as in the released code: a threshold on'
  ' the variance can only be a quantile. For five classes the variance of the'
  ' probabilities lies in [0, 0.2] and 1 - variance in [0.8, 1]; as absolute'
  ' thresholds on the latter, 0.1 and 0.2 would drop nothing and 0.8'
  ' everything.',
  'var: the variance is the score, as in the released code. one_minus_var:'
  ' eq. 3 as printed, which ranks the instances the other way round.',
  _FOLDS,
  _BOOTSTRAP,
  'Differences are to the setting of t that drops nothing, on the same slides;'
  ' their intervals are percentiles of paired resamples of patients, n/a where'
  ' nothing varies.',
)
_COST_NOTES = (
  'The paper counts the multiply-adds of dense layers and convolutions as one'
  ' each, and no products of attention. XLA counts all, and each as two, but'
  " a loop's body once. What the paper's seconds are of, it does not say.",
  'TransMIL: the paper leaves out the 512 parameters of the class token.',
  "ABMIL, DTFD: the parameters are the paper's. No size of a bag gives its"
  ' operations of ABMIL, or of DTFD with 4, 5 or 8 pseudo-bags.',
  "DSMIL, KMIL: no layers of the released code come to the paper's parameters."
  ' KMIL here is both of its stages, an ABMIL and a DSMIL, on all instances.',
)


def of_runs(name: str, runs: Mapping[str, Run]) -> Table:
  """Returns Table 1, 2 or 6, or the numbers of Figure 2, 3 or 4.

  Args:
    name: 'table_1'.
    runs: by model, or of KMIL by task.
  """
  title, cohorts, notes = _TABLES[name]
  columns = dict.fromkeys(_METRICS, '.4f')
  if name == 'table_1':
    classes = next(iter(runs.values())).classes
    kinds = ('recall', 'precision')
    columns = {
      f'{kind}: {_paper_class(c)}': '.2f' for kind in kinds for c in classes
    }
  if name == 'table_6':
    classes = (*PAPER_CLASSES[:2], METASTATIC)
    columns = dict.fromkeys((f'ACC: {c}' for c in classes), '.4f') | columns
    columns |= dict.fromkeys(_BALANCED, '.4f')
  rows = []
  for key, run in runs.items():
    shown = MODELS.get(key, key.upper())
    for cohort in cohorts:
      labels = (shown, cohort) if len(cohorts) > 1 else (shown,)
      rows.append(Row(labels, _lines(_values(run, cohort), columns, cohort)))
  labels = ('model' if key in MODELS else 'task', 'cohort')[: len(cohorts)]
  return Table(name, title, labels, columns, rows, notes, _PAPER[name])


def of_settings(name: str, runs: Mapping[str, Run]) -> Table:
  """Returns Table 4 or 5: KMIL by what it drops.

  Args:
    name: 'table_4'.
    runs: by setting; first that which drops nothing.

  Raises:
    ResultsError: if the settings were not tested on the same slides.
  """
  title, settings = {
    'table_4': ('KMIL without the share t of the lowest scores', TABLE_4),
    'table_5': ('KMIL with the share t of the lowest scores alone', TABLE_5),
  }[name]
  pairs = [(0, other) for other in range(1, len(runs))]
  compared = comparison.compare(list(runs.values()), pairs)
  changes = {(row['b'], row['metric']): row for row in compared}
  rows, published = [], {}
  for score, by_t in settings.items():
    for t, setting in by_t.items():
      lines = _lines(_values(runs[setting], 'internal'), _METRICS, 'internal')
      dropped = 'nothing'
      if setting != 'all':
        kind, share = setting.split('_')
        dropped = f'{kind} {100 * float(share):g} % of the variance'
        own = [changes[setting, metric] for metric in _METRICS.values()]
        lines[_CHANGE] = [row['difference'] for row in own]
        ends = [(row['ci_low'], row['ci_high']) for row in own]
        lines[_CHANGE_INTERVAL] = ends
      labels = score, f'{t:g}', dropped
      published[labels] = _PAPER[name].values[(f'{t:g}',)]
      rows.append(Row(labels, lines))
  return Table(
    name,
    f'Table {name[-1]}. {title}',
    ('score', 't', 'dropped'),
    dict.fromkeys(_METRICS, '.4f'),
    rows,
    _ABLATION_NOTES,
    Published(_PAPER[name].source, published),
  )


def cost(models: Iterable[str]) -> Table:
  """Returns Table 3, measured on this process's default device."""
  slide, models = costs.Slide(), list(models)
  choosers = [SPECS[m].chooser for m in models if SPECS[m].chooser]
  measured = slide.costs([*models, *choosers])
  rows = []
  for model in models:
    both = costs.both_stages(measured, model)
    values = [
      both.macs / 1e6,
      both.params / 1e3,
      both.seconds,
      both.flops_xla and both.flops_xla / 1e6,
      both.peak_bytes and both.peak_bytes / 2**20,
    ]
    rows.append(Row((MODELS[model],), {'here': values}))
  columns = {
    'operations (M), as the paper counts': '.2f',
    'parameters (K)': '.1f',
    'time (s)': '.5f',
    "operations (M), XLA's count": '.2f',
    'peak memory (MiB)': '.1f',
  }
  return Table(
    'table_3',
    'Table 3. Cost of one forward pass',
    ('model',),
    columns,
    rows,
    (*_COST_NOTES, f'Data: drawn numbers. {slide.title()}.'),
    _PAPER['table_3'],
  )


def _lines(
  values: Mapping[str, Mapping[str, Any]], columns: Iterable[str], cohort: str
) -> dict[str, list[Any]]:
  """Returns the lines of a row; None for what a run has not."""
  whole, name = WHOLE[cohort]
  of_columns = [values.get(column, {}) for column in columns]
  lines = {
    line: [value.get(key) for value in of_columns]
    for line, key in ((MEAN, 'mean'), (STD, 'std'), (name, whole))
  }
  ends = [(value.get('ci_low'), value.get('ci_high')) for value in of_columns]
  return lines | {INTERVAL: ends}


def _values(run: Run, cohort: str) -> dict[str, dict[str, Any]]:
  """Returns mean, std, whole and interval of a cohort by column."""
  part = run.summary if cohort == 'internal' else run.summary['external']
  names = _METRICS | _BALANCED
  values = {column: part['metrics'][name] for column, name in names.items()}
  if cohort == 'external':
    return values
  tests = [parts['test'] for parts in run.folds.values()]
  by_fold = [metrics.evaluate(p.label, p.prob) for p in tests]
  for c, (name, shares) in enumerate(part['per_class'].items()):
    name = _paper_class(name)
    for kind in ('recall', 'precision'):
      each = np.array([of_fold[f'class_{kind}'][c] for of_fold in by_fold])
      value = summaries.mean_and_std(each) | {
        'pooled': shares[kind],
        'ci_low': shares[f'{kind}_ci_low'],
        'ci_high': shares[f'{kind}_ci_high'],
      }
      percent = {k: None if x is None else 100 * x for k, x in value.items()}
      values[f'{kind}: {name}'] = percent
      if kind == 'recall':
        values[f'ACC: {name}'] = value
  return values


def _paper_class(name: str) -> str:
  """Returns the paper's name of a class that goes by the paper's number."""
  return {str(i): c for i, c in enumerate(PAPER_CLASSES)}.get(name, name)
