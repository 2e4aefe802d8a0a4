"""Forks the commands of the paper's script, which has imported what they do."""

import os
import runpy
import sys
import traceback
import types

from absl import flags

from experiments.papers import runs


def _run(command, stdout):
  """As `subprocess.run` for `python -m module ...`.

  The command knows the flags of the paper's script, too, but no value of them.
  """
  _, _, module, *args = command
  sys.stdout.flush()
  child = os.fork()
  if child:
    _, status = os.waitpid(child, 0)
    return types.SimpleNamespace(returncode=os.waitstatus_to_exitcode(status))
  status = 1
  try:
    os.dup2(stdout, 1)
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
      flags.FLAGS[name].unparse()
    sys.argv = [module, *args]
    runpy.run_module(module, run_name='__main__', alter_sys=True)
    status = 0
  except SystemExit as end:
    status = int(bool(end.code))
    if isinstance(end.code, str):
      print(end.code, file=sys.stderr)
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


runs.subprocess = types.SimpleNamespace(run=_run)
