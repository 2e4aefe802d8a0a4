"""The tables of a report that are its own; others are of `summary`."""

from collections import Counter
from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import numpy as np

from data.splits import PARTS
from experiments.bags import ablation as ablations
from experiments.bags.options import OPTIONS, Model
from experiments.evaluation import summary as summaries
from experiments.evaluation.tables import Row, Table
from experiments.reporting.record import Record, Tested
from experiments.run.options import decisive, renamed, to_json
from experiments.run.results import NUMBER, Config, Folder
from kmil_jax import metrics

# Of `experiments.cost --format=json`; and the format of its values.
COST = 'cost.json'
_COSTS = dict.fromkeys(('params', 'macs', 'flops_xla', 'peak_bytes'), ',.0f')
_METRICS = ('accuracy', 'f1_macro', 'auroc')


def _table(
  title: str,
  label: str,
  columns: Mapping[str, str],
  rows: Mapping[str, Sequence[Any]],
  *notes: str,
) -> Table:
  """Returns a table of one line per row, by the rows' labels."""
  lines = [Row((name,), {'': values}) for name, values in rows.items()]
  return Table('report', title, (label,), columns, lines, notes)


def cohort(record: Record) -> Table:
  """Slides, cases and bag sizes by class, and of all."""
  slides, rows = record.slides, {}
  parts = [(name, slides.label == name) for name in record.summary['classes']]
  parts.append(('all classes', slides.label != ''))
  for name, held in parts:
    sizes = slides.instances[held]
    each = [of(sizes) for of in (np.min, np.median, np.max, np.sum)]
    rows[name] = [len(sizes), len(set(slides.case[held])), *each]
  names = 'slides', 'cases', 'fewest instances', 'median', 'most', 'in all'
  note = 'A case with slides of several classes counts in each of them.'
  columns = dict.fromkeys(names, ',.0f')
  return _table('Slides by class', 'class', columns, rows, note)


def splits(record: Record) -> Table:
  """Slides and cases of each part of each fold, and the classes tested."""
  slides, rows = record.slides, {}
  case = dict(zip(slides.slide, slides.case, strict=True))
  label = dict(zip(slides.slide, slides.label, strict=True))
  for fold, parts in enumerate(record.splits):
    values = []
    for part in PARTS:
      cases = {case.get(slide) for slide in parts[part]}
      values += [len(parts[part]), len(cases)]
    tested = Counter(map(label.get, parts['test']))
    values += [tested[name] for name in record.summary['classes']]
    rows[f'{fold}{"" if fold in record.folds else ", not finished"}'] = values
  names = [f'{part}, {what}' for part in PARTS for what in ('slides', 'cases')]
  names += [f'test, {name}' for name in record.summary['classes']]
  columns = dict.fromkeys(names, 'd')
  return _table('Slides by fold and part', 'fold', columns, rows)


def classes(part: Mapping[str, Any]) -> Table:
  """Precision, recall (sensitivity), AUROC and specificity of each class."""
  counts, rows = np.array(part['confusion']), {}
  others = counts.sum() - counts.sum(1)
  right = others - counts.sum(0) + counts.diagonal()
  columns = {'slides': 'd'}
  for c, (name, m) in enumerate(part['per_class'].items()):
    if not m['slides']:
      continue
    rows[name] = [m['slides']]
    for key in ('precision', 'recall', 'auroc'):
      rows[name] += [m[key], (m[f'{key}_ci_low'], m[f'{key}_ci_high'])]
      columns |= {key: '.3f', f'{key}, 95 %': '.3f'}
    rows[name].append(right[c] / others[c] if others[c] else None)
  columns['specificity'] = '.3f'
  return _table('Classes, each against the rest', 'class', columns, rows)


def confusion(part: Mapping[str, Any]) -> Table:
  """Slides of each true class that has any by the predicted class."""
  counts = zip(part['per_class'], part['confusion'], strict=True)
  rows = {name: row for name, row in counts if sum(row)}
  columns = {f'as {name}': 'd' for name in part['per_class']}
  title = 'Slides by true and predicted class'
  return _table(title, 'true class', columns, rows)


