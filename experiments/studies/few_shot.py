"""Stages and tables of He and Li's study: patches, then slides."""

from collections.abc import Iterator, Mapping, Sequence
import itertools
from typing import Any

import numpy as np

from experiments.evaluation.tables import HERE, INTERVAL, Row, Table
from experiments.patches.study import File, Study
from experiments.studies import (
  few_shot_slides as slides,
  few_shot_training as training,
)
from experiments.studies.few_shot_data import PUBLISHED, PatchesAndSlides
from experiments.studies.few_shot_training import FW_RD, RD, Scores, Setting
from kmil_jax import intervals, metrics, parallel

# What the test patches say of a training: names in files, columns of tables.
METRICS = {
  'accuracy': 'accuracy',
  'accuracy_at_2': 'accuracy, threshold 2',
  'accuracy_best_f1': "accuracy, test's best F1",
  'auroc': 'AUROC',
}
_FIXED = 2.0  # The paper's threshold.
_RESAMPLES = 1000
_NOTES = (
  'accuracy: at the threshold of the highest F1 on the validation patches.'
  " threshold 2: the paper's, fixed. test's best F1: at the threshold that the"
  ' test patches choose, as in the released code, which is optimistic.',
  'here: mean over the seeds; its interval: over slides drawn with their'
  ' patches.',
)


def stages(
  study: Study, material: PatchesAndSlides
) -> Iterator[Table | File | str | Exception]:
  """Trains students, and yields what they see in patches and in slides."""
  students = study.recipe['students']
  trainings = training.settings(material, students, study.seed)
  yield f'{len(trainings[0])} settings, {len(trainings)} seed(s)'
  training.train(study, material, list(itertools.chain(*trainings)))
  if parallel.is_first():  # The rest is work for one process.
    yield from _patches(study, trainings)
    if material.slides:
      yield from slides.stages(study, material, trainings[0])


def measure(scores: Mapping[str, Scores]) -> np.ndarray:
  """Measures a training on its test patches, and on resampled slides of them.

  Returns:
    Its accuracy at the threshold that validation chose, at the paper's fixed 2,
    and at that of the highest F1 on the test patches themselves; its AUROC; [4,
    1 + W], of the W resamples last. Those of all trainings on the same patches
    are paired.
  """
  test, rows = scores['test'], []
  for limit in (scores['val'].threshold, _FIXED, test.threshold):
    called = (test.mean >= limit).astype(float)
    drawn = _replicates(test, 1 - called, called)['accuracy']
    rows.append([(called == test.tumour).mean(), *drawn])
  drawn = _replicates(test, -test.mean, test.mean)['auroc']
  rows.append([metrics.auroc(test.tumour, test.mean), *drawn])
  return np.array(rows)


def _replicates(test: Scores, *prob: np.ndarray) -> dict[str, np.ndarray]:
  label, prob = test.tumour.astype(int), np.stack(prob, 1)
  return intervals.replicates(label, prob, test.slide, resamples=_RESAMPLES)


def _ends(measured: np.ndarray) -> np.ndarray:
  """Ends of 95 % intervals over slides, [4, 2]."""
  return intervals.percentile(measured[:, 1:].T).T


def _patches(
  study: Study, trainings: Sequence[Sequence[Setting]]
) -> Iterator[Table | File]:
  """Yields Tables 2 and 3, the ablations and the figures of patches."""
  settings, measured, summary, curves = trainings[0], {}, {}, {}
  for setting, *others in zip(*trainings, strict=True):
    of_seeds = [training.scores(study.folder, s) for s in (setting, *others)]
    values = np.array([measure(scores) for scores in of_seeds])
    mean, each = values.mean(0), values[:, :, 0]
    spread = each.std(0, ddof=1) if len(each) > 1 else [np.nan] * len(METRICS)
    columns = mean[:, 0], spread, *_ends(mean).T, each.T.tolist()
    names = 'mean', 'std', 'ci_low', 'ci_high', 'per_seed'
    summary[setting.name] = {
      metric: dict(zip(names, row, strict=True))
      for metric, *row in zip(METRICS, *columns, strict=True)
    }
    measured[setting.name] = mean
    if setting.name in (RD, FW_RD):
      test = of_seeds[0]['test']
      curves[setting.name] = test.tumour, test.mean, test.slide
  methods = {name: measured[name] for name in (RD, FW_RD)}
  methods[f'{FW_RD} minus {RD}'] = measured[FW_RD] - measured[RD]
  others = sorted(name for (name,) in PUBLISHED['table_2'].values)
  methods |= dict.fromkeys(name for name in others if name not in methods)
  yield _table(
    'table_2',
    'Table 2. Patches: reverse distillation without and with tumour patches',
    ('method',),
    [(name, (name,), values) for name, values in methods.items()],
    f'Networks of width {study.recipe["students"].width}, the same of both'
    ' methods.',
  )
  rows = []
  for setting in sorted(settings, key=lambda setting: setting.tumour):
    if (counterpart := setting.counterpart) is not None:
      labels = setting.tumour, counterpart, f'{setting.alpha:.3g}'
      rows.append((counterpart, labels, measured[setting.name]))
  yield _table(
    'table_3',
    'Table 3. Patches: number of tumour patches in training',
    ('tumour patches', 'in the paper', 'alpha'),
    rows,
    f'{settings[0].normal} normal patches in all rows. alpha 0 is the loss of'
    ' RD.',
    'The tumour patches of a row are among those of the rows below it; each'
    ' seed draws others.',
  )
  rows, supervised = [], Setting('supervised', 100_000, 100_000, 0.5)
  for setting in (*settings, supervised):
    if (setting.name,) in PUBLISHED['ablations'].values:
      weights = f'{setting.alpha:g}', f'{setting.gamma:g}'
      title = setting.name.replace('_', ', ')
      labels = title, setting.normal, setting.tumour, *weights
      rows.append((setting.name, labels, measured.get(setting.name)))
  yield _table(
    'ablations',
    'Ablations: weights of the loss, balance of the classes',
    ('training', 'normal', 'tumour', 'alpha', 'gamma'),
    rows,
    'The paper does not define its unweighted loss: both rows have its number'
    ' beside them. Supervised training is not repeated here.',
    'Balanced classes are fewer patches; they are trained for'
    f' {settings[-1].longer} time(s) the epochs.',
  )
  # It imports matplotlib, which takes half a second.
  from experiments.evaluation import figures

  roc = figures.roc('Test patches, one training each', curves)
  yield File('figures/patch_roc.png', roc)
  yield training.summary(study.folder, patches=summary)


def _table(
  name: str,
  title: str,
  labels: Sequence[str],
  rows: Sequence[tuple[Any, Sequence[Any], np.ndarray | None]],
  *notes: str,
) -> Table:
  """Returns a table of patches.

  Args:
    name: of it, here and among the published ones.
    title: stands above it.
    labels: columns of labels.
    rows: of each its label in the paper, its labels here, and what `measure`
      returns or None.
    *notes: its own.
  """
  columns, lines = dict.fromkeys(METRICS.values(), '.3f'), []
  for published, here, measured in rows:
    line = {}
    if measured is not None:
      ends = [tuple(e) for e in _ends(measured)]
      line = {HERE: measured[:, 0].tolist(), INTERVAL: ends}
    line |= PUBLISHED[name].line((published,), columns)
    lines.append(Row(here, line))
  notes = *_NOTES, *PUBLISHED[name].notes, *notes
  return Table(name, title, labels, columns, lines, notes)
