"""The floor: logistic regression on the mean feature of each slide.

  python -m experiments.mean_pooling        # on the phantom cohort

Takes the same cohort and splits as experiments.kmil and writes the same tables.
A bag model that does not beat this has learnt nothing from single instances.
"""

import numpy as np

from experiments.bags import crossval, preflight
from experiments.bags.options import Features, Folds, Regression
from experiments.evaluation import floors
from experiments.run import results, start
from experiments.run.results import Folder
from experiments.run.start import Check, Machine, Output, show


def run(
  regression: Regression,
  data: Features,
  folds: Folds,
  check: Check,
  output: Output,
  machine: Machine,
) -> start.Next:
  """Fits a regression in each fold, writes tables, pictures and report."""

  given = [regression, data, folds, check, output, machine]
  path = output.folder(f'mean_pooling_{data.task}')
  material = preflight.begin(path, given)
  cohort = material.cohort
  with results.opened(
    path, given, material.inputs(), material.about()
  ) as folder:
    material.write(folder)
    (x,) = floors.pooled(cohort, np.mean)
    for fold, split in enumerate(material.splits):
      model = floors.classifier('logistic', regression.c)
      prob = floors.predicted(model, x, cohort.label, split)
      part = Folder(path / f'fold_{fold}')
      crossval.write_predictions(part, fold, material, prob)
    crossval.conclude(folder, 'mean_pooling', data.task, material)
  show(f'results in {path}')
  return 'kmil', {'exp_code': None}


main = start.script(run)


if __name__ == '__main__':
  main()
