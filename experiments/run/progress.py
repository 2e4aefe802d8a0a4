"""How training shows itself: a bar, metrics.jsonl, and TensorBoard's events."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import itertools
import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
import tqdm

from data.files import replacing
from experiments.run.results import Folder
from kmil_jax import parallel

METRICS = 'metrics.jsonl'
DIVERGED = 'diverged.json'
_DIVERGED = {'*': {'epoch': int, 'kept': int}}  # By stage.
_SHOWN = ('train_loss', 'val_loss', 'val_accuracy', 'val_f1_macro', 'val_auroc')
_WHOLE = ('epoch', 'best_epoch')  # Numbers.
_SECONDS = 30.0  # Between the lines of a log.
_LINE = (
  '{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]'
)
PATIENCE = 3.0  # Seconds of a loop that mostly is short, before it is shown.


def bar(iterable: Iterable | None = None, **options: Any) -> tqdm.tqdm:
  """Returns what shows the progress of a loop on standard error.

  On a terminal, a bar. In a file or a pipe, a plain line at the start, or after
  its delay, at the end and every half minute between: no carriage returns. Of a
  pod, process 0 alone shows it.

  Args:
    iterable: to go over, if any.
    **options: of tqdm.
  """
  # Which process it is, is asked of a pod alone: that starts the devices.
  hidden = jax.distributed.is_initialized() and not parallel.is_first()
  options = {'disable': hidden} | options
  if sys.stderr.isatty():
    return tqdm.tqdm(iterable, **options)
  options |= {
    'file': _Log(),
    'bar_format': _LINE,
    'mininterval': _SECONDS,
    'maxinterval': 2 * _SECONDS,
    'position': 0,
  }
  if 'delay' not in options:
    return tqdm.tqdm(iterable, **options)
  log = tqdm.tqdm(iterable, **options, smoothing=0)
  if not log.disable:  # The first line is due after the delay.
    log.last_print_t -= _SECONDS - options['delay']
  return log


def over(
  items: Iterable | None,
  name: str,
  total: int | None = None,
  unit: str = 'slide',
) -> tqdm.tqdm:
  """Returns the items of a loop whose bar shows if it is not short.

  Args:
    items: to go over, if any.
    name: before the bar.
    total: how many they are, if they do not know.
    unit: what they are.
  """
  return bar(items, desc=name, total=total, unit=unit, delay=PATIENCE)


class Progress:
  """Reports the epochs of one stage of several runs; see `loop.fit`.

  Args:
    runs: the folders of every run; `metrics.jsonl` of each is written.
    columns: the names of its numbers in the file, and in `loop.COLUMNS`.
    epochs: how many there are at most.
    name: before the bar.
    unit: what the bar counts.
    steps: how many of these are an epoch.
    stage: of a training that has several; lines of the others stay.
    tensorboard: also writes event files into these folders.
  """

  def __init__(
    self,
    runs: Sequence[Sequence[pathlib.Path]],
    columns: Mapping[str, str],
    epochs: int,
    *,
    name: str,
    unit: str = 'epoch',
    steps: int = 1,
    stage: str | None = None,
    tensorboard: bool = False,
  ):
    self._paths = [[folder / METRICS for folder in some] for some in runs]
    self._columns, self._stage, self._steps = columns, stage, steps
    self._tensorboard, self._started = tensorboard, False
    self._events: dict[pathlib.Path, EventFile] = {}
    self._bar = bar(
      total=epochs * steps,
      desc=name,
      unit=unit,
      mininterval=1,
      postfix='compiling, once',
    )
    self._compiled = False

  def advance(self, epoch: int, steps: int) -> None:
    """Shows so many steps of an epoch as done, and the epochs before it."""
    done = epoch * self._steps + steps
    if not self._compiled:  # Nor has what a killed run did a speed.
      self._bar.initial = self._bar.n = done
      self._bar.start_t = self._bar.last_print_t = time.time()
      if steps:
        self._compiled = True
        self._bar.set_postfix_str('', refresh=False)
    self._bar.update(done - self._bar.n)

  def report(self, history: Mapping[str, np.ndarray]) -> None:
    """Writes the last epoch; of a training that goes on, all of them first."""
    if not parallel.is_first():
      return
    last = len(history['best_epoch']) - 1
    for run, paths in enumerate(self._paths):
      first = last if self._started else 0
      lines = [
        self._line(history, epoch, run)
        for epoch in range(first, last + 1)
        if np.isfinite(history['best_epoch'][epoch, run])
      ]
      for path in paths:
        self._write(path, lines)
    self._started = True
    shown = {}
    for name in set(_SHOWN).intersection(self._columns.values()):
      values = history[name][last]
      if np.isfinite(values).any():
        shown[name.removeprefix('train_')] = f'{np.nanmean(values):.3f}'
    self._bar.set_postfix(dict(sorted(shown.items())), refresh=False)
    self.advance(last, self._steps)

  def close(self) -> None:
    self._bar.close()
    for events in self._events.values():
      events.close()

  def _line(
    self, history: Mapping[str, np.ndarray], epoch: int, run: int
  ) -> dict[str, Any]:
    line = {'stage': self._stage} if self._stage else {}
    line['epoch'] = epoch
    for name, column in self._columns.items():
      value = float(history[column][epoch, run])
      line[name] = int(value) if name in _WHOLE else value
      if not np.isfinite(value):  # JSON has no such number.
        line[name] = None
    return line

  def _write(self, path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
    """Appends lines; the first time, to those of stages before this one."""
    if not self._started:
      lines = self._before(path) + lines
      path.parent.mkdir(parents=True, exist_ok=True)
      with replacing(path) as part:
        part.write_text(_text(lines), encoding='utf-8')
      if self._tensorboard:
        self._events[path] = EventFile(path.parent, lines)
      return
    with path.open('a', encoding='utf-8') as f:
      f.write(_text(lines))
    for line in lines if path in self._events else ():
      self._events[path].add(line)

  def _before(self, path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of stages before this one."""
    if self._stage is None or not path.exists():
      return []
    lines = []
    for text in path.read_bytes().splitlines():
      with contextlib.suppress(ValueError, RecursionError):
        line = json.loads(text)
        if isinstance(line, dict) and isinstance(line.get('stage'), str):
          lines.append(line)  # A kill may have cut the last one short.
    mine = lambda line: line['stage'] == self._stage
    return list(itertools.takewhile(lambda line: not mine(line), lines))


