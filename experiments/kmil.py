"""Cross-validates KMIL, or a baseline, on slides.

  python -m experiments.kmil --fold=3        # one fold on the phantom cohort
  python -m experiments.kmil --csv_path=labels.csv --features_dir=features

Without data flags, the phantom cohort is rendered and encoded once. Folds that
are done are not trained again; a run that was killed goes on when the same
command is given. All folds train as one program, and one fold gives what it
gives among the ten.
"""

import dataclasses
import pathlib
import resource
import shutil
import sys

from absl import app, flags
import numpy as np

from data import plan as plans, splits as split_files
from experiments import common, figures, maps, results, training
from experiments.cohort import Cohort
from experiments.feed import Feed
from kmil_jax import losses, parallel
from kmil_jax.models import SPECS, kmil
from kmil_jax.types import Recipe

_MODEL = flags.DEFINE_enum('model', 'kmil', sorted(SPECS), 'What to train.')
_FOLD = flags.DEFINE_integer(
  'fold', None, 'The only fold to train, from 0; all by default.', 0
)
_EPOCHS = flags.DEFINE_integer(
  'epochs', 400, 'Epochs of the model; the first stage takes 100 at most.', 1
)
_LR = flags.DEFINE_float('lr', 2e-4, 'Initial learning rate.', 0)
_WEIGHT_DECAY = flags.DEFINE_float(
  'weight_decay', 1e-5, 'L2 term in the gradient, as in torch.optim.Adam.', 0
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size',
  1,
  'Bags per step. Above 1, a step spreads its bags over the devices; at 1,'
  ' the folds are spread.',
  1,
)
_SELECT = flags.DEFINE_enum(
  'select',
  'f1_macro',
  ['f1_macro', 'last'],
  'The epoch kept: of the best validation macro-F1, or the last, where'
  ' validation parts are too small to choose by.',
)
_PRECISION = flags.DEFINE_enum(
  'precision', 'float32', ['float32', 'bfloat16'], 'Of features and products.'
)
_DROP_FRACTION = flags.DEFINE_float(
  'drop_fraction', 0.1, 'KMIL: share of instances dropped.', 0, 0.999
)
_DROP = flags.DEFINE_enum(
  'drop', 'lowest', kmil.DROPS, 'KMIL: which scores are dropped.'
)
_SCORE = flags.DEFINE_enum(
  'score',
  'var',
  kmil.SCORES,
  'KMIL: variance over classes of the instance softmax (the released code),'
  ' or one minus it (eq. 3 of the paper).',
)
_COMBINE = flags.DEFINE_bool(
  'combine', False, 'Average the probabilities of bag and highest instance.'
)
_STREAM = flags.DEFINE_bool(
  'stream',
  None,
  'Stream features through tf.data; by default only if they do not fit on'
  ' the device.',
)
_HEAT_MAPS = flags.DEFINE_integer(
  'heat_maps', None, 'Attention maps to draw per fold; of all test slides.', 0
)
_CHECK = flags.DEFINE_bool(
  'check', False, 'Only join and check the inputs, and say what would run.'
)
flags.adopt_module_key_flags(common)


def _run() -> None:
  settings = _settings()
  values = common.resolved(_MODEL)
  asked = _asked(common.K.value)
  cohort, outlines_dir = common.cohort()
  splits = common.splits(cohort)
  if parallel.is_first():
    _describe(values, cohort, splits)
  if _CHECK.value:
    return
  folder = common.folder(f'{_MODEL.value}_{common.TASK.value}')
  if parallel.is_first():
    common.open_folder(folder, values, cohort, splits)
  parallel.wait_for_all('folder')
  folds = _to_train(folder, asked)
  if folds:
    feed = Feed(cohort, settings.precision, settings.stream)
    trained = training.train_folds(feed, splits, folds, settings, folder)
    for run, fold in enumerate(folds):
      # All processes: Orbax waits for each of them.
      training.save_model(folder / f'fold_{fold}', trained, run)
      if parallel.is_first():
        maps.write(
          folder / f'fold_{fold}', feed, splits[fold].test, trained, run
        )
        _save_predictions(folder, cohort, splits[fold], fold, trained, run)
    if parallel.is_first():
      for done in training.unfinished(folder):
        if not _left(folder, done):
          shutil.rmtree(training.state_folder(folder, done))
  faults = []
  if parallel.is_first():
    for fold in asked:
      faults += maps.draw(
        folder, fold, cohort, outlines_dir, limit=_HEAT_MAPS.value
      )
    summary = results.summarise(
      folder,
      _MODEL.value,
      common.TASK.value,
      len(splits),
      cohort.classes,
    )
    figures.draw(folder, cohort.classes)
    print(results.table(summary))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'results in {folder}; peak memory {peak:.1f} GiB')
  parallel.wait_for_all('end')
  if faults:
    sys.exit('error: slides without a heat map:\n' + '\n'.join(faults))


