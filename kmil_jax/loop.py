"""The training loop of any task: epochs, validation, selection, recovery."""

from collections.abc import Callable
import dataclasses
import time
from typing import Any

import numpy as np

from kmil_jax import checkpoint, metrics, parallel, selection, train
from kmil_jax.programs import Program
from kmil_jax.selection import Selection
from kmil_jax.train import Variables

# A save costs a tenth of a second, of larger networks a whole one: epochs
# shorter than this share one.
SECONDS_BETWEEN_SAVES = 20.0
# What is known of every run after an epoch.
COLUMNS = (
  'train_loss',
  'train_accuracy',
  'learning_rate',
  'examples_per_second',
  'val_loss',
  'val_accuracy',
  'val_f1_macro',
  'val_auroc',
  'val_threshold',
  'best_epoch',
)
# `COLUMNS` of the epochs so far, [E, R] each; NaN where a run had stopped, and
# as the threshold of tasks that have none.
History = dict[str, np.ndarray]
# Predictions of R runs, see `Program.evaluate`, and R to metrics by name, [R]
# each: a `selection.Validation`, and a `threshold` if there is one.
Validate = Callable[[dict[str, np.ndarray], int], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Result:
  """What training leaves of R runs; NumPy."""

  variables: Variables  # [R, ...] of the epochs that validation chose
  epoch: np.ndarray  # [R] those, from 0; -1 for none
  failed: np.ndarray  # [R] the epoch in which a run diverged, -1 for none
  history: History

  @property
  def lost(self) -> np.ndarray:
    """Whether a run diverged before an epoch could be kept, bool [R]."""
    return (self.failed >= 0) & (self.epoch < 0)


def classification(
  predictions: dict[str, np.ndarray], num_runs: int
) -> dict[str, np.ndarray]:
  """Summarises the classified examples of every run.

  Args:
    predictions: `prob` [n, C], `loss`, `weight` (of the loss), `label` and
      `run`, [n] each; every run occurs.
    num_runs: R.

  Returns:
    A `selection.Validation`.
  """
  run, label = predictions['run'], predictions['label']
  # Where a run diverged; its loss is not finite either.
  prob = np.nan_to_num(predictions['prob'])
  tables = np.zeros((num_runs, prob.shape[1], prob.shape[1]))
  np.add.at(tables, (run, label, prob.argmax(1)), 1)
  scores = metrics.from_confusion(tables)
  aurocs = [
    metrics.evaluate(label[run == r], prob[run == r])['class_auroc']
    for r in range(num_runs)
  ]
  defined = [values[np.isfinite(values)] for values in aurocs]
  weight = predictions['weight'].astype(np.float64)
  loss = np.bincount(run, predictions['loss'] * weight, minlength=num_runs)
  return {
    'f1_macro': scores['f1_macro'],
    'accuracy': scores['accuracy'],
    'auroc': np.array([x.mean() if len(x) else np.nan for x in defined]),
    'loss': loss / np.bincount(run, weight, minlength=num_runs),
  }


def fit(
  program: Program,
  recipe: selection.AnyRecipe,
  runs: Any,
  variables: Variables,
  *,
  validation: Any,
  validate: Validate = classification,
  checkpoints: checkpoint.Checkpoints | None = None,
  report: Callable[[History], None] = lambda history: None,
) -> Result:
  """Trains all runs, from their last checkpoint if there is one.

  A run whose training or validation loss is not finite stops alone, with the
  variables of its best epoch; the others go on.

  Args:
    program: how an epoch is trained and evaluated.
    recipe: its epochs, schedule, selection and patience.
    runs: what tells R runs apart, NumPy leaves [R, ...].
    variables: to start from, NumPy leaves [R, ...]; see `train.draw`.
    validation: the examples by which epochs are chosen, as the program's loader
      takes them.
    validate: summarises their predictions run by run.
    checkpoints: of this training; None to keep none.
    report: called after every epoch with the history so far; epochs restored
      from a checkpoint are not reported again.
  """
  state = train.init(program.task, runs, variables)
  num_runs = len(state.step)
  chosen, first = selection.start(num_runs, recipe), 0
  failed = np.full(num_runs, -1)
  table = np.full((recipe.epochs, len(COLUMNS), num_runs), np.nan)

  def to_save(state: dict[str, Any], epoch: int) -> dict[str, Any]:
    return {
      'state': state,
      'selection': dict(chosen.items()),
      'failed': failed,
      'history': table,
      'epoch': np.int64(epoch),
    }

  like, saved = to_save(_saved_of(state), first), None
  if checkpoints:
    checkpoints.check_space(like)
    saved = checkpoints.latest(like)
  del like
  if saved:
    state = state.replace(**saved.pop('state'))
    chosen, first = Selection(**saved['selection']), int(saved['epoch'])
    failed, table = saved['failed'], saved['history'].copy()
  ended = first >= recipe.epochs or chosen.stopped.all()
  states = program.put(state) if ended else program.start(state)
  del state  # Only the devices hold it.
  last_save = time.monotonic()
  for epoch in range(first, recipe.epochs):
    if chosen.stopped.all():
      break
    active, rate = ~chosen.stopped, chosen.learning_rate
    start = time.perf_counter()
    states, sums = program.train(states, epoch, rate, active)
    seconds = time.perf_counter() - start
    models = [(state.variables, state.run) for state in states]
    val = validate(program.evaluate(models, validation), num_runs)
    with np.errstate(divide='ignore', invalid='ignore'):  # Stopped: 0 / 0.
      row = {
        'train_loss': sums['loss'] / sums['weight'],
        'train_accuracy': sums['hits'] / sums['count'],
      }
    diverged = active & ~np.isfinite(row['train_loss'] + val['loss'])
    failed = np.where(diverged, epoch, failed)
    chosen, improved = selection.update(
      chosen.replace(stopped=chosen.stopped | diverged),
      recipe,
      epoch,
      val,
    )
    states = program.keep_best(states, improved, diverged)
    row |= {f'val_{name}': value for name, value in val.items()} | {
      'learning_rate': rate,
      'examples_per_second': sums['count'].sum() / seconds,
      'best_epoch': chosen.epoch,
    }
    for column, name in enumerate(COLUMNS):
      table[epoch, column] = np.where(active, row.get(name, np.nan), np.nan)
    report(_history(table[: epoch + 1]))
    last = epoch + 1 == recipe.epochs or chosen.stopped.all()
    due = time.monotonic() - last_save > SECONDS_BETWEEN_SAVES
    if checkpoints and parallel.agree(last or due):
      gathered = program.gather([_saved_of(state) for state in states])
      checkpoints.save(epoch + 1, to_save(gathered, epoch + 1))
      last_save = time.monotonic()
  trained = ~np.isnan(table[:, COLUMNS.index('best_epoch')]).all(1)
  best = program.gather([state.best for state in states])
  return Result(best, chosen.epoch, failed, _history(table[trained]))


def _saved_of(state: train.State) -> dict[str, Any]:
  """Returns what of a state is no function of the options."""
  names = ('params', 'batch_stats', 'opt_state', 'best', 'step')
  return {name: state[name] for name in names}


def _history(table: np.ndarray) -> History:
  return dict(zip(COLUMNS, table.swapaxes(0, 1), strict=True))
