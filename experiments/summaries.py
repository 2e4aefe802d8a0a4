"""Gathers the folds of a results folder into its summary files."""

from collections.abc import Sequence
import json
import pathlib

import numpy as np

from experiments import files, predictions, scores
from experiments.predictions import Predictions
from kmil_jax import metrics

# Columns of summary.csv, for the test and the validation part each.
_COLUMNS = {
  'auc': 'auroc',
  'acc': 'accuracy',
  'f1_macro': 'f1_macro',
  'f1_weighted': 'f1_weighted',
  'balanced_acc': 'balanced_accuracy',
}


def summarise(
  folder: pathlib.Path, model: str, task: str, k: int, classes: Sequence[str]
) -> dict:
  """Writes what the finished folds of a folder come to.

  Writes predictions.csv, summary.csv, summary.json and each fold's
  temperature.json; with fold_<i>/external.csv also external_predictions.csv,
  where the mean over folds has `mean` for its fold.

  Returns:
    What summary.json holds: `scores.of_folds` of the test parts, `pooled` being
    all folds together, `scores.of_calibration`, and `external`, where there is
    one, of `scores.summarise_external`.

  Raises:
    ResultsError: if a file of a fold does not fit `classes`, or the folds
      differ in the external cohort.
  """
  folds = predictions.read_folds(folder, classes)
  lines = [predictions.header(classes)]
  for fold, parts in folds.items():
    for part, p in parts.items():
      lines += predictions.rows(fold, part, p, classes)
  files.write_csv(folder / 'predictions.csv', lines)
  files.write_csv(folder / 'summary.csv', _by_fold(folds))
  temperature = scores.temperatures(folds)
  for fold, found in temperature.items():
    _write_json(
      folder / f'fold_{fold}' / 'temperature.json',
      {
        'temperature': found.value,
        'reason': found.reason,
        'at_bound': found.at_bound,
        'val_patients': found.patients,
        'val_slides': found.slides,
        'val_folds': found.folds,
      },
    )
  tests = [parts['test'] for parts in folds.values()]
  summary = {
    'model': model,
    'task': task,
    'classes': list(classes),
    'k': k,
    'folds': list(folds),
    **scores.of_folds(predictions.pool(tests), tests, classes, 'pooled'),
    'calibration': scores.of_calibration(folds, temperature),
  }
  if external := predictions.read_external(folder, classes):
    summary['external'] = scores.summarise_external(external, classes)
    lines = [predictions.header(classes)]
    for fold, p in (external | {'mean': predictions.mean(external)}).items():
      lines += predictions.rows(fold, 'external', p, classes)
    files.write_csv(folder / 'external_predictions.csv', lines)
  _write_json(folder / 'summary.json', summary)
  return summary


def _by_fold(folds: dict[int, dict[str, Predictions]]) -> list[list]:
  """Rows of summary.csv, one per fold; what is undefined is empty."""
  columns = [(part, name) for name in _COLUMNS for part in ('test', 'val')]
  lines = [['folds', *(f'{part}_{name}' for part, name in columns)]]
  for fold, parts in folds.items():
    found = {
      part: metrics.evaluate(p.label, p.prob) for part, p in parts.items()
    }
    values = [found[part][_COLUMNS[name]] for part, name in columns]
    lines.append([fold, *('' if np.isnan(v) else f'{v:.6f}' for v in values)])
  return lines


def _write_json(path: pathlib.Path, value: dict) -> None:
  files.write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')
