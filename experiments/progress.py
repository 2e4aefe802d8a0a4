"""How training shows itself: a bar, and metrics.jsonl for the record."""

from collections.abc import Sequence
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from experiments import bars, files
from experiments.event_files import EventFile
from kmil_jax import parallel
from kmil_jax.selection import Selection, Validation


class Progress:
  """Reports the epochs of one stage of several runs; see `fit.fit`.

  Args:
    runs: the folders of every run, `metrics.jsonl` of each is written.
    stage: its name.
    epochs: how many there are at most.
    tensorboard: also writes event files into these folders.
  """

  def __init__(
    self,
    runs: Sequence[Sequence[pathlib.Path]],
    stage: str,
    epochs: int,
    tensorboard: bool = False,
  ):
    self._paths = [
      [folder / 'metrics.jsonl' for folder in folders] for folders in runs
    ]
    self._stage = stage
    self._started = False
    self._tensorboard = tensorboard
    self._events: dict[pathlib.Path, EventFile] = {}
    self._bar = bars.bar(
      total=epochs,
      desc=f'{stage} x {len(runs)} run{"s" * (len(runs) > 1)}',
      unit='epoch',
      disable=not parallel.is_first(),
    )

  def report(
    self, epoch: int, loss: np.ndarray, val: Validation, chosen: Selection
  ) -> None:
    if not parallel.is_first():
      return
    if not self._started:
      self._started = True
      self._bar.update(epoch)
      for path in itertools.chain(*self._paths):
        kept = self._forget_from(path, epoch)
        if self._tensorboard:
          self._events[path] = EventFile(path.parent, kept)
    # Those that had not stopped before this epoch.
    going = chosen.epoch + chosen.stale == epoch
    for r, paths in enumerate(self._paths):
      if not going[r]:
        continue
      line = {
        'stage': self._stage,
        'epoch': epoch,
        'train_loss': float(loss[r]),
        'val_loss': float(val.loss[r]),
        'val_accuracy': float(val.accuracy[r]),
        'val_f1_macro': float(val.f1_macro[r]),
        'val_auroc': _number(val.auroc[r]),
        'best_epoch': int(chosen.epoch[r]),
      }
      for path in paths:
        with path.open('a') as f:
          f.write(json.dumps(line) + '\n')
        if path in self._events:
          self._events[path].add(line)
    self._bar.set_postfix(
      loss=f'{loss[going].mean():.3f}',
      val_f1=f'{val.f1_macro[going].mean():.3f}',
      refresh=False,
    )
    self._bar.update()

  def close(self) -> None:
    self._bar.close()
    for events in self._events.values():
      events.close()

  def _forget_from(
    self, path: pathlib.Path, epoch: int
  ) -> list[dict[str, Any]]:
    """Drops what a killed run reported after its last checkpoint.

    Returns:
      The lines that stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    kept = []
    for line in lines:
      try:
        old = json.loads(line)
      except json.JSONDecodeError:  # The kill cut the last line short.
        continue
      if old['stage'] == self._stage and old['epoch'] >= epoch:
        continue
      if self._stage == 'chooser' and old['stage'] == 'model':
        continue
      kept.append(old)
    text = ''.join(json.dumps(line) + '\n' for line in kept)
    files.write_text(path, text)
    return kept


def _number(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None
