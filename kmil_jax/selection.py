"""Which epoch of each run is kept, and when a run slows down or stops."""

import chex
import numpy as np

from kmil_jax import optim
from kmil_jax.types import Recipe

# Zheng et al. 2024, released code: the first stage's plateau rule.
_PLATEAU_EVERY = 7
_PLATEAU_FACTOR = 1 / 3
_PLATEAU_FLOOR = 1e-4


@chex.dataclass(frozen=True)
class Selection:
  """What validation has said so far; NumPy, one entry per run."""

  score: np.ndarray  # [R] best macro-F1, or accuracy, so far
  loss: np.ndarray  # [R] lowest validation loss so far
  epoch: np.ndarray  # [R] epoch kept, -1 before the first
  stale: np.ndarray  # [R] epochs since the last improvement
  learning_rate: np.ndarray  # [R] of the next epoch
  stopped: np.ndarray  # [R] bool


@chex.dataclass(frozen=True)
class Validation:
  """Means over the validation bags of each run; NumPy [R]."""

  f1_macro: np.ndarray
  accuracy: np.ndarray
  loss: np.ndarray


def start(num_runs: int, recipe: Recipe) -> Selection:
  """Returns the selection before the first epoch."""
  return Selection(
    score=np.full(num_runs, -np.inf),
    loss=np.full(num_runs, np.inf),
    epoch=np.full(num_runs, -1),
    stale=np.zeros(num_runs, int),
    learning_rate=np.full(num_runs, recipe.learning_rate),
    stopped=np.zeros(num_runs, bool),
  )


def update(
  selection: Selection, recipe: Recipe, epoch: int, val: Validation
) -> tuple[Selection, np.ndarray]:
  """Takes in the validation of one epoch.

  'f1_macro' keeps the epoch of the highest macro-F1, the later on a tie.
  'loss_or_accuracy' keeps an epoch whose loss is the lowest so far or whose
  accuracy is at least the highest (Zheng et al. 2024, released code, first
  stage). 'last' keeps every epoch, so that validation decides nothing: for
  cohorts whose validation parts are too small to. 'plateau' divides a run's
  rate by 3, not below 1e-4, whenever it has gone another 7 epochs without
  improvement. Unlike the released code, each run starts from the recipe's rate
  rather than where the fold before it ended.

  Args:
    selection: up to the epoch before.
    recipe: of this stage.
    epoch: the epoch just ended, from 0.
    val: its validation.

  Returns:
    The new selection, and which runs to keep this epoch of, bool [R]. A run
    that has stopped keeps everything as it is.
  """
  score = val.f1_macro
  better = score >= selection.score
  if recipe.select == 'last':
    better = np.ones_like(better)
  elif recipe.select == 'loss_or_accuracy':
    score = val.accuracy
    better = (score >= selection.score) | (val.loss < selection.loss)
  active = ~selection.stopped
  improved = active & better
  stale = np.where(improved, 0, selection.stale + active)
  rate = selection.learning_rate
  if recipe.schedule == 'cosine':
    cosine = optim.cosine(
      recipe.learning_rate,
      recipe.learning_rate_min,
      epoch + 1,
      recipe.epochs,
    )
    rate = np.where(active, cosine, rate)
  else:
    slow = active & (stale > 0) & (stale % _PLATEAU_EVERY == 0)
    floor = np.minimum(rate, _PLATEAU_FLOOR)
    rate = np.where(slow, np.maximum(rate * _PLATEAU_FACTOR, floor), rate)
  stopped = selection.stopped
  if recipe.patience is not None:
    stopped = stopped | (stale >= recipe.patience)
  return (
    Selection(
      score=np.where(
        active, np.maximum(score, selection.score), selection.score
      ),
      loss=np.where(
        active, np.minimum(val.loss, selection.loss), selection.loss
      ),
      epoch=np.where(improved, epoch, selection.epoch),
      stale=stale,
      learning_rate=rate,
      stopped=stopped,
    ),
    improved,
  )
