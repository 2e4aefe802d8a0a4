"""What a machine does to a command ends it with a line, never a traceback."""

import errno
import os
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import pytest

from data.labelled_tiles import TileError
from experiments.run import start

ROOT = pathlib.Path(__file__).parents[2]
CACHE = pathlib.Path('/cache')


def chained(error):
  """A fault that another one hides."""
  try:
    raise error
  except BaseException:
    try:
      raise ValueError('a callback failed')
    except ValueError as e:
      return e


@pytest.mark.parametrize(
  ('error', 'code', 'words'),
  [
    (KeyboardInterrupt(), 130, ['stopped', 'same command']),
    (chained(KeyboardInterrupt()), 130, ['stopped']),
    (RuntimeError('INTERNAL: KeyboardInterrupt: <EMPTY>'), 130, ['stopped']),
    (OSError(errno.ENOSPC, 'No space left on device', '/a/b'), 1, ['/a/b:']),
    (chained(OSError(errno.EDQUOT, 'Disk quota exceeded')), 1, ['quota']),
    (
      ValueError('OUT_OF_RANGE: at local file "/a/b": File too large [x=1]'),
      1,
      ['error: /a/b: File too large. Free some space'],
    ),
    (
      chained(RuntimeError('RESOURCE_EXHAUSTED: Out of memory on GPU')),
      1,
      ['the memory of a device is full', '--store=streamed'],
    ),
    (MemoryError('not even one run'), 1, ['memory', 'not even one run']),
    (PermissionError(13, 'no', '/cache/x'), 1, ['/cache/x', '--cache_dir']),
    (FileExistsError(17, 'no', '/a/b'), 1, ['/a/b: there is a file']),
    (
      chained(NotADirectoryError(20, 'no', '/a/b')),
      1,
      ['/a/b: there is a file'],
    ),
    (IsADirectoryError(21, 'no', '/a/b'), 1, ['/a/b: there is a folder']),
    (PermissionError(13, 'no', '/a/b'), 1, ['/a/b: you may not', 'another']),
    (OSError(errno.EROFS, 'no', '/a/b'), 1, ['/a/b: you may not', 'another']),
  ],
)
def test_faults_of_machines_are_a_line(error, code, words):
  found, message = start.fault_of_machine(error, CACHE)
  assert found == code
  assert '\n' not in message
  assert all(word in message for word in words)


def test_a_lost_process_of_a_pod_is_a_line_of_a_pod_alone(monkeypatch):
  error = chained(ValueError('UNKNOWN: Gloo AllGather failed: [pair.cc:547]'))
  assert start.fault_of_machine(error, CACHE) is None
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  code, message = start.fault_of_machine(error, CACHE)
  assert code == 1 and 'same command' in message
  assert start.fault_of_machine(ValueError('x'), CACHE) is None


@pytest.mark.parametrize(
  ('name', 'value'),
  [('JAX_NUM_CPU_DEVICES', 'abc'), ('JAX_ENABLE_X64', 'maybe')],
)
def test_malformed_variables_of_jax_are_named(name, value):
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.froc'],
    cwd=ROOT,
    env=os.environ | {name: value},
    capture_output=True,
    check=False,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
  assert name.lower() in done.stderr.lower()


def test_other_faults_are_no_fault_of_the_machine():
  for error in (ValueError('x'), AssertionError('x'), OSError('x')):
    assert start.fault_of_machine(error, CACHE) is None


def test_errors_of_own_classes_and_those_derived_from_them_are_explained():
  derived = type('OfAPlugin', (TileError,), {})
  explained = TileError('x'), derived('x'), FloatingPointError(), OSError()
  assert all(map(start.is_explained, explained))
  assert not any(map(start.is_explained, (ValueError('x'), KeyError('x'))))


def test_an_absent_accelerator_is_named(monkeypatch):
  def no_devices():
    raise AssertionError

  monkeypatch.setattr(jax, 'local_devices', no_devices)
  code, message = start.fault_of_machine(AssertionError(), CACHE)
  assert code == 1
  assert f'JAX_PLATFORMS={jax.config.jax_platforms}' in message
  monkeypatch.setattr(
    jax, 'config', mock.Mock(jax_platforms=None, jax_platform_name='gpu')
  )
  _, message = start.fault_of_machine(AssertionError(), CACHE)
  assert message.startswith('error: JAX_PLATFORM_NAME=gpu: JAX finds no such')
  assert 'Unset JAX_PLATFORM_NAME and' in message


@pytest.mark.parametrize(
  ('name', 'value'),
  [('jax_enable_x64', True), ('jax_numpy_dtype_promotion', 'strict')],
)
def test_commands_compute_as_ever_whatever_jax_is_set_to(name, value, capsys):
  seen = []

  def run(output: start.Output) -> None:
    seen.append((jax.numpy.zeros(3, float) + jax.numpy.ones(3, int)).dtype)
    raise KeyboardInterrupt

  jax.config.update(name, value)
  with pytest.raises(SystemExit) as ended:
    start.script(run)(['x'])
  assert seen == ['float32']
  assert ended.value.code == 130
  printed = capsys.readouterr()
  assert name.upper() in printed.out
  assert printed.err.startswith('stopped')


# What pip installs as the command kmil_jax.
COMMAND = 'import sys; from experiments.__main__ import main; sys.exit(main())'


@pytest.mark.parametrize(
  'command', [['-m', 'experiments.froc'], ['bin/kmil_jax', 'froc']]
)
def test_a_command_starts_anywhere(tmp_path, command):
  """Beside folders of those names, and where letters are ASCII."""
  for name in ('data', 'experiments'):
    (tmp_path / name / 'features').mkdir(parents=True)
  (tmp_path / 'data/__init__.py').write_text('raise SystemExit(9)')
  (tmp_path / 'bin').mkdir()
  (tmp_path / 'bin/kmil_jax').write_text(COMMAND)
  env = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONUTF8': '0'}
  done = subprocess.run(
    [sys.executable, *command, '--bösartig'],
    cwd=tmp_path,
    env=env | {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0'},
    capture_output=True,
    check=False,
  )
  assert done.returncode == 1
  assert done.stderr.decode().startswith('error: ')
  assert "'bösartig'" in done.stderr.decode()


def test_a_command_needs_no_screen_and_no_output():
  code = 'from experiments.run import start; start.prepare(); print(1)'
  code += '; import matplotlib'
  env = os.environ | {'PYTHONPATH': str(ROOT), 'MPLBACKEND': 'none'}
  done = subprocess.run(
    ['sh', '-c', 'exec "$@" >&-', 'sh', sys.executable, '-c', code],
    env=env,
    stderr=subprocess.PIPE,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, b'')


def test_a_user_without_a_home_is_told_of_cache_dir(monkeypatch):
  def no_home(path):
    raise RuntimeError('no home')

  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setattr(pathlib.Path, 'expanduser', no_home)
  folder = start._cache()
  with pytest.raises(OSError, match='home') as caught:
    folder.mkdir(parents=True)
  _, message = start.fault_of_machine(caught.value, folder)
  assert '--cache_dir' in message
