"""Scripts in processes of their own, forked from one that has imported JAX.

Importing what scripts import takes seconds; the server of forks does it once.
"""

import builtins
import gc
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import tomllib
import warnings

import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
# Scripts encode and train for longer than they compile.
ENVIRONMENT = {
  'JAX_NUM_CPU_DEVICES': '1',
  'XLA_FLAGS': '--xla_backend_optimization_level=1',
}
# Statements for scripts that compile for longer than they run.
HASTY = f"import os; os.environ['XLA_FLAGS'] = {xla_flags.HASTY!r}\n"
# Not of experiments, which read the environment.
_PRELOADED = (
  'absl.app',
  'chex',
  'data.host_tensorflow',
  'flax.linen',
  'h5py',
  'jax',
  'kmil_jax.folds',
  'matplotlib.figure',
  'openslide',
  'optax',
  'orbax.checkpoint',
  'scipy.ndimage',
  'sklearn.metrics',
)
_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(list(_PRELOADED))


def _fail_where_tests_do():
  """Makes those warnings errors that are errors in tests."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))
  for rule in project['tool']['pytest']['ini_options']['filterwarnings']:
    action, message, kind, module = rule.split(':')
    warnings.filterwarnings(action, message, getattr(builtins, kind), module)


def _run(module, args, before, cwd, out, err):
  """In the new process: runs `python -m <module> <args>` after `before`."""
  for stream, log in ((1, out), (2, err)):
    with open(log, 'ab', 0) as file:
      os.dup2(file.fileno(), stream)
  os.chdir(cwd)
  # As in conftest; what the server has imported is no garbage.
  gc.freeze()
  gc.set_threshold(200_000, 50, 1000)
  os.fsync = lambda file: None  # A kill leaves what the system holds.
  _fail_where_tests_do()
  sys.path.insert(0, str(ROOT))
  sys.argv = [module, *args]
  exec(before, {})
  runpy.run_module(module, run_name='__main__', alter_sys=True)


class Script:
  """A running script, with the methods of a `subprocess.Popen`.

  Args:
    module: as for `python -m`.
    args: of the command line.
    before: statements to run before it.
    cwd: the folder it runs in.
    merge: both streams go to the first.
  """

  def __init__(self, module, args, *, before='pass', cwd=ROOT, merge=True):
    self._folder = tempfile.TemporaryDirectory()
    out = pathlib.Path(self._folder.name, 'out')
    self._logs = out, out if merge else out.with_name('err')
    args = [str(arg) for arg in args]
    self._process = _CONTEXT.Process(
      target=_run, args=(module, args, before, str(cwd), *self._logs)
    )
    # The server of forks takes the environment of its start.
    outside = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
      self._process.start()
    finally:
      os.environ.clear()
      os.environ.update(outside)

  @property
  def returncode(self):
    return self._process.exitcode

  def poll(self):
    return self._process.exitcode

  def send_signal(self, number):
    if self._process.is_alive():
      os.kill(self._process.pid, number)

  def kill(self):
    self._process.kill()

  def printed(self):
    """Returns what it has printed so far."""
    out, _ = self._logs
    return out.read_text(encoding='utf-8') if out.exists() else ''

  def communicate(self, timeout=900):
    """Waits for its end; returns what it printed on either stream."""
    self._process.join(timeout)
    if self._process.exitcode is None:
      self.kill()
      raise subprocess.TimeoutExpired(str(self._process), timeout)
    out, err = (
      log.read_text(encoding='utf-8') if log.exists() else ''
      for log in self._logs
    )
    return out, err


def run(module, *args, **kwargs):
  """Runs a script to its end."""
  script = Script(module, args, merge=False, **kwargs)
  out, err = script.communicate()
  return subprocess.CompletedProcess(args, script.returncode, out, err)
