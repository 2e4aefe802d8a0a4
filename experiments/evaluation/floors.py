"""What a bag model must beat: classifiers of one vector per slide."""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
from typing import Any
import warnings

import numpy as np

from data.splits import Split
from experiments.evaluation import predictions
from experiments.evaluation.predictions import Predictions
from experiments.evaluation.summary import number
from experiments.evaluation.tables import INTERVAL, Row, Table
from experiments.run import progress
from experiments.run.results import NUMBER, Folder
from kmil_jax import intervals, metrics

NAME = 'floors.json'
METRICS = ('accuracy', 'f1_macro', 'auroc')
_KIND = {
  'predictions_sha256': str,
  'floors': [
    {
      'name': str,
      **dict.fromkeys(METRICS, NUMBER),
      **dict.fromkeys(('difference', 'ci_low', 'ci_high'), NUMBER),
    }
  ],
}


def classifier(name: str, c: float = 1.0) -> Any:
  """Returns an unfitted classifier of scikit-learn.

  Args:
    name: 'majority' (the shares of the classes), 'logistic' or 'mlp'
      (128 hidden units).
    c: inverse strength of the L2 penalty of the logistic regression.
  """
  from sklearn.dummy import DummyClassifier
  from sklearn.linear_model import LogisticRegression
  from sklearn.neural_network import MLPClassifier
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  match name:
    case 'majority':
      return DummyClassifier(strategy='prior')
    case 'logistic':
      last = LogisticRegression(C=c, max_iter=2000)
    case 'mlp':
      last = MLPClassifier(128, max_iter=500, random_state=0)
  return make_pipeline(StandardScaler(), last)


# By name: how features become one vector of a slide, and what classifies it.
FLOORS = {
  'majority class': (np.mean, 'majority'),
  'mean pooling': (np.mean, 'logistic'),
  'max pooling': (np.max, 'logistic'),
  'mean pooling, MLP': (np.mean, 'mlp'),
}


def pooled(cohort: Any, *poolings: Any) -> Iterator[np.ndarray]:
  """Returns a vector of every slide by each way of pooling, [n, D] each."""
  slides = progress.over(range(len(cohort.label)), 'pooled')
  bags = (cohort.read(i).features for i in slides)
  rows = [[pooling(bag, axis=0) for pooling in poolings] for bag in bags]
  return map(np.stack, zip(*rows, strict=True))


def predicted(
  model: Any, x: np.ndarray, label: np.ndarray, split: Split
) -> dict[str, np.ndarray]:
  """Fits a classifier to the training part of a fold.

  Args:
    model: see `classifier`.
    x: a vector of each slide, [n, D].
    label: int [n].
    split: the fold.

  Returns:
    Probabilities of the validation slides and of those that are evaluated.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # That fitting could go on.
    model.fit(x[split.train], label[split.train])
  return {
    'val': model.predict_proba(x[split.val]),
    'test': model.predict_proba(x[split.evaluated]),
  }


def write(folder: Folder, material: Any) -> Table:
  """Compares the finished folds of a folder with the floors.

  Writes floors.json, anew if other slides or probabilities were evaluated.

  Args:
    folder: with predictions of its folds.
    material: that it was trained and tested on.

  Returns:
    See `table`.
  """
  cohort = material.cohort
  folds = predictions.read_folds(folder, cohort.classes)
  tested, model = folds.evaluated, folds.pooled
  rows = predictions.rows({0: model}, 'test', cohort.classes)
  digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
  if folder.at(NAME).exists():
    held = folder.read(NAME, _KIND)
    if held['predictions_sha256'] == digest:
      return table(held['floors'])
  mean, largest = pooled(cohort, np.mean, np.max)
  floors = []
  for name, (pooling, kind) in FLOORS.items():
    x, probs = mean if pooling is np.mean else largest, []
    for fold, p in progress.over(tested.items(), name, unit='fold'):
      split = material.splits[fold]
      if kind == 'majority':
        # Each fold's own shares are low where its test part has many: to rank
        # slides of all folds by them is worse than chance. Those of all slides,
        # tested ones too, make a floor that is rather too high.
        split = dataclasses.replace(split, train=split.train | True)
      prob = predicted(classifier(kind), x, cohort.label, split)['test']
      # The model's predictions may be in any order.
      slides = cohort.manifest.slide[split.evaluated].tolist()
      order = [slides.index(slide) for slide in p.slide.tolist()]
      probs.append(prob[order])
    floors.append({'name': name, **_compared(model, np.concatenate(probs))})
  folder.write(NAME, {'predictions_sha256': digest, 'floors': floors})
  return table(floors)


def read(folder: Folder) -> list[dict[str, Any]]:
  """Returns what `write` found; nothing if it was not called."""
  if not folder.at(NAME).exists():
    return []
  return folder.read(NAME, _KIND)['floors']


def table(floors: Sequence[dict[str, Any]]) -> Table:
  """Returns a line for each floor, and what the model adds to its AUROC."""
  rows = []
  for floor in floors:
    values = [floor[name] for name in (*METRICS, 'difference')]
    ends = floor['ci_low'], floor['ci_high']
    rows.append(Row((floor['name'],), {'': [*values, ends]}))
  columns = dict.fromkeys(METRICS, '.3f')
  columns |= {'auroc, model - floor': '+.3f', INTERVAL: '+.3f'}
  return Table(
    'floors',
    'Floors: one vector per slide, on the same slides',
    ('floor',),
    columns,
    rows,
  )


def not_beaten(floors: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
  """Returns the floor of the highest AUROC, unless the model is above it.

  The model is above if the interval of the difference is, over patients.
  """
  defined = [floor for floor in floors if floor['auroc'] is not None]
  if not defined:
    return None
  best = max(defined, key=lambda floor: floor['auroc'])
  return None if (best['ci_low'] or 0) > 0 else best


def _compared(model: Predictions, prob: np.ndarray) -> dict[str, float | None]:
  """Returns metrics of a floor, and how far the model's AUROC is above."""
  label, case, both = model.label, model.case, (model.prob, prob)
  above, below = (metrics.evaluate(label, p) for p in both)
  draws = [intervals.replicates(label, p, case)['auroc'] for p in both]
  low, high = intervals.percentile(draws[0] - draws[1])
  found = {metric: below[metric] for metric in METRICS}
  found |= {'difference': above['auroc'] - below['auroc']}
  found |= {'ci_low': low, 'ci_high': high}
  return {name: number(value) for name, value in found.items()}
