"""Tries the models of finished folds on a second cohort."""

from collections.abc import Sequence
import json
import pathlib

import numpy as np

from experiments import crossval, feed, files, predictions
from experiments.cohort import Cohort
from experiments.provenance import ResultsError
from kmil_jax import folds as saved, parallel

_RECORD = 'external.json'


def check(folder: pathlib.Path, cohort: Cohort) -> None:
  """Refuses a folder that holds results of another second cohort.

  Raises:
    ResultsError: saying what to do.
  """
  record = folder / _RECORD
  if record.exists() and json.loads(record.read_text()) != cohort.fingerprint():
    raise ResultsError(
      f'{record}: the external results are of another cohort; choose another'
      f' --exp_code, or remove {_RECORD} and fold_*/external.csv'
    )


def evaluate(
  folder: pathlib.Path,
  folds: Sequence[int],
  cohort: Cohort,
  settings: crossval.Settings,
) -> None:
  """Writes `fold_<i>/external.csv` of every fold that lacks it.

  KMIL's instances are chosen by the fold's own first stage, as Zheng et al.
  2024 do. `external.json` records which cohort it was.

  Args:
    folder: of the results.
    folds: finished folds.
    cohort: the second cohort, with the classes of the first.
    settings: of the training.
  """
  path = lambda fold: folder / f'fold_{fold}' / 'external.csv'
  trained = lambda fold: path(fold).with_name('predictions.csv').exists()
  missing = parallel.agree(
    [trained(fold) and not path(fold).exists() for fold in folds]
  )
  todo = [f for f, lacks in zip(folds, missing, strict=True) if lacks]
  if not todo:
    return
  bags = feed.load(cohort, settings.precision, settings.stream)
  design = settings.design(len(cohort.classes), cohort.width)
  models = [saved.load(folder / f'fold_{f}', design) for f in todo]
  probs = saved.predict(bags, design, models)
  if parallel.is_first():
    mark = json.dumps(cohort.fingerprint(), indent=2)
    files.write_text(folder / _RECORD, mark + '\n')
    everything = np.ones(len(cohort.label), bool)
    for fold, prob in zip(todo, probs, strict=True):
      part = crossval.of_part(cohort, everything, prob)
      predictions.write(path(fold), fold, {'external': part}, cohort.classes)
