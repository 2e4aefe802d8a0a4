"""The rows of the tables in a report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data import splits as split_files
from experiments.bags.options import OPTIONS
from experiments.reporting.record import Record
from experiments.run.options import decisive
from kmil_jax import metrics

# Names in files: names in the page.
METRICS = {
  'accuracy': 'Accuracy',
  'balanced_accuracy': 'Balanced accuracy',
  'f1_macro': 'F1, macro',
  'f1_weighted': 'F1, weighted',
  'auroc': 'AUROC',
}


def cohort(record: Record) -> list[dict[str, Any]]:
  """Slides, cases and bag sizes by class, and of all."""
  slides = record.slides
  rows = []
  groups = [(name, slides.label == name) for name in record.classes]
  for name, held in [*groups, ('all', np.ones(len(slides.label), bool))]:
    row = {
      'name': name,
      'slides': int(held.sum()),
      'cases': len(set(slides.case[held].tolist())),
    }
    if slides.instances is not None and held.any():
      sizes = slides.instances[held]
      row |= {
        'least': int(sizes.min()),
        'median': int(np.median(sizes)),
        'most': int(sizes.max()),
        'total': int(sizes.sum()),
      }
    rows.append(row)
  return rows


def splits(record: Record) -> list[dict[str, Any]]:
  """Slides and cases of each part of each fold, and the classes tested."""
  slides = record.slides
  label = dict(zip(slides.slide.tolist(), slides.label.tolist(), strict=True))
  case_of = slides.case_of
  rows = []
  for fold, parts in enumerate(record.splits):
    tested = Counter(label.get(slide) for slide in parts['test'])
    known = all(slide in label for p in parts.values() for slide in p)
    rows.append(
      {
        'fold': fold,
        'done': fold in record.folds,
        'parts': [
          (
            len(parts[part]),
            len({case_of[s] for s in parts[part]}) if known else None,
          )
          for part in split_files.PARTS
        ],
        'tested': [tested[name] if known else None for name in record.classes],
      }
    )
  return rows


def folds(record: Record) -> list[dict[str, Any]]:
  """What each finished fold came to."""
  rows = []
  calibration = record.summary['calibration']
  reasons = calibration.get('temperature_reason')  # Since all folds share one.
  for place, (fold, parts) in enumerate(record.folds.items()):
    test, val = parts['test'], parts['val']
    said = metrics.evaluate(val.label, val.prob)
    lines = record.history[fold]
    rows.append(
      {
        'fold': fold,
        'slides': len(test),
        'cases': len(set(test.case.tolist())),
        'metrics': [
          record.summary['metrics'][name]['per_fold'][place] for name in METRICS
        ],
        'val': [_defined(said[name]) for name in ('f1_macro', 'auroc')],
        'epoch': lines[-1]['best_epoch'] if lines else None,
        'epochs': lines[-1]['epoch'] + 1 if lines else None,
        'temperature': calibration['temperature'][place],
        'reason': reasons[place] if reasons else '',
      }
    )
  return rows


def second_folds(table: Mapping[str, Any]) -> list[dict[str, Any]]:
  """What the model of each fold comes to on a second cohort."""
  return [
    {
      'fold': fold,
      'metrics': [
        table['metrics'][name]['per_fold'][place] for name in METRICS
      ],
    }
    for place, fold in enumerate(table['folds'])
  ]


def flags(record: Record) -> list[tuple[str, str, bool]]:
  """Names and values of all flags, and whether they decide the result."""
  decides = decisive(OPTIONS)
  return [
    (name, 'not given' if value is None else _text(value), name in decides)
    for name, value in sorted(record.flags.items())
  ]


def inputs(record: Record) -> list[tuple[str, str]]:
  """Names and hashes of what went in."""
  return [(name, str(value)) for name, value in record.config['inputs'].items()]


def features(record: Record) -> list[tuple[str, str]]:
  """What is known of the features, in words."""
  known = dict(record.features)
  names = {
    'encoder': 'Encoder',
    'mpp': 'Resolution, µm per pixel',
    'patch_size': 'Side of a tile, pixels',
    'precision': 'Precision of the encoder',
    'overlap': 'Overlap of tiles, pixels',
    'min_tissue': 'Least share of tissue',
    'augment': 'Augmentation',
  }
  rows = [
    (text, str(known.pop(name)))
    for name, text in names.items()
    if name in known
  ]
  width = record.config.get('cohort', {}).get('width')
  if width:
    rows.insert(0, ('Features of an instance', str(width)))
  return rows + [(name, str(value)) for name, value in sorted(known.items())]


def _defined(value: float) -> float | None:
  return None if np.isnan(value) else float(value)


def _text(value: Any) -> str:
  if isinstance(value, Sequence) and not isinstance(value, str):
    return ', '.join(map(str, value))
  return str(value)
