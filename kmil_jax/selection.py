"""Which epoch of each run is kept, and when a run slows down or stops."""

from collections.abc import Mapping
from typing import Any

import chex
import numpy as np

from kmil_jax import optim
from kmil_jax.types import PatchRecipe, Recipe, unknown

AnyRecipe = Recipe | PatchRecipe
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


# Means over the validation examples of each run, [R]: `f1_macro`, `accuracy`,
# `loss` and `auroc`, over the classes that can be ranked; NaN if none can.
Validation = Mapping[str, np.ndarray]
# Scores of an epoch, and whether it is to be kept, [R] each.
Judgement = tuple[np.ndarray, np.ndarray]


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
  without improvement. It never rises. Unlike Zheng's released code, each run
  starts from the recipe's rate rather than where the fold before it ended.
  Epochs that cannot be kept do not count as epochs without improvement.

  Args:
    selection: up to the epoch before.
    recipe: of this stage.
    epoch: the epoch just ended, from 0.
    val: its validation.

  Returns:
    The new selection, and which runs to keep this epoch of, bool [R]. A run
    that has stopped keeps everything as it is.
  """
  active, rate = ~selection.stopped, selection.learning_rate
  counts = active & _can_be_kept(recipe, epoch)
  if recipe.select not in SELECTS:
    raise unknown('select', recipe.select, SELECTS)
  if recipe.schedule not in SCHEDULES:
    raise unknown('schedule', recipe.schedule, SCHEDULES)
  score, better = SELECTS[recipe.select](val, selection)
  improved = counts & better
  stale = np.where(improved, 0, selection.stale + counts)
  schedule, most = SCHEDULES[recipe.schedule], recipe.learning_rate
  # Not above the recipe's rate, to a floor that is.
  following = np.minimum(schedule(recipe, epoch, stale, rate), most)
  patience = np.inf if recipe.patience is None else recipe.patience
  choose = lambda where, new, name: np.where(where, new, selection[name])
  return Selection(
    score=choose(counts, np.fmax(score, selection.score), 'score'),
    loss=choose(active, np.minimum(val['loss'], selection.loss), 'loss'),
    auroc=choose(improved, val['auroc'], 'auroc'),
    epoch=choose(improved, epoch, 'epoch'),
    stale=stale,
    learning_rate=np.where(active, following, rate),
    stopped=selection.stopped | (stale >= patience),
  ), improved


def _can_be_kept(recipe: AnyRecipe, epoch: int) -> bool:
  if recipe.select != 'late_auroc':
    return True
  return epoch > min(recipe.epochs - 2, recipe.epochs * (_LATE - 1) // _LATE)


def _highest(*names: str, sign: int = 1, better: Any = np.greater) -> Any:
  """Returns the rule of the highest mean of what is named."""

  def rule(val, so_far):
    score = sign * sum(val[name] for name in names) / len(names)
    return score, better(score, so_far.score)

  return rule


def _loss_or_accuracy(val: Validation, so_far: Selection) -> Judgement:
  accuracy = val['accuracy']
  better = (accuracy >= so_far.score) | (val['loss'] < so_far.loss)
  return accuracy, better


def _accuracy_then_auroc(val: Validation, so_far: Selection) -> Judgement:
  accuracy, best = val['accuracy'], so_far.score
  tie = (accuracy == best) & (val['auroc'] >= so_far.auroc)
  return accuracy, (accuracy > best) | tie


# Rules of a validation and the selection so far.
SELECTS = {
  'f1_macro': _highest('f1_macro', better=np.greater_equal),
  'loss_or_accuracy': _loss_or_accuracy,
  'loss': _highest('loss', sign=-1),
  'accuracy': _highest('accuracy'),
  'accuracy_then_auroc': _accuracy_then_auroc,
  'auroc': _highest('auroc'),
  'auroc_accuracy': _highest('auroc', 'accuracy'),
  'late_auroc': _highest('auroc'),
  'last': lambda val, so_far: (val['f1_macro'], True),
}


# Of a recipe, an epoch, epochs without improvement and the rate: the next one.
SCHEDULES = {
  'cosine': lambda recipe, epoch, *_: optim.cosine(
    recipe.learning_rate, recipe.learning_rate_min, epoch + 1, recipe.epochs
  ),
  'plateau': lambda recipe, epoch, stale, rate: np.where(
    (stale > 0) & (stale % _PLATEAU_EVERY == 0),
    np.maximum(rate * _PLATEAU_FACTOR, recipe.learning_rate_min),
    rate,
  ),
  'constant': lambda recipe, epoch, stale, rate: rate,
  'step': lambda recipe, epoch, stale, rate: (
    rate * (_STEP_FACTOR if epoch + 1 == recipe.epochs // 2 else 1)
  ),
  'decade': lambda recipe, epoch, stale, rate: (
    rate * (1 if (epoch + 1) % _DECADE else _DECADE_FACTOR)
  ),
}
