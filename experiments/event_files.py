"""TensorBoard event files that say what metrics.jsonl says."""

from collections.abc import Iterable, Mapping
import pathlib
import time
from typing import Any

_PATTERN = 'events.out.tfevents.*'


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
    for old in folder.glob(_PATTERN):
      old.unlink()
    now = time.time()
    path = folder / _PATTERN.replace('*', f'{int(now)}.kmil_jax')
    self._writer = tf.io.TFRecordWriter(str(path))
    self._write(now, file_version='brain.Event:2')
    # A TensorBoard that is open forgets what it read of the old file.
    start = self._v1.SessionLog(status=self._v1.SessionLog.START)
    self._write(now, step=0, session_log=start)
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
    self._write(
      time.time(), step=line['epoch'], summary=self._v1.Summary(value=values)
    )
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()

  def _write(self, wall_time: float, **content: Any) -> None:
    event = self._v1.Event(wall_time=wall_time, **content)
    self._writer.write(event.SerializeToString())
