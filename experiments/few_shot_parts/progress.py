"""How the trainings of a few-shot study show themselves, and their record."""

from collections.abc import Sequence
import json
import math
import pathlib

import numpy as np

from experiments import bars, files
from experiments.event_files import EventFile
from kmil_jax import parallel

METRICS = 'metrics.jsonl'


class Progress:
  """A bar of epochs, and metrics.jsonl of every training.

  Args:
    folders: of the trainings.
    epochs: of all of them.
    tensorboard: whether event files are written beside metrics.jsonl.
  """

  def __init__(
    self, folders: Sequence[pathlib.Path], epochs: int, tensorboard: bool
  ):
    self._folders, self._tensorboard = folders, tensorboard
    self._events: list[EventFile] = []
    self._bar = bars.bar(
      total=epochs,
      desc=f'{len(folders)} trainings',
      unit='epoch',
      disable=not parallel.is_first(),
    )

  def report(self, history: list[dict[str, np.ndarray]]) -> None:
    """Writes the epochs so far; values are [R] each."""
    if not parallel.is_first():
      return
    last = history[-1]
    for run, folder in enumerate(self._folders):
      rows = [_row(epoch, run) for epoch in history]
      text = ''.join(json.dumps(row) + '\n' for row in rows)
      files.write_text(folder / METRICS, text)
      if len(self._events) > run:
        self._events[run].add(rows[-1])
      elif self._tensorboard:
        self._events.append(EventFile(folder, rows))
    self._bar.set_postfix(
      loss=f'{last["train_loss"].mean():.3f}',
      val_accuracy=f'{last["val_accuracy"].mean():.3f}',
      refresh=False,
    )
    self._bar.update(len(history) - self._bar.n)

  def close(self) -> None:
    self._bar.close()
    for events in self._events:
      events.close()


def _row(epoch: dict[str, np.ndarray], run: int) -> dict[str, float | None]:
  """Returns one training's line of metrics.jsonl."""
  row = {}
  for name, values in epoch.items():
    value = np.asarray(values)
    value = value[run].item() if value.ndim else value.item()
    row[name] = None if math.isnan(value) else value
  return row
