"""The tables of Zheng et al. 2024, from summaries, with the paper's numbers."""

from collections.abc import Mapping, Sequence
import pathlib

from experiments import (
  comparison,
  paper_numbers as paper,
)
from experiments.bags import ablation as ablations, cohort as cohorts
from experiments.paper_text import Entry, Table

# Names of the metrics, in the paper's order of Table 2.
METRICS = {'accuracy': 'ACC', 'f1_macro': 'F1 score', 'auroc': 'AUROC'}

_QUANTILE = (
  't is a share of the instances here, as in the released code: a threshold on'
  ' the variance can only be a quantile. For five classes the variance of the'
  ' probabilities lies in [0, 0.2] and 1 - variance in [0.8, 1]; as absolute'
  ' thresholds on the latter, 0.1 and 0.2 would drop nothing and 0.8'
  ' everything.'
)
_ORIENTATION = (
  'var: the variance is the score, as in the released code. one_minus_var:'
  ' eq. 3 as printed, which ranks the instances the other way round.'
)
BINARY = (
  'AUROC here is of the probabilities, in B and C of the second class. What the'
  ' paper prints as AUROC of these, 0.8348 (B) and 0.9426 (C), is the balanced'
  ' accuracy of its Table 6, (0.8201 + 0.8496) / 2 and (0.9313 + 0.9538) / 2:'
  ' the released code takes the AUROC of the predicted labels.'
)
_WILSON = (
  "Wilson's on the effective number of slides, of which patients hold several"
)
BOOTSTRAP = (
  f'Intervals, 95 %: of accuracies {_WILSON}; of the others percentiles of'
  ' resampled patients. F1 is the macro average, AUROC the macro average of one'
  ' class against the rest. An interval is n/a where nothing varies.'
)
_CHANGE = (
  'Differences are to the setting of t that drops nothing, on the same slides;'
  ' their intervals are percentiles of paired resamples of patients, n/a where'
  ' nothing varies.'
)


def recall_and_precision(summaries: Mapping[str, dict]) -> Table:
  """Returns Table 1: per cent by class and model."""
  classes = next(iter(summaries.values()))['classes']
  kinds = ('recall', 'precision')
  entries = []
  for model, summary in summaries.items():
    rows = [summary['per_class'][c] for c in classes]
    known = {
      kind: dict(zip(paper.CLASSES, paper.TABLE_1[model][kind], strict=True))
      for kind in kinds
    }
    lines = {
      'here': [_percent(row[kind]) for kind in kinds for row in rows],
      'interval': [
        (_percent(row[f'{kind}_ci_low']), _percent(row[f'{kind}_ci_high']))
        for kind in kinds
        for row in rows
      ],
      'paper': [
        known[kind].get(canonical(c)) for kind in kinds for c in classes
      ],
    }
    entries.append(Entry((paper.MODELS[model],), lines))
  return Table(
    'table_1',
    'Table 1. Recall and precision (%) by class, test parts of all folds'
    ' pooled',
    ('model',),
    tuple(f'{kind}: {c}' for kind in kinds for c in classes),
    tuple(entries),
    (2,) * 2 * len(classes),
    (f'Intervals, 95 %: {_WILSON}.',),
  )


def external(summaries: Mapping[str, dict]) -> Table:
  """Returns Table 2: the models on a second cohort."""
  entries = []
  for model, summary in summaries.items():
    found = summary['external']['metrics']
    lines = {
      'mean': [found[name]['mean'] for name in METRICS],
      'std': [found[name]['std'] for name in METRICS],
      **metric_lines(found, 'ensemble'),
      'paper': [paper.TABLE_2[model][name] for name in METRICS],
    }
    entries.append(Entry((paper.MODELS[model],), lines))
  notes = [
    BOOTSTRAP,
    'Mean and std are over the models of the folds, each on the whole second'
    " cohort; the mean probability is that of the folds' models. The paper"
    ' does not say which of them its numbers are.',
  ]
  if 'transmil' in summaries:
    notes.append(
      "TransMIL's F1 score in the paper, 0.6273, is DSMIL's to the last digit"
      ' and far above its own accuracy of 0.4871: likely an error of copying.'
    )
  return Table(
    'table_2',
    'Table 2. The external cohort',
    ('model',),
    tuple(METRICS.values()),
    tuple(entries),
    (4,) * len(METRICS),
    tuple(notes),
  )


