"""How training shows itself: metrics.jsonl, TensorBoard's events, a bar."""

import itertools
import json
import os
import pty
import select
import sys
import termios

import numpy as np
import pytest

from data.host_tensorflow import tf
from experiments.bags import crossval
from experiments.run import progress
from experiments.run.progress import Progress


def history(epochs, stopped_from=None):
  """Epochs of two runs; the first has stopped from an epoch on."""
  count = np.arange(epochs, dtype=float)
  found = {
    'train_loss': np.stack([np.full(epochs, 0.5), 2.0 + count], 1),
    'val_loss': np.stack([np.ones(epochs), count], 1),
    'val_accuracy': np.tile([0.5, 0.75], (epochs, 1)),
    'val_f1_macro': np.tile([0.25, 0.5], (epochs, 1)),
    'val_auroc': np.tile([0.5, np.nan], (epochs, 1)),
    'best_epoch': np.stack([count, count], 1),
  }
  for values in found.values():
    values[stopped_from or epochs :, 0] = np.nan
  return found


def report(folder, stage, total, epochs, *, runs=('a', 'b'), **options):
  """Reports epochs of two runs without training them; returns the progress."""
  stopped = {'stopped_from': options.pop('stopped_from', None)}
  shown = Progress(
    [[folder / name for name in run] for run in runs],
    {name: name for name in crossval.COLUMNS},
    total,
    name=f'{stage} x 2 runs',
    stage=stage,
    **options,
  )
  for epoch in epochs:
    shown.report(history(epoch + 1, **stopped))
  return shown


def lines_of(folder):
  text = (folder / 'metrics.jsonl').read_text()
  assert text.endswith('\n')
  return [json.loads(line) for line in text.splitlines()]


def places(folder):
  return [(x['stage'], x['epoch']) for x in lines_of(folder)]


def test_every_epoch_of_every_run_is_a_line(tmp_path, capsys):
  report(tmp_path, 'model', 3, range(3), runs=['ac', 'b']).close()
  assert places(tmp_path / 'a') == [('model', e) for e in range(3)]
  # Runs that share a stage have the same lines.
  assert lines_of(tmp_path / 'a') == lines_of(tmp_path / 'c')
  assert lines_of(tmp_path / 'b')[2] == {
    'stage': 'model',
    'epoch': 2,
    'train_loss': 4.0,
    'val_loss': 2.0,
    'val_accuracy': 0.75,
    'val_f1_macro': 0.5,
    'val_auroc': None,
    'best_epoch': 2,
  }
  capsys.readouterr()
  report(tmp_path, 'model', 8, range(5, 8)).close()
  shown = capsys.readouterr().err  # Epochs of before count.
  assert 'model x 2 runs' in shown and '8/8' in shown
  assert 'val_f1_macro=0.375' in shown


def test_a_stopped_run_has_no_more_lines(tmp_path):
  report(tmp_path, 'chooser', 6, range(6), stopped_from=4)
  assert [e for _, e in places(tmp_path / 'a')] == [0, 1, 2, 3]
  assert [e for _, e in places(tmp_path / 'b')] == list(range(6))


@pytest.mark.parametrize(
  'cut', ['', '{"stage": "model", "ep', '{', '3\n[]\n{}\n\xff', '[' * 10**5]
)
def test_after_a_kill_no_epoch_is_there_twice(tmp_path, cut):
  report(tmp_path, 'chooser', 2, range(2))
  report(tmp_path, 'model', 9, range(5))
  with (tmp_path / 'a/metrics.jsonl').open('a', encoding='latin-1') as f:
    f.write(cut)
  # The last checkpoint was that of epoch 2.
  report(tmp_path, 'model', 9, range(3, 6))
  report(tmp_path, 'model', 6, range(0))  # A stage that is done.
  chooser = [('chooser', e) for e in range(2)]
  for run in 'ab':
    want = chooser + [('model', e) for e in range(6)]
    assert places(tmp_path / run) == want
  # A chooser that goes on makes its model's lines void.
  report(tmp_path, 'chooser', 2, range(1, 2))
  assert places(tmp_path / 'b') == chooser


def events_of(folder):
  """Steps and values of the scalars in a folder's event files, by name."""
  found = {}
  for path in folder.glob('events.out.tfevents.*'):
    # It checks the sums of every record.
    for event in tf.compat.v1.train.summary_iterator(str(path)):
      for value in event.summary.value:
        found.setdefault(value.tag, []).append((event.step, value.simple_value))
  return found


def scalars_of(folder):
  """The same, from metrics.jsonl."""
  found = {}
  for line in lines_of(folder):
    stage = f'{line.pop("stage")}/' if 'stage' in line else ''
    epoch = line.pop('epoch')
    for name, value in line.items():
      if value is not None:
        scalar = epoch, pytest.approx(value, rel=1e-6)
        found.setdefault(stage + name, []).append(scalar)
  return found


