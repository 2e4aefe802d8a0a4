"""Flags that name the models of a results folder."""

import pathlib

from absl import app, flags

from experiments import run_flag
from experiments.run_flag import RUN as RUN

FOLD = flags.DEFINE_string(
  'fold', 'ensemble', 'A fold of --run, from 0, or the ensemble of all.'
)
flags.declare_key_flag('run')


def run() -> pathlib.Path | None:
  """Returns the folder of --run, None if it is not given.

  Raises:
    app.UsageError: if there is no such folder.
  """
  return run_flag.folder() if RUN.value else None


def fold() -> int | None:
  """Returns the only fold asked for, None for all."""
  if FOLD.value == 'ensemble':
    return None
  if not FOLD.value.isdecimal():
    raise app.UsageError(f"--fold={FOLD.value}: give a number, or 'ensemble'")
  return int(FOLD.value)
