"""Commands in processes forked from one that has imported JAX.

Importing takes seconds, of which the suite has few. Only packages of others are
imported before the fork: nothing of the project, whose modules may move.
"""

import multiprocessing
import os
import pathlib
import runpy
import sys
import tempfile

from golden_runner import Done

_PRELOADED = (
  'absl.app',
  'chex',
  'flax.linen',
  'h5py',
  'jax',
  'matplotlib.figure',
  'optax',
  'orbax.checkpoint',
  'scipy.ndimage',
  'sklearn.metrics',
)
_LIMIT = 300  # Seconds that a command may take.
_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(list(_PRELOADED))


def _run(module, args, folder, variables, out, err):
  """In the new process: becomes `python -m <module> <args>`."""
  for stream, log in ((1, out), (2, err)):
    with open(log, 'ab', 0) as file:
      os.dup2(file.fileno(), stream)
  os.environ.clear()
  os.environ.update(variables)
  os.chdir(folder)
  sys.path[:0] = [folder, variables['PYTHONPATH']]
  sys.argv = [module, *args]
  runpy.run_module(module, run_name='__main__', alter_sys=True)


def call(module, args, folder, variables) -> Done:
  """Runs `python -m <module> <args>` to its end; see `golden_runner.call`."""
  with tempfile.TemporaryDirectory() as logs:
    out, err = pathlib.Path(logs, 'out'), pathlib.Path(logs, 'err')
    process = _CONTEXT.Process(
      target=_run,
      args=(module, args, str(folder), variables, str(out), str(err)),
    )
    # The server of forks takes the environment of its start.
    outside = dict(os.environ)
    os.environ.update(variables)
    try:
      process.start()
    finally:
      os.environ.clear()
      os.environ.update(outside)
    process.join(_LIMIT)
    if process.exitcode is None:
      process.kill()
      process.join()
    said = [
      log.read_text(encoding='utf-8', errors='replace') if log.exists() else ''
      for log in (out, err)
    ]
    return Done(process.exitcode, *said)
