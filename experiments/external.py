"""Tries the models of finished folds on a second cohort."""

from collections.abc import Sequence
import json
import pathlib

import numpy as np

from experiments import crossval, files, predictions, saved_models
from experiments.cohort import Cohort
from experiments.feed import Feed
from experiments.provenance import ResultsError
from experiments.training import Settings
from kmil_jax import parallel


def evaluate(
  folder: pathlib.Path,
  folds: Sequence[int],
  cohort: Cohort,
  settings: Settings,
) -> None:
  """Writes `fold_<i>/external.csv` of every fold that lacks it.

  KMIL's instances are chosen by the fold's own first stage, as Zheng et al.
  2024 do. `external.json` records which cohort it was.

  Args:
    folder: of the results.
    folds: finished folds.
    cohort: the second cohort, with the classes of the first.
    settings: of the training.

  Raises:
    ResultsError: if the folder holds results of another second cohort.
  """
  path = lambda fold: folder / f'fold_{fold}' / 'external.csv'
  record, mark = folder / 'external.json', cohort.fingerprint()
  if record.exists() and json.loads(record.read_text()) != mark:
    raise ResultsError(
      f'{record}: the external results are of another cohort; choose another'
      f' --exp_code, or remove {record.name} and fold_*/external.csv'
    )
  missing = parallel.agree([not path(fold).exists() for fold in folds])
  todo = [f for f, lacks in zip(folds, missing, strict=True) if lacks]
  if not todo:
    return
  feed = Feed(cohort, settings.precision, settings.stream)
  models = [
    saved_models.load(folder / f'fold_{fold}', feed, settings) for fold in todo
  ]
  probs = saved_models.predict(feed, settings, models)
  if parallel.is_first():
    files.write_text(record, json.dumps(mark, indent=2) + '\n')
    everything = np.ones(len(cohort.label), bool)
    for fold, prob in zip(todo, probs, strict=True):
      part = crossval.of_part(cohort, everything, prob)
      predictions.write(path(fold), fold, {'external': part}, cohort.classes)