@contextlib.contextmanager
def training(
  checkpoints: pathlib.Path, *about: Any, **options: Any
) -> Iterator[tuple[Any, Progress]]:
  """Opens the `Checkpoints` of a training, see `loop.fit`, and its `Progress`.

  Args:
    checkpoints: folder of the newest state.
    *about: of `Progress`, as the options.
  """
  from kmil_jax import checkpoint  # Orbax takes seconds to import.

  with (
    contextlib.closing(checkpoint.Checkpoints(checkpoints)) as saved,
    contextlib.closing(Progress(*about, **options)) as shown,
  ):
    for file in saved.damaged:
      print(
        f'warning: {file} is damaged. The training goes on from the newest'
        ' checkpoint that is not, or else anew.'
      )
    yield saved, shown


def record_divergence(
  folder: pathlib.Path, stages: Mapping[str, tuple[int, int]]
) -> None:
  """Records which stages of a run diverged; of none, removes the record.

  Args:
    folder: of the run.
    stages: the epoch in which the loss of each stage was not finite, and the
      epoch that was kept; -1 for none.
  """
  record = {
    name: {'epoch': epoch, 'kept': kept}
    for name, (epoch, kept) in stages.items()
    if epoch >= 0
  }
  if record:
    Folder(folder).write(DIVERGED, record)
  elif parallel.is_first():
    (folder / DIVERGED).unlink(missing_ok=True)


def raise_if_diverged(folders: Iterable[pathlib.Path]) -> None:
  """Ends a script that trained everything else if runs diverged.

  Args:
    folders: of the runs, see `record_divergence`.

  Raises:
    FloatingPointError: naming each run that did, its epoch, and which was kept.
  """
  lines = []
  for folder in folders:
    if not (folder / DIVERGED).exists():
      continue
    for stage, entry in Folder(folder).read(DIVERGED, _DIVERGED).items():
      kept = 'No epoch could be kept.'
      if entry['kept'] >= 0:
        kept = f'Epoch {entry["kept"]} was kept.'
      lines.append(
        f'{folder}: the loss of the {stage} became infinite or NaN in epoch'
        f' {entry["epoch"]}. {kept}'
      )
  if lines:
    lines.append('Lower --lr or use --precision=float32.')
    raise FloatingPointError('\n'.join(lines))


def below(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders of all runs of an experiment that diverged."""
  return sorted(path.parent for path in folder.rglob(DIVERGED))


def _text(lines: list[dict[str, Any]]) -> str:
  return ''.join(json.dumps(line) + '\n' for line in lines)


class EventFile:
  """One file of events in a folder, which `tensorboard --logdir` finds.

  Begins anew with the lines of metrics.jsonl that there are, so that no step is
  told twice and none is missing, whatever was killed when. The wall time of
  those is that of the opening: metrics.jsonl holds none.

  TensorFlow, which the features' pipeline needs anyway, is imported here and
  not before; nothing of the tensorboard package is needed to write.

  Args:
    folder: for the file.
    lines: of metrics.jsonl so far.
  """

  def __init__(self, folder: pathlib.Path, lines: Iterable[Mapping[str, Any]]):
    from data.host_tensorflow import tf

    self._v1 = tf.compat.v1
    for old in folder.glob('events.out.tfevents.*'):
      old.unlink()
    with tf.Graph().as_default():  # Without a graph, it asks for tensorboard.
      self._writer = self._v1.summary.FileWriter(str(folder))
    # A TensorBoard that is open forgets what it read of the old file.
    start = self._v1.SessionLog(status=self._v1.SessionLog.START)
    self._writer.add_session_log(start, 0)
    for line in lines:
      self.add(line)

  def add(self, line: Mapping[str, Any]) -> None:
    """Adds a line of metrics.jsonl: its numbers, at its epoch.

    Numbers of a stage are named `<stage>/<name>`; what is undefined is left
    out.
    """
    prefix = f'{line["stage"]}/' if 'stage' in line else ''
    values = [
      self._v1.Summary.Value(tag=prefix + name, simple_value=value)
      for name, value in line.items()
      if name not in ('stage', 'epoch') and value is not None
    ]
    self._writer.add_summary(self._v1.Summary(value=values), line['epoch'])
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


class _Log:
  """Standard error, to which each write is a whole line or nothing."""

  def write(self, text: str) -> None:
    if line := text.strip():
      sys.stderr.write(line + '\n')

  def flush(self) -> None:
    sys.stderr.flush()