def ablation(
  number: int, summaries: Mapping[str, dict], folders: Sequence[pathlib.Path]
) -> Table:
  """Returns Table 4 or 5: KMIL by what it drops.

  Reads the test parts of the settings' folders too, for paired differences.

  Args:
    number: 4 or 5.
    summaries: by setting.
    folders: of the settings.

  Raises:
    ResultsError: if the settings were not tried on the same slides.
  """
  settings, published, title = {
    4: (
      ablations.TABLE_4,
      paper.TABLE_4,
      'Table 4. KMIL without the share t of the lowest scores',
    ),
    5: (
      ablations.TABLE_5,
      paper.TABLE_5,
      'Table 5. KMIL with the share t of the lowest scores alone',
    ),
  }[number]
  changes = _changes(folders)
  entries = []
  for score, by_threshold in settings.items():
    for t, setting in by_threshold.items():
      lines = metric_lines(summaries[setting]['metrics'], 'pooled')
      if rows := changes.get(setting):
        found = [rows[name] for name in METRICS]
        lines['change'] = [row['difference'] for row in found]
        lines['change_interval'] = [
          (row['ci_low'], row['ci_high']) for row in found
        ]
      lines['paper'] = [published[t][name] for name in METRICS]
      entries.append(Entry((score, f'{t:g}', _dropped(setting)), lines))
  return Table(
    f'table_{number}',
    title + ', test parts of all folds pooled',
    ('score', 't', 'dropped'),
    tuple(METRICS.values()),
    tuple(entries),
    (4,) * len(METRICS),
    (_QUANTILE, _ORIENTATION, BOOTSTRAP, _CHANGE),
  )


def tasks(summaries: Mapping[str, dict]) -> Table:
  """Returns Table 6: KMIL by task."""
  classes = (*paper.CLASSES[:2], cohorts.METASTATIC)
  overall = {**METRICS, 'balanced_accuracy': 'balanced ACC'}
  entries = []
  for task, summary in summaries.items():
    here = [summary['per_class'].get(c, {}) for c in classes]
    published = paper.TABLE_6[task]
    recalls = published['recall']
    lines = metric_lines(summary['metrics'], 'pooled', overall)
    lines['here'] = [row.get('recall') for row in here] + lines['here']
    ends = [
      (row.get('recall_ci_low'), row.get('recall_ci_high')) for row in here
    ]
    lines['interval'] = ends + lines['interval']
    lines['paper'] = [
      *(recalls.get(c) for c in classes),
      *(published[name] for name in METRICS),
      published['auroc'] if len(recalls) == 2 else None,
    ]
    entries.append(Entry((task.upper(),), lines))
  return Table(
    'table_6',
    'Table 6. KMIL by task, test parts of all folds pooled',
    ('task',),
    (*(f'ACC: {c}' for c in classes), *overall.values()),
    tuple(entries),
    (4,) * (len(classes) + len(overall)),
    (
      'The accuracy of a class is its recall.',
      BINARY + ' They stand in the last column too, to be compared there.',
      BOOTSTRAP,
    ),
  )


def metric_lines(
  table: Mapping[str, dict], whole: str, names: Sequence[str] = tuple(METRICS)
) -> dict[str, list]:
  """Returns the lines of values and intervals of a summary's `metrics`.

  Args:
    table: the metrics.
    whole: 'pooled' or 'ensemble'.
    names: of the metrics, by column.
  """
  return {
    'ensemble' if whole == 'ensemble' else 'here': [
      table[name][whole] for name in names
    ],
    'interval': [
      (table[name]['ci_low'], table[name]['ci_high']) for name in names
    ],
  }


def canonical(name: str) -> str:
  """Returns the paper's name of a class that goes by the paper's number."""
  numbers = {str(i): known for i, known in enumerate(paper.CLASSES)}
  return numbers.get(name, name)


def _changes(folders: Sequence[pathlib.Path]) -> dict[str, dict[str, dict]]:
  """Rows of `comparison.compare` by setting and metric, a dropping nothing."""
  runs = comparison.read([str(folder) for folder in folders])
  first = [run.folder.name for run in runs].index('all')
  pairs = [(first, other) for other in range(len(runs)) if other != first]
  changes = {runs[other].folder.name: {} for _, other in pairs}
  for row in comparison.compare(runs, pairs):
    changes[row['b']][row['metric']] = row
  return changes


def _dropped(setting: str) -> str:
  if setting == 'all':
    return 'nothing'
  kind, share = setting.split('_')
  return f'{kind} {100 * float(share):g} % of the variance'


def _percent(x: float | None) -> float | None:
  return None if x is None else 100 * x
