"""Results folders of drawn predictions."""

import csv
import json

import numpy as np

from experiments.evaluation import predictions
from experiments.evaluation.predictions import Predictions
from experiments.run.results import Folder

CLASSES = ('non-tumor', 'lymphoma', 'breast')


def strict(text):
  """Parses JSON proper: no NaN, no infinities."""

  def refuse(name):
    raise AssertionError(f'{name} is not JSON')

  return json.loads(text, parse_constant=refuse)


def rows_of(path):
  with path.open(newline='', encoding='utf-8') as f:
    return list(csv.reader(f))


def part(seed, n, labels=(0, 1, 2), classes=CLASSES):
  rng = np.random.default_rng(seed)
  label = np.array(labels)[np.arange(n) % len(labels)]
  prob = rng.dirichlet(np.ones(len(classes)), n).astype(np.float32)
  case = np.array([f'case {seed} {i // 2}' for i in range(n)], str)
  slide = np.array([f'0{seed},"{i}é' for i in range(n)], str)
  return Predictions(case=case, slide=slide, label=label, prob=prob)


def fold_folder(folder, fold):
  return Folder(folder / f'fold_{fold}')


def write(folder, fold, test_labels=(0, 1, 2)):
  parts = {
    'val': part(100 + fold, 6),
    'test': part(fold, 8, test_labels),
  }
  predictions.write(fold_folder(folder, fold), fold, parts, CLASSES)
  return parts


def write_external(folder, fold, p):
  predictions.write(fold_folder(folder, fold), fold, {'external': p}, CLASSES)
