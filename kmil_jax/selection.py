"""Which epoch of each run is kept, and when a run slows down or stops."""

import chex
import numpy as np

from kmil_jax import optim
from kmil_jax.types import PatchRecipe, Recipe

AnyRecipe = Recipe | PatchRecipe
SCHEDULES = ('cosine', 'plateau', 'constant', 'step', 'decade')
SELECTS = (
  'f1_macro',
  'loss_or_accuracy',
  'loss',
  'accuracy',
  'accuracy_then_auroc',
  'auroc',
  'auroc_accuracy',
  'late_auroc',
  'last',
)
NEED_AUROC = ('accuracy_then_auroc', 'auroc', 'auroc_accuracy', 'late_auroc')
# Zheng et al. 2024, released code: the first stage's plateau rule.
_PLATEAU_EVERY = 7
_PLATEAU_FACTOR = 1 / 3
# Zhang et al., CVPR 2022 (DTFD-MIL), released code.
_STEP_FACTOR = 0.2
_LATE = 5  # The last of so many parts of the epochs.
# Tang et al. 2022.
_DECADE = 10
_DECADE_FACTOR = 0.1


@chex.dataclass(frozen=True)
class Selection:
  """What validation has said so far; NumPy, one entry per run."""

  score: np.ndarray  # [R] best of what `Recipe.select` names, so far
  loss: np.ndarray  # [R] lowest validation loss so far
  auroc: np.ndarray  # [R] of the epoch kept
  epoch: np.ndarray  # [R] epoch kept, -1 before the first
  stale: np.ndarray  # [R] epochs since the last improvement
  learning_rate: np.ndarray  # [R] of the next epoch
  stopped: np.ndarray  # [R] bool


@chex.dataclass(frozen=True)
class Validation:
  """Means over the validation bags of each run; NumPy [R]."""

  f1_macro: np.ndarray
  accuracy: np.ndarray
  auroc: np.ndarray  # over the classes that can be ranked; NaN if none can
  loss: np.ndarray


def start(num_runs: int, recipe: AnyRecipe) -> Selection:
  """Returns the selection before the first epoch."""
  return Selection(
    score=np.full(num_runs, -np.inf),
    loss=np.full(num_runs, np.inf),
    auroc=np.full(num_runs, -np.inf),
    epoch=np.full(num_runs, -1),
    stale=np.zeros(num_runs, int),
    learning_rate=np.full(num_runs, recipe.learning_rate),
    stopped=np.zeros(num_runs, bool),
  )


def update(
  selection: Selection,
  recipe: AnyRecipe,
  epoch: int,
  val: Validation,
) -> tuple[Selection, np.ndarray]:
  """Takes in the validation of one epoch.

  By `recipe.select`, the epoch kept is that of

  * 'f1_macro': the highest macro-F1, the later on a tie (Zheng et al. 2024);
  * 'loss_or_accuracy': a loss that is the lowest so far or an accuracy that is
    at least the highest, whichever came last (their first stage);
  * 'loss': the lowest loss (TransMIL);
  * 'accuracy', 'auroc': the highest, the earlier on a tie;
  * 'accuracy_then_auroc': the highest accuracy, of equal ones the highest
    AUROC, the later on a tie (students of FW-RD);
  * 'auroc_accuracy': the highest mean of AUROC and accuracy (DSMIL);
  * 'late_auroc': the highest AUROC after epoch int(0.8 E) of E, counted from 0,
    so among 161 to 199 of 200 (DTFD-MIL); among E - 1 alone if E < 6;
  * 'last': the last, so that validation decides nothing: for cohorts whose
    validation parts are too small to.

  The rate is constant, falls along a cosine, falls to a fifth at half of the
  epochs ('step'), to a tenth after every 10 ('decade'), or ('plateau') to a
  third, not below the recipe's lowest, whenever a run has gone another 7 epochs
  without improvement. Unlike Zheng's released code, each run starts from the
  recipe's rate rather than where the fold before it ended. Epochs that cannot
  be kept do not count as epochs without improvement.

  Args:
    selection: up to the epoch before.
    recipe: of this stage.
    epoch: the epoch just ended, from 0.
    val: its validation.

  Returns:
    The new selection, and which runs to keep this epoch of, bool [R]. A run
    that has stopped keeps everything as it is.
  """
  score, better = _judge(selection, recipe, epoch, val)
  active = ~selection.stopped
  improved = active & better
  stale = selection.stale + (active & _can_be_kept(recipe, epoch))
  stale = np.where(improved, 0, stale)
  rate = selection.learning_rate
  match recipe.schedule:
    case 'cosine':
      cosine = optim.cosine(
        recipe.learning_rate,
        recipe.learning_rate_min,
        epoch + 1,
        recipe.epochs,
      )
      rate = np.where(active, cosine, rate)
    case 'plateau':
      slow = active & (stale > 0) & (stale % _PLATEAU_EVERY == 0)
      floor = np.minimum(rate, recipe.learning_rate_min)
      rate = np.where(slow, np.maximum(rate * _PLATEAU_FACTOR, floor), rate)
    case 'step':
      if epoch + 1 == recipe.epochs // 2:
        rate = np.where(active, rate * _STEP_FACTOR, rate)
    case 'decade':
      if (epoch + 1) % _DECADE == 0:
        rate = np.where(active, rate * _DECADE_FACTOR, rate)
    case 'constant':
      pass
    case other:
      raise ValueError(f'schedule {other!r}: there are {", ".join(SCHEDULES)}')
  stopped = selection.stopped
  if recipe.patience is not None:
    stopped = stopped | (stale >= recipe.patience)
  return (
    Selection(
      score=np.where(active, np.fmax(score, selection.score), selection.score),
      loss=np.where(
        active, np.minimum(val.loss, selection.loss), selection.loss
      ),
      auroc=np.where(improved, val.auroc, selection.auroc),
      epoch=np.where(improved, epoch, selection.epoch),
      stale=stale,
      learning_rate=rate,
      stopped=stopped,
    ),
    improved,
  )


def _can_be_kept(recipe: AnyRecipe, epoch: int) -> bool:
  if recipe.select != 'late_auroc':
    return True
  last = recipe.epochs - 1
  return epoch > min(last - 1, recipe.epochs * (_LATE - 1) // _LATE)


def _judge(
  selection: Selection,
  recipe: AnyRecipe,
  epoch: int,
  val: Validation,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns this epoch's scores and whether they are to be kept, [R] each."""
  match recipe.select:
    case 'f1_macro':
      return val.f1_macro, val.f1_macro >= selection.score
    case 'loss_or_accuracy':
      better = (val.accuracy >= selection.score) | (val.loss < selection.loss)
      return val.accuracy, better
    case 'loss':
      return -val.loss, val.loss < selection.loss
    case 'accuracy' | 'auroc':
      score = val[recipe.select]
      return score, score > selection.score
    case 'accuracy_then_auroc':
      equal = val.accuracy == selection.score
      better = val.accuracy > selection.score
      return val.accuracy, better | equal & (val.auroc >= selection.auroc)
    case 'auroc_accuracy':
      score = (val.auroc + val.accuracy) / 2
      return score, score > selection.score
    case 'late_auroc':
      late = _can_be_kept(recipe, epoch)
      score = val.auroc if late else np.full_like(val.auroc, -np.inf)
      return score, late & (score > selection.score)
    case 'last':
      return val.f1_macro, np.ones_like(val.f1_macro, bool)
    case other:
      raise ValueError(f'select {other!r}: there are {", ".join(SELECTS)}')
