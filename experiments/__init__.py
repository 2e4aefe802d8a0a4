"""Commands. Their `data` is the one beside them, whatever folder is current."""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import data as data

del sys.path[0]

if sys.argv[:1] == ['-m'] and (
  signal.getsignal(signal.SIGINT) is signal.default_int_handler
):  # Importing takes seconds, in which Ctrl-C has nothing to save.
  signal.signal(signal.SIGINT, lambda *_: os._exit(130))

try:
  import jax as jax
except ValueError as e:  # It reads its variables as it is imported.
  sys.exit(f'error: {e}. Correct or unset that environment variable.')
