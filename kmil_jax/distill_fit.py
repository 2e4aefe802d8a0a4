"""The training loop of students: epochs, validation, selection, recovery."""

from collections.abc import Callable, Sequence
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from kmil_jax import checkpoint, parallel
from kmil_jax.distill_choice import Chosen, better, validate
from kmil_jax.distill_program import Program
from kmil_jax.distill_runs import DistillError, Run, orders
from kmil_jax.distill_train import (
  Distiller,
  DistillState,
  Patches,
  Variables,
)
from kmil_jax.fit import SECONDS_BETWEEN_SAVES

# What is told of every run after every epoch, [R] each.
COLUMNS = ('train_loss', 'val_accuracy', 'val_auroc', 'threshold', 'best_epoch')


@dataclasses.dataclass(frozen=True)
class Fitted:
  """What training leaves."""

  variables: Variables  # [R, ...] of the epochs that validation chose, NumPy
  epoch: np.ndarray  # [R] those, from 0
  threshold: np.ndarray  # [R] score from which on a patch is called tumour
  history: list[dict[str, np.ndarray]]  # `COLUMNS` of every epoch


def fit(
  distiller: Distiller,
  teacher: Variables,
  runs: Sequence[Run],
  *,
  image: np.ndarray,
  label: np.ndarray,
  val_image: np.ndarray,
  val_label: np.ndarray,
  epochs: int,
  batch: int,
  checkpoints: checkpoint.Checkpoints,
  report: Callable[[list[dict[str, np.ndarray]]], None],
) -> Fitted:
  """Trains all runs, from their last checkpoint if there is one.

  The epoch kept is the one whose validation accuracy, at `patch_threshold`, is
  highest; of equal ones the one of highest AUROC, then the later.

  Args:
    distiller: of all runs.
    teacher: its variables.
    runs: R.
    image: training patches of all runs, uint8 [n, S, S, 3]; on the device.
    label: theirs, 1 normal and 0 tumour, [n].
    val_image: validation patches, uint8.
    val_label: theirs, of both kinds.
    epochs: at least 1.
    batch: patches in a step, and in one call of validation.
    checkpoints: of this training.
    report: called after every epoch with the history so far.

  Raises:
    DistillError: if a run cannot be, see `Distiller.init`, or validation
      patches are not of both kinds.
    FloatingPointError: if a training loss or a validation score is not finite.
  """
  if len(np.unique(val_label)) < 2:
    raise DistillError(
      'validation takes normal patches and tumour patches, and here is one kind'
    )
  variables = distiller.draw([run.seed for run in runs])
  state = distiller.init(variables, runs, label, batch=batch)
  program = Program(distiller, len(runs))
  chosen = Chosen.start(len(runs))
  table = np.full((epochs, len(COLUMNS), len(runs)), np.nan)
  first = 0
  saved = checkpoints.latest(_saved(state, chosen, table, first))
  if saved is not None:
    state = state.replace(**saved['state'])
    chosen, first = Chosen(**saved['chosen']), int(saved['epoch'])
    table = saved['history'].copy()
  states = program.put(state)
  patches = parallel.replicate(
    Patches(teacher=teacher, image=image, label=np.int32(label))
  )
  last_save = time.monotonic()
  for epoch in range(first, epochs):
    order = orders(runs, len(label), batch=batch, epoch=epoch)
    states, loss = program.train(states, patches, order)
    _check_finite(loss, epoch, 'training loss')
    score, _ = program.score(
      [s.variables for s in states], patches.teacher, val_image, batch=batch
    )
    _check_finite(score.sum(1), epoch, 'validation score')
    now = validate(epoch, val_label, score)
    improved = better(now, chosen)
    chosen = jax.tree.map(
      lambda new, old: np.where(improved, new, old),  # noqa: B023
      now,
      chosen,
    )
    states = program.keep_best(states, improved)
    table[epoch] = [loss, now.accuracy, now.auroc, now.threshold, chosen.epoch]
    report(_history(table[: epoch + 1]))
    due = time.monotonic() - last_save > SECONDS_BETWEEN_SAVES
    if parallel.agree(epoch + 1 == epochs or due):
      host = program.gather(states)
      checkpoints.save(epoch + 1, _saved(host, chosen, table, epoch + 1))
      last_save = time.monotonic()
  best = program.gather([s.best for s in states])
  return Fitted(best, chosen.epoch, chosen.threshold, _history(table))


def _history(table: np.ndarray) -> list[dict[str, np.ndarray]]:
  return [
    {'epoch': epoch, **dict(zip(COLUMNS, rows, strict=True))}
    for epoch, rows in enumerate(table)
  ]


def _saved(
  state: DistillState, chosen: Chosen, table: np.ndarray, epoch: int
) -> dict[str, Any]:
  """What a checkpoint holds; the rest is a function of the runs."""
  return {
    'state': {
      'params': state.params,
      'batch_stats': state.batch_stats,
      'opt_state': state.opt_state,
      'best': state.best,
    },
    'chosen': dict(chosen.items()),
    'history': table,
    'epoch': np.int64(epoch),
  }


def _check_finite(values: np.ndarray, epoch: int, what: str) -> None:
  bad = np.flatnonzero(~np.isfinite(values))
  if len(bad):
    raise FloatingPointError(
      f'epoch {epoch}: the {what} of run {bad.tolist()} is not finite; lower'
      ' its learning rate'
    )
