"""Results folders of drawn predictions under the names that a table reads."""

import pathlib
import types

from absl import flags
from absl.testing import flagsaver
import numpy as np

from experiments import (
  ablation_settings,
  class_labels,
  paper,
  predictions,
  summaries,
)
from experiments.predictions import Predictions

FOLDS = 3
K = f'--k={FOLDS}'
CLASSES = {
  'origin': class_labels.PAPER_CLASSES,
  'a': (*class_labels.PAPER_CLASSES[:2], class_labels.METASTATIC),
  'b': class_labels.PAPER_CLASSES[:2],
  'c': (class_labels.PAPER_CLASSES[1], class_labels.METASTATIC),
}


def part(seed, slides, classes, skill, name):
  """Slides of pairs in a case, told apart with some skill."""
  rng = np.random.default_rng(seed)
  label = np.arange(slides) // 2 % len(classes)
  logits = rng.normal(size=(slides, len(classes)))
  logits += skill * np.eye(len(classes))[label]
  prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  return Predictions(
    case=np.array([f'{name} {i // 2}' for i in range(slides)]),
    slide=np.array([f'{name}_{i:03}' for i in range(slides)]),
    label=label,
    prob=prob,
  )


def write(folder, model, task, *, seed=0, skill=1.0, slides=20, external=False):
  """Writes a folder as a finished command leaves it, but for its config."""
  classes = CLASSES[task]
  for fold in range(FOLDS):
    draw = lambda where, n, fold=fold: part(
      [seed, fold, n], n, classes, skill, f'{where}{fold}'
    )
    parts = {'val': draw('val', 10), 'test': draw('test', slides)}
    at = folder / f'fold_{fold}'
    predictions.write(at / 'predictions.csv', fold, parts, classes)
    if external:
      second = part([seed, fold, 99], 16, classes, skill / 2, 'ext')
      predictions.write(
        at / 'external.csv', fold, {'external': second}, classes
      )
  summaries.summarise(folder, model, task, FOLDS, classes)


def run(*args):
  with flagsaver.flagsaver():
    paper.main(flags.FLAGS(['paper', *args]))


def value(command, flag):
  return next(a.partition('=')[2] for a in command if a.startswith(f'{flag}='))


class Commands:
  """Stands for the subprocesses: keeps their commands, writes their results."""

  def __init__(self):
    self.seen = []

  def __call__(self, command, **_):
    self.seen.append(command[1:])
    results = pathlib.Path(value(command, '--results_dir'))
    if 'experiments.ablations' in command:
      for i, name in enumerate(ablation_settings.SETTINGS):
        folder = results / 'ablations_origin_s2023' / name
        write(folder, 'kmil', 'origin', seed=i)
    else:
      model, task = value(command, '--model'), value(command, '--task')
      external = any(a.startswith('--external') for a in command)
      write(
        results / f'{model}_{task}_s2023',
        model,
        task,
        seed=len(self.seen),
        external=external,
      )
    return types.SimpleNamespace(returncode=0)
