"""A bar on a terminal, whole lines in a log."""

import itertools
import os
import pty
import select
import sys
import termios

import pytest

from experiments.run import progress


@pytest.fixture
def clock(monkeypatch):
  """The time that tqdm sees."""
  now = [1e6]
  monkeypatch.setattr('tqdm.std.time', lambda: now[0])
  return now


def count(clock, seconds, **options):
  with progress.bar(total=100, unit='epoch', **options) as bar:
    for _ in range(100):
      clock[0] += seconds
      bar.update()


def test_a_log_has_whole_lines_every_half_minute(clock, capsys):
  count(clock, 1.0, desc='model')
  out = capsys.readouterr().err
  assert '\r' not in out and '\x1b' not in out
  lines = out.splitlines()
  assert all(line.startswith('model: ') for line in lines)
  done = [int(line.split()[1].split('/')[0]) for line in lines]
  assert done[0] == 0 and done[-1] == 100
  assert all(30 <= b - a < 61 for a, b in itertools.pairwise(done[:-1]))
  assert len(lines) in (4, 5)


def test_a_quick_loop_says_two_lines_and_a_patient_one_none(clock, capsys):
  count(clock, 0.01, desc='quick')
  assert len(capsys.readouterr().err.splitlines()) == 2
  count(clock, 0.001, desc='quick', delay=0.5)
  assert capsys.readouterr().err == ''


def test_what_is_not_the_first_process_says_nothing(clock, capsys):
  count(clock, 1.0, disable=True)
  assert capsys.readouterr().err == ''


def test_a_terminal_has_a_bar(monkeypatch):
  terminal, end = pty.openpty()
  termios.tcsetwinsize(end, (24, 80))
  with os.fdopen(end, 'w') as file:
    monkeypatch.setattr(sys, 'stderr', file)
    assert list(progress.bar(range(5), desc='tiles', unit='tile')) == [
      *range(5)
    ]
    file.flush()
    shown = ''  # A terminal may give what was written in parts.
    while '5/5' not in shown and select.select([terminal], [], [], 5)[0]:
      shown += os.read(terminal, 1 << 16).decode()
  os.close(terminal)
  assert '\r' in shown and '100%|' in shown and '5/5' in shown
