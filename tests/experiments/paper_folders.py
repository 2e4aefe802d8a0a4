"""Results folders of drawn predictions under the names that a table reads."""

import pathlib
import types

import numpy as np

from experiments import paper
from experiments.bags import ablation, cohort as cohorts
from experiments.evaluation import predictions, summary as summaries
from experiments.evaluation.predictions import Predictions
from experiments.run.results import Folder

FOLDS = 3
K = f'--k={FOLDS}'
CLASSES = {
  'origin': cohorts.PAPER_CLASSES,
  'a': (*cohorts.PAPER_CLASSES[:2], cohorts.METASTATIC),
  'b': cohorts.PAPER_CLASSES[:2],
  'c': (cohorts.PAPER_CLASSES[1], cohorts.METASTATIC),
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
    at = Folder(folder / f'fold_{fold}')
    predictions.write(at, fold, parts, classes)
    if external:
      second = part([seed, fold, 99], 16, classes, skill / 2, 'ext')
      predictions.write(at, fold, {'external': second}, classes)
    name = f'splits/splits_{fold}.csv'
    Folder(folder).write(name, [['train', 'val', 'test']])
  summaries.summarise(Folder(folder), model, task, FOLDS, classes)


def run(*args):
  paper.main(['paper', *args])


def value(command, flag):
  return next(a.partition('=')[2] for a in command if a.startswith(f'{flag}='))


class Commands:
  """Stands for the subprocesses: keeps their commands, writes their results.

  `status` returns what the command of a number, from 1, ends with.
  """

  def __init__(self):
    self.seen, self.status = [], lambda count: 0

  def __call__(self, command, **_):
    self.seen.append(command[1:])
    status = self.status(len(self.seen))
    if status or '--check' in command:
      return types.SimpleNamespace(returncode=status)
    results = pathlib.Path(value(command, '--results_dir'))
    if 'experiments.ablations' in command:
      for i, name in enumerate(ablation.SETTINGS):
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
