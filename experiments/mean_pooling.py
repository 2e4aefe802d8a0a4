"""The floor: logistic regression on the mean feature of each slide.

  python -m experiments.mean_pooling        # on the phantom cohort

Takes the same cohort and splits as experiments.kmil and writes the same tables.
A bag model that does not beat this has learnt nothing from single instances.
"""

from absl import app, flags
import numpy as np
from sklearn import linear_model, pipeline, preprocessing

from experiments import (
  common,
  crossval,
  figures,
  predictions,
  start,
  summaries,
  tables,
)
from experiments.preflight import bags as preflight
from experiments.preflight.flag import CHECK
from experiments.reporting import page
from kmil_jax import parallel

_C = flags.DEFINE_float('c', 1.0, 'Inverse strength of the L2 penalty.', 0)
flags.adopt_module_key_flags(common)


def _run() -> None:
  common.refuse_second_cohort()
  if not parallel.is_first():
    return  # There is nothing to share out.
  if CHECK.value:
    preflight.check(start.resolved(__name__))
  cohort, _ = common.cohort()
  splits = common.splits(cohort)
  folder = start.folder(f'mean_pooling_{common.TASK.value}')
  common.open_folder(folder, start.resolved(__name__), cohort, splits)
  bags = range(len(cohort.label))
  x = np.stack([cohort.read(i).features.mean(0) for i in bags])
  for fold, split in enumerate(splits):
    model = pipeline.make_pipeline(
      preprocessing.StandardScaler(),
      linear_model.LogisticRegression(C=_C.value, max_iter=2000),
    )
    model.fit(x[split.train], cohort.label[split.train])
    parts = {
      name: crossval.of_part(cohort, rows, model.predict_proba(x[rows]))
      for name, rows in (('val', split.val), ('test', split.test))
    }
    path = folder / f'fold_{fold}' / 'predictions.csv'
    predictions.write(path, fold, parts, cohort.classes)
  summary = summaries.summarise(
    folder, 'mean_pooling', common.TASK.value, len(splits), cohort.classes
  )
  figures.draw(folder, cohort.classes)
  print(tables.closing(summary))
  common.tell_groups(folder, cohort)
  page.write(folder)
  print(f'results in {folder}')


main = start.script(_run, common.ERRORS)


if __name__ == '__main__':
  app.run(main)