@pytest.mark.parametrize('before', [True, False])
def test_events_say_what_metrics_say_also_after_a_kill(tmp_path, before):
  """Also where only the command that goes on asks for them."""
  report(tmp_path, 'chooser', 2, range(2), tensorboard=before).close()
  report(tmp_path, 'model', 9, range(5), tensorboard=before)
  folder = tmp_path / 'a'
  want = scalars_of(folder) if before else {}
  assert events_of(folder) == want
  for path in folder.glob('events*'):  # The kill cut the last record.
    cut = path.read_bytes()[:-3]
    path.unlink()
    path.with_name('events.out.tfevents.1.kmil_jax').write_bytes(cut)
  # The last checkpoint was that of epoch 2.
  report(tmp_path, 'model', 9, range(3, 6), tensorboard=True).close()
  for run in 'ab':
    got = events_of(tmp_path / run)
    assert got == scalars_of(tmp_path / run)
    assert [step for step, _ in got['model/val_loss']] == list(range(6))
  assert 'model/val_auroc' not in got  # Undefined in this run.


def test_a_training_without_stages_begins_its_files_anew(tmp_path):
  columns = {'loss': 'val_loss', 'best_epoch': 'best_epoch'}
  options = {'unit': 'tile', 'steps': 32, 'tensorboard': True}
  for epochs in ((0, 1, 2), (2, 3)):  # The last checkpoint was that of epoch 2.
    shown = Progress([[tmp_path]], columns, 4, name='x', **options)
    for epoch in epochs:
      shown.advance(epoch, 16)
      shown.report(history(epoch + 1))
    shown.close()
  assert lines_of(tmp_path) == [
    {'epoch': e, 'loss': 1.0, 'best_epoch': e} for e in range(4)
  ]
  assert events_of(tmp_path) == scalars_of(tmp_path)


def test_runs_that_diverged_are_named(tmp_path):
  a, b, c = folders = [tmp_path / name for name in 'abc']
  for folder in folders:
    progress.record_divergence(folder, {'model': (3, 1)})
  progress.record_divergence(b, {})  # Trained anew.
  progress.record_divergence(c, {'chooser': (5, 4), 'model': (0, -1)})
  with pytest.raises(FloatingPointError) as e:
    progress.raise_if_diverged(folders)
  first, second, third, advice = str(e.value).splitlines()
  assert f'{a}: the loss of the model' in first
  assert 'epoch 3. Epoch 1 was kept' in first
  assert 'epoch 5. Epoch 4 was kept' in second
  assert 'epoch 0. No epoch' in third
  assert '--lr' in advice
  progress.raise_if_diverged([b])
  assert progress.below(tmp_path) == [a, c]


@pytest.fixture
def clock(monkeypatch):
  """The time that tqdm sees."""
  now = [1e6]
  monkeypatch.setattr('tqdm.std.time', lambda: now[0])
  return now


def count(clock, capsys, seconds, **options):
  """Returns what a loop of 100 epochs prints."""
  with progress.bar(total=100, unit='epoch', desc='x', **options) as bar:
    for _ in range(100):
      clock[0] += seconds
      bar.update()
  return capsys.readouterr().err


def test_a_log_has_whole_lines_every_half_minute(clock, capsys):
  out = count(clock, capsys, 1.0)
  assert '\r' not in out and '\x1b' not in out
  lines = out.splitlines()
  assert all(line.startswith('x: ') for line in lines)
  done = [int(line.split()[1].split('/')[0]) for line in lines]
  assert done[0] == 0 and done[-1] == 100
  assert all(30 <= b - a < 61 for a, b in itertools.pairwise(done[:-1]))
  assert len(lines) in (4, 5)
  # A quick loop has two, and none if it may wait, or is another process's.
  assert len(count(clock, capsys, 0.01).splitlines()) == 2
  assert count(clock, capsys, 0.001, delay=0.5) == ''
  assert count(clock, capsys, 1.0, disable=True) == ''
  # One that may wait does not wait for half a minute.
  first, last = count(clock, capsys, 0.2, delay=3.0).splitlines()
  assert '/100 [00:03<' in first and '100/100 [00:' in last
  assert '5.00epoch/s' in first and '5.00epoch/s' in last


def test_a_terminal_has_a_bar(monkeypatch):
  terminal, end = pty.openpty()
  termios.tcsetwinsize(end, (24, 80))
  with os.fdopen(end, 'w') as file:
    monkeypatch.setattr(sys, 'stderr', file)
    loop = progress.bar(range(5), desc='tiles', unit='tile')
    assert list(loop) == [*range(5)]
    file.flush()
    shown = ''  # A terminal may give what was written in parts.
    while '5/5' not in shown and select.select([terminal], [], [], 5)[0]:
      shown += os.read(terminal, 1 << 16).decode()
  os.close(terminal)
  assert '\r' in shown and '100%|' in shown and '5/5' in shown


def test_compiling_is_said_and_has_no_speed(
  tmp_path, capsys, clock, monkeypatch
):
  monkeypatch.setattr(progress.time, 'time', lambda: clock[0])
  shown = Progress([[tmp_path]], {}, 4, name='x')
  clock[0] += 60
  shown.advance(0, 0)  # What feeds the steps may begin before.
  shown.advance(0, 1)
  clock[0] += 2
  shown.advance(1, 1)
  shown.close()
  first, *_, last = capsys.readouterr().err.splitlines()
  assert 'compiling' in first and 'compiling' not in last
  assert '2/4' in last and '[00:02<' in last
