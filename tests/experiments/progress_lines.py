"""Epochs that are reported without being trained."""

import numpy as np

from experiments import crossval
from experiments.run.progress import Progress

FOLDS = (2, 5)


def history(epochs, stopped_from=None):
  """Of two runs; the first has stopped from an epoch on."""
  count = np.arange(epochs, dtype=float)
  found = {
    'train_loss': np.stack([np.full(epochs, 0.5), 2.0 + count], 1),
    'val_loss': np.stack([np.ones(epochs), count], 1),
    'val_accuracy': np.tile([0.5, 0.75], (epochs, 1)),
    'val_f1_macro': np.tile([0.25, 0.5], (epochs, 1)),
    'val_auroc': np.tile([0.5, np.nan], (epochs, 1)),
    'best_epoch': np.stack([count, count], 1),
  }
  for values in found.values():
    values[stopped_from or epochs :, 0] = np.nan
  return found


def progress(tmp_path, stage, epochs, tensorboard=False):
  folders = [[tmp_path / f'fold_{f}'] for f in FOLDS]
  return of_folders(folders, stage, epochs, tensorboard)


def of_folders(folders, stage, epochs, tensorboard=False):
  return Progress(
    folders,
    {name: name for name in crossval.COLUMNS},
    epochs,
    name=f'{stage} x {len(folders)} runs',
    stage=stage,
    tensorboard=tensorboard,
  )


def report(progress, epochs, **options):
  for epoch in epochs:
    progress.report(history(epoch + 1, **options))
  progress.close()
