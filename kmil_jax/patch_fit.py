"""The training loop of a patch classifier: epochs, validation, recovery."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from kmil_jax import checkpoint, metrics, parallel, selection
from kmil_jax.fit import SECONDS_BETWEEN_SAVES
from kmil_jax.patch_train import PatchTrainer, TileState, Variables
from kmil_jax.selection import Selection, Validation
from kmil_jax.types import PatchRecipe, Tiles

# What is told of an epoch besides its number.
COLUMNS = (
  'train_loss',
  'train_accuracy',
  'val_loss',
  'val_accuracy',
  'val_f1_macro',
  'val_auroc',
  'learning_rate',
  'tiles_per_second',
  'best_epoch',
)
# Steps that may wait: more of them deadlock simulated devices.
_STEPS_AHEAD = 16


class Program:
  """A trainer's step and prediction, compiled once each.

  Args:
    trainer: what to train.
  """

  def __init__(self, trainer: PatchTrainer):
    self.trainer = trainer
    self.step = parallel.pmap_step(trainer.step)
    self._predict = parallel.pmap_local(trainer.predict)

  def predict(
    self,
    variables: Variables,
    batches: Iterable[Tiles],
    names: Sequence[str] = ('prob', 'features'),
  ) -> dict[str, np.ndarray]:
    """Evaluates batches in their order; every process evaluates all of them.

    Args:
      variables: replicated.
      batches: of one size, which divides over the local devices. Fillers, of
        weight 0, are dropped.
      names: of `PatchTrainer.predict`.

    Returns:
      Arrays [n, ...] by name.
    """
    rows = []
    for tiles in batches:
      said = self._predict(variables, parallel.split(tiles))
      real = np.asarray(tiles.weight) > 0
      rows.append({name: said[name][real] for name in names})
    return {name: np.concatenate([r[name] for r in rows]) for name in names}


@dataclasses.dataclass(frozen=True)
class Fitted:
  """What training leaves."""

  variables: Variables  # of the epoch that validation chose, NumPy
  epoch: int  # that one, from 0
  history: list[dict[str, float]]  # `COLUMNS` of every epoch


def fit(
  program: Program,
  recipe: PatchRecipe,
  state: TileState,
  *,
  train: Callable[[int], Iterator[Tiles]],
  val: Callable[[], Iterator[Tiles]],
  label: np.ndarray,
  checkpoints: checkpoint.Checkpoints,
  report: Callable[[list[dict[str, float]]], None],
) -> Fitted:
  """Trains a classifier, from its last checkpoint if there is one.

  Args:
    program: of the classifier.
    recipe: its epochs, schedule, selection and patience.
    state: before the first step, NumPy.
    train: the batches of an epoch, equal in all processes; a pure function, so
      that nothing of it is saved.
    val: the validation tiles in their order, see `Program.predict`.
    label: their classes, [n].
    checkpoints: of this training.
    report: called after every epoch with the history so far.

  Raises:
    FloatingPointError: if a training or validation loss is not finite.
    ValueError: if a batch does not divide over the devices.
  """
  chosen = selection.start(1, recipe)
  table = np.full((recipe.epochs, len(COLUMNS)), np.nan)
  best, first = state.variables, 0
  saved = checkpoints.latest(_saved(state, best, chosen, table, first))
  if saved is not None:
    state = state.replace(**saved['state'])
    best, table = saved['best'], saved['history'].copy()
    chosen, first = Selection(**saved['selection']), int(saved['epoch'])
  state = parallel.replicate(state)
  last_save = time.monotonic()
  for epoch in range(first, recipe.epochs):
    if chosen.stopped.all():
      break
    rate = np.float32(chosen.learning_rate[0])
    state = state.replace(learning_rate=parallel.replicate(rate))
    start = time.perf_counter()
    state, told = _train_epoch(program, state, train(epoch), epoch)
    seconds = time.perf_counter() - start
    validation = validate(program, state.variables, val(), label)
    _check_finite(validation.loss, epoch, 'validation')
    chosen, improved = selection.update(chosen, recipe, epoch, validation)
    if improved.all():
      best = _host(state.variables)
    table[epoch] = [
      told['loss'] / told['weight'],
      told['hits'] / told['tiles'],
      *validation.loss,
      *validation.accuracy,
      *validation.f1_macro,
      *validation.auroc,
      rate,
      told['tiles'] / seconds,
      *chosen.epoch,
    ]
    report(_history(table[: epoch + 1]))
    last = epoch + 1 == recipe.epochs or chosen.stopped.all()
    due = time.monotonic() - last_save > SECONDS_BETWEEN_SAVES
    if parallel.agree(last or due):
      checkpoints.save(
        epoch + 1, _saved(_host(state), best, chosen, table, epoch + 1)
      )
      last_save = time.monotonic()
  done = ~np.isnan(table[:, 0])
  return Fitted(best, int(chosen.epoch[0]), _history(table[done]))


def validate(
  program: Program,
  variables: Variables,
  batches: Iterable[Tiles],
  label: np.ndarray,
) -> Validation:
  """Summarises what a classifier says of tiles whose classes are `label` [n].

  Returns:
    A `Validation` of one run; its loss is the mean under the recipe's weights
    of classes.
  """
  said = program.predict(variables, batches, ('prob', 'loss', 'weight'))
  prob, weight = said['prob'], said['weight'].astype(np.float64)
  table = metrics.confusion(label, prob.argmax(1), prob.shape[1])
  scores = metrics.from_confusion(table)
  aurocs = metrics.class_aurocs(label, prob)
  defined = aurocs[np.isfinite(aurocs)]
  return Validation(
    f1_macro=scores['f1_macro'][None],
    accuracy=scores['accuracy'][None],
    auroc=np.array([defined.mean() if len(defined) else np.nan]),
    loss=np.array([(said['loss'] * weight).sum() / weight.sum()]),
  )


def _train_epoch(
  program: Program, state: TileState, batches: Iterable[Tiles], epoch: int
) -> tuple[TileState, dict[str, float]]:
  """Returns the state and the sums over the epoch's batches."""
  waiting, totals = [], dict.fromkeys(('loss', 'weight', 'hits', 'tiles'), 0.0)

  def take_in():
    for told in waiting:
      for name, value in told.items():
        totals[name] += float(value)
    waiting.clear()
    _check_finite(totals['loss'], epoch, 'training')

  for tiles in batches:
    state, told = program.step(state, parallel.share(tiles))
    waiting.append(told)
    if len(waiting) == _STEPS_AHEAD:
      take_in()
  take_in()
  return state, totals


def _history(table: np.ndarray) -> list[dict[str, float]]:
  return [
    {'epoch': epoch, **dict(zip(COLUMNS, map(float, row), strict=True))}
    | {'best_epoch': int(row[-1])}
    for epoch, row in enumerate(table)
  ]


def _saved(
  state: TileState,
  best: Variables,
  chosen: Selection,
  table: np.ndarray,
  epoch: int,
) -> dict:
  """What a checkpoint holds; the rest of the state is a function of flags."""
  return {
    'state': {
      'params': state.params,
      'batch_stats': state.batch_stats,
      'opt_state': state.opt_state,
      'step': state.step,
    },
    'best': best,
    'selection': dict(chosen.items()),
    'history': table,
    'epoch': np.int64(epoch),
  }


def _host(tree: Any) -> Any:
  """Copies to NumPy: a view would change when the state is donated."""
  return jax.tree.map(np.array, tree)


def _check_finite(loss: Any, epoch: int, part: str) -> None:
  if not np.isfinite(loss).all():
    raise FloatingPointError(
      f'epoch {epoch}: the {part} loss is not finite; lower --lr or use'
      ' --precision=float32'
    )
