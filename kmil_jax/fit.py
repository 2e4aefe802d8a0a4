"""The training loop of one stage: epochs, validation, selection, recovery."""

from collections.abc import Callable
import time

import jax
import numpy as np

from kmil_jax import checkpoint, metrics, parallel, selection, train
from kmil_jax.epochs import Layout, Resident, Streamed
from kmil_jax.selection import Selection, Validation
from kmil_jax.train import RunState
from kmil_jax.types import Pairs, Plan, Recipe

# A save costs a tenth of a second, of larger networks a whole one: epochs
# shorter than this share one.
SECONDS_BETWEEN_SAVES = 20.0

_keep_best = jax.jit(train.keep_best, donate_argnums=0)


def fit(
  program: Resident | Streamed,
  layout: Layout,
  recipe: Recipe,
  state: RunState,
  *,
  plan: Callable[[int], Plan],
  pairs: Pairs,
  label: np.ndarray,
  num_classes: int,
  checkpoints: checkpoint.Checkpoints,
  report: Callable[[int, np.ndarray, Validation, Selection], None],
) -> tuple[RunState, Selection]:
  """Trains all runs of a stage, from its last checkpoint if there is one.

  Args:
    program: how an epoch is trained and evaluated.
    layout: that of the program.
    recipe: of the stage.
    state: R runs before their first epoch, NumPy.
    plan: the bags of an epoch; a pure function, so that nothing of it is saved.
    pairs: every run with the bags of its validation part.
    label: class of every bag of the cohort, [n].
    num_classes: C.
    checkpoints: of this stage.
    report: called after every epoch with the epoch, the mean training loss [R],
      the validation and the selection; epochs restored from a checkpoint are
      not reported again.

  Returns:
    The state, NumPy, whose `best` holds the chosen epochs' parameters, and the
    final selection.

  Raises:
    FloatingPointError: if a training or validation loss is not finite.
  """
  chosen = selection.start(len(state.seed), recipe)
  saved = checkpoints.latest(_saved(state, chosen, 0))
  first = 0
  if saved is not None:
    state = state.replace(**saved['state'])
    chosen = Selection(**saved['selection'])
    first = int(saved['epoch'])
  state = layout.put(state)
  last_save = time.monotonic()
  for epoch in range(first, recipe.epochs):
    if chosen.stopped.all():
      break
    state = state.replace(
      learning_rate=layout.put(np.float32(chosen.learning_rate)),
      active=layout.put(~chosen.stopped),
    )
    order = plan(epoch if recipe.shuffle else 0)
    state, loss = program.train(state, order.replace(epoch=np.int32(epoch)))
    evaluated = program.evaluate(state, pairs)
    val = validate(evaluated, pairs, label, num_classes, len(loss))
    _check_finite(loss + val.loss, epoch)
    chosen, improved = selection.update(chosen, recipe, epoch, val)
    state = _keep_best(state, layout.put(improved))
    report(epoch, loss, val, chosen)
    last = epoch + 1 == recipe.epochs or chosen.stopped.all()
    due = time.monotonic() - last_save > SECONDS_BETWEEN_SAVES
    if parallel.agree(last or due):
      host = layout.gather(state)
      checkpoints.save(epoch + 1, _saved(host, chosen, epoch + 1))
      last_save = time.monotonic()
  return layout.gather(state), chosen


def validate(
  evaluated: dict[str, np.ndarray],
  pairs: Pairs,
  label: np.ndarray,
  num_classes: int,
  num_runs: int,
) -> Validation:
  """Summarises the evaluated pairs run by run.

  Args:
    evaluated: `prob` [P, C] and `loss` [P].
    pairs: P bags with their runs; every run occurs.
    label: class of every bag of the cohort, [n].
    num_classes: C.
    num_runs: R.
  """
  table = np.zeros((num_runs, num_classes, num_classes))
  pred = evaluated['prob'].argmax(1)
  np.add.at(table, (pairs.run, label[pairs.index], pred), 1)
  scores = metrics.from_confusion(table)
  truth, prob = label[pairs.index], evaluated['prob']
  aurocs = [
    metrics.class_aurocs(truth[pairs.run == r], prob[pairs.run == r])
    for r in range(num_runs)
  ]
  count = np.bincount(pairs.run, minlength=num_runs)
  loss = np.bincount(pairs.run, evaluated['loss'], minlength=num_runs)
  return Validation(
    f1_macro=scores['f1_macro'],
    accuracy=scores['accuracy'],
    auroc=np.array([_mean_of_defined(values) for values in aurocs]),
    loss=loss / count,
  )


def _mean_of_defined(values: np.ndarray) -> float:
  defined = values[np.isfinite(values)]
  return defined.mean() if len(defined) else np.nan


def _saved(state: RunState, chosen: Selection, epoch: int) -> dict:
  """What a checkpoint holds; the rest of the state is a function of flags."""
  return {
    'state': {
      'params': state.params,
      'opt_state': state.opt_state,
      'best': state.best,
    },
    'selection': dict(chosen.items()),
    'epoch': np.int64(epoch),
  }


def _check_finite(loss: np.ndarray, epoch: int) -> None:
  bad = np.flatnonzero(~np.isfinite(loss))
  if len(bad):
    raise FloatingPointError(
      f'epoch {epoch}: the loss of run {bad.tolist()} is not finite;'
      ' lower --lr or use --precision=float32'
    )