def by_fold(part: Mapping[str, Any], record: Record | None = None) -> Table:
  """Metrics of each fold.

  Args:
    part: summary.json, or what it has of a second cohort.
    record: adds the validation part and the epoch that was kept.
  """
  columns, rows = dict.fromkeys(part['metrics'], '.3f'), {}
  trained = record and any(record.history.values())
  if record:
    columns |= {f'validation {name}': '.3f' for name in _METRICS[1:]}
  if trained:
    columns |= {'epoch kept, from 1': 'd'}
  for place, fold in enumerate(part['folds']):
    values = [m['per_fold'][place] for m in part['metrics'].values()]
    if record:
      val, lines = record.folds[fold]['val'], record.history[fold]
      scores = metrics.evaluate(val.label, val.prob)
      values += [float(scores[name]) for name in _METRICS[1:]]
    if trained:
      values.append(lines[-1]['best_epoch'] + 1 if lines else None)
    rows[str(fold)] = values
  return _table('Metrics by fold', 'fold', columns, rows)


def ablation(record: Record) -> Table | None:
  """Metrics of the ablation on the same material; None if there is none.

  Looks for results of experiments.ablations, of any name, in the folder that
  holds this run, or around this run if it is one of their settings. Those of
  other slides, labels, splits or options are passed over; of options, the
  model's own are what settings differ in.
  """
  around, settings = record.folder.path.parent, {}
  shared = decisive(OPTIONS) - decisive([Model])
  for name in ablations.SETTINGS:
    # A search passes over folders that may not be read.
    found = [around.glob(f'{p}/summary.json') for p in (name, f'*/{name}')]
    for file in itertools.chain(*map(sorted, found)):
      part = Folder(file.parent)
      config = part.config()
      if config.inputs == record.config.inputs:
        flags = to_json(config.options(*OPTIONS))
        if all(flags[flag] == record.flags[flag] for flag in shared):
          settings[name] = summaries.read(part)
  return of_settings(settings) if settings else None


def of_settings(settings: Mapping[str, Mapping[str, Any]]) -> Table:
  """Returns what summary.json of settings of the ablation holds, by setting."""
  names = [name for m in _METRICS for name in (m, f'{m}, 95 %')]
  columns, rows = dict.fromkeys(names, '.3f'), {}
  for name, summary in settings.items():
    values = [summary['metrics'][metric] for metric in _METRICS]
    rows[name] = [
      cell
      for m in values
      for cell in (m['pooled'], (m['ci_low'], m['ci_high']))
    ]
  notes = [
    'A setting drops that share of the instances of lowest or highest variance'
    ' over classes, `all` none. By experiments.ablations, on the same slides'
    ' and splits.'
  ]
  notes += [
    f'{name}: of {summaries.name_folds(summary["folds"])} alone.'
    for name, summary in settings.items()
    if len(summary['folds']) < summary['k']
  ]
  part = 'test parts of all folds pooled'
  if summary.get('part') == 'val':
    part = 'validation part (there is no test part)'
  title = f'KMIL by what it drops, {part}'
  return _table(title, 'setting', columns, rows, *notes)


def cost(record: Record) -> Table | None:
  """What a forward pass of each model costs; None without cost.json."""
  for folder in (record.folder, Folder(record.folder.path.parent)):
    if folder.at(COST).exists():
      columns = _COSTS | {'seconds': '.6f'}
      models = folder.read(COST, {'*': {'*': NUMBER}}).items()
      rows = {name: [row.get(c) for c in columns] for name, row in models}
      note = f'One forward pass, as experiments.cost wrote it into {COST}.'
      return _table('Cost', 'model', columns, rows, note)
  return None


def mistakes(wrong: Sequence[Tested]) -> Table:
  """Wrong test slides, and what they were taken for."""
  lines = [
    Row((t.slide, t.case, str(t.fold)), {'': (t.label, t.pred, *probs)})
    for t in wrong
    for probs in [(t.prob, t.prob_label)]
  ]
  columns = {'true class': '', 'predicted': ''}
  columns |= {'its probability': '.3f', 'of the true class': '.3f'}
  labels = 'slide', 'case', 'fold'
  return Table('mistakes', 'The surest of them', labels, columns, lines)


def flags(config: Config, options: Sequence[type] = OPTIONS) -> Table:
  """Names and values of all options, and whether they decide the result."""
  decides = decisive(options)
  rows = {
    name: (str(value), 'yes' if name in decides else 'no')
    for name, value in sorted(renamed(config.values, options).items())
  }
  columns = dict.fromkeys(('value', 'decides the result'), '')
  return _table('Flags', 'flag', columns, rows)