def _settings() -> training.Settings:
  per_mille = round(1000 * _DROP_FRACTION.value)
  if abs(per_mille - 1000 * _DROP_FRACTION.value) > 1e-6:
    raise app.UsageError(
      f'--drop_fraction={_DROP_FRACTION.value}: give thousandths'
    )
  for flag in (_DROP_FRACTION, _DROP, _SCORE):
    if not SPECS[_MODEL.value].chooser and flags.FLAGS[flag.name].present:
      raise app.UsageError(f'--{flag.name} says nothing to {_MODEL.value}')
  if _COMBINE.value and SPECS[_MODEL.value].loss is not losses.dual_stream:
    raise app.UsageError(f'--combine says nothing to {_MODEL.value}')
  if _BATCH_SIZE.value > 1 and _BATCH_SIZE.value % parallel.num_devices():
    raise app.UsageError(
      f'--batch_size={_BATCH_SIZE.value} does not divide over'
      f' {parallel.num_devices()} devices'
    )
  recipe = Recipe(
    learning_rate=_LR.value,
    weight_decay=_WEIGHT_DECAY.value,
    epochs=_EPOCHS.value,
    batch=_BATCH_SIZE.value,
    select=_SELECT.value,
  )
  # Zheng et al. 2024, released code.
  chooser_recipe = dataclasses.replace(
    recipe,
    learning_rate=1e-3,
    epochs=min(_EPOCHS.value, 100),
    schedule='plateau',
    shuffle=False,
    select='loss_or_accuracy',
    patience=20,
  )
  return training.Settings(
    model=_MODEL.value,
    recipe=recipe,
    chooser_recipe=chooser_recipe,
    seed=common.SEED.value,
    precision=_PRECISION.value,
    score=_SCORE.value,
    drop=_DROP.value,
    drop_per_mille=per_mille,
    combine=_COMBINE.value,
    stream=_STREAM.value,
  )


def _asked(k: int) -> list[int]:
  if _FOLD.value is None:
    return list(range(k))
  if _FOLD.value >= k:
    raise app.UsageError(f'--fold={_FOLD.value}: folds are 0 to {k - 1}')
  return [_FOLD.value]


def _to_train(folder: pathlib.Path, asked: list[int]) -> list[int]:
  """Returns the folds that are not done, or those of a killed run of them."""
  todo = _left(folder, asked)
  for folds in training.unfinished(folder) if todo else []:
    if set(todo) <= set(folds) <= set(asked):
      todo = folds
      break
  # Writing may have begun: what process 0 saw counts.
  chosen = parallel.agree(np.isin(asked, todo))
  return [f for f, train in zip(asked, chosen, strict=True) if train]


def _left(folder: pathlib.Path, folds: list[int]) -> list[int]:
  path = lambda fold: folder / f'fold_{fold}' / 'predictions.csv'
  return [fold for fold in folds if not path(fold).exists()]


def _save_predictions(
  folder: pathlib.Path,
  cohort: Cohort,
  split: split_files.Split,
  fold: int,
  trained: training.Trained,
  run: int,
) -> None:
  table, label = cohort.manifest, cohort.label
  parts = {}
  for name in ('val', 'test'):
    rows = getattr(split, name)
    parts[name] = results.Predictions(
      case=table.case[rows],
      slide=table.slide[rows],
      label=label[rows],
      prob=trained.prob[name][run],
    )
  # Last: a fold with predictions is done.
  path = folder / f'fold_{fold}' / 'predictions.csv'
  results.write_predictions(path, fold, parts, cohort.classes)


def _describe(values, cohort, splits) -> None:
  """Prints the resolved flags, the cohort and what training would take."""
  for name, value in values.items():
    print(f'--{name}={"" if value is None else value}')
  cases = len(set(cohort.manifest.case))
  counts = {
    name: int((cohort.label == c).sum())
    for c, name in enumerate(cohort.classes)
  }
  size = int(cohort.length.sum()) * cohort.width * 4 / 2**20
  print(
    f'{len(cohort.label)} slides of {cases} cases: '
    + ', '.join(f'{name} {n}' for name, n in counts.items())
  )
  print(
    f'{cohort.length.min()} to {cohort.length.max()} instances a slide,'
    f' {cohort.width} features each, {size:.0f} MiB;'
    f' padded to {plans.bucket_lengths(cohort.length)}'
  )
  for i, split in enumerate(splits):
    sizes = [int(getattr(split, part).sum()) for part in split_files.PARTS]
    print(f'fold {i}: {sizes[0]} train, {sizes[1]} val, {sizes[2]} test slides')


main = common.script(_run)


if __name__ == '__main__':
  app.run(main)
