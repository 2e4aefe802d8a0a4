"""How the training of a patch classifier shows itself, and its record."""

import json
import math
import pathlib

from experiments import bars, files
from experiments.event_files import EventFile
from kmil_jax import parallel
from kmil_jax.types import PatchRecipe

METRICS = 'metrics.jsonl'


class Progress:
  """A bar of tiles, and metrics.jsonl for the record."""

  def __init__(
    self,
    folder: pathlib.Path,
    name: str,
    num_tiles: int,
    recipe: PatchRecipe,
    tensorboard: bool = False,
  ):
    self._path = folder / METRICS
    self._epoch = math.ceil(num_tiles / recipe.batch) * recipe.batch
    self._tensorboard = tensorboard
    self._events: EventFile | None = None
    self._bar = bars.bar(
      total=recipe.epochs * self._epoch,
      desc=name,
      unit='tile',
      mininterval=1,
      disable=not parallel.is_first(),
    )

  def begin(self, epoch: int) -> None:
    """Counts the epochs before this one as done."""
    if not self._bar.n:  # What a killed run did has no speed.
      self._bar.initial = epoch * self._epoch
    self._bar.n = epoch * self._epoch

  def advance(self, tiles: int) -> None:
    self._bar.update(tiles)

  def report(self, history: list[dict[str, float]]) -> None:
    if not parallel.is_first():
      return
    rows = [
      {k: None if math.isnan(v) else v for k, v in row.items()}
      for row in history
    ]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    files.write_text(self._path, text)
    if self._events:
      self._events.add(rows[-1])
    elif self._tensorboard:
      self._events = EventFile(self._path.parent, rows)
    last = history[-1]
    self._bar.set_postfix(
      loss=f'{last["train_loss"]:.3f}',
      val_loss=f'{last["val_loss"]:.3f}',
      val_accuracy=f'{last["val_accuracy"]:.3f}',
      val_auroc=f'{last["val_auroc"]:.3f}',
      refresh=False,
    )

  def close(self) -> None:
    self._bar.close()
    if self._events:
      self._events.close()
