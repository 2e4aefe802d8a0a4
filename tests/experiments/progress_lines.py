"""Epochs that are reported without being trained."""

import numpy as np

from experiments.progress import Progress
from kmil_jax.selection import Selection, Validation

FOLDS = (2, 5)


def selection(epoch, stopped=(False, False), best=None):
  best = np.array([epoch, epoch] if best is None else best)
  return Selection(
    score=np.ones(2),
    loss=np.ones(2),
    epoch=best,
    stale=epoch - best,
    learning_rate=np.ones(2),
    stopped=np.array(stopped),
  )


def progress(tmp_path, stage, epochs, tensorboard=False):
  folders = [[tmp_path / f'fold_{f}'] for f in FOLDS]
  return Progress(folders, stage, epochs, tensorboard)


def report(progress, epochs, chosen=selection):
  for epoch in epochs:
    val = Validation(
      f1_macro=np.array([0.25, 0.5]),
      accuracy=np.array([0.5, 0.75]),
      auroc=np.array([0.5, np.nan]),
      loss=np.array([1.0, epoch]),
    )
    progress.report(epoch, np.array([0.5, 2.0 + epoch]), val, chosen(epoch))
  progress.close()
