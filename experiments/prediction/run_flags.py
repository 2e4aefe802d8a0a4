"""Flags that name the models of a results folder."""

import pathlib

from absl import app, flags

RUN = flags.DEFINE_string('run', None, 'Results folder of a training.')
FOLD = flags.DEFINE_string(
  'fold', 'ensemble', 'A fold of --run, from 0, or the ensemble of all.'
)


def run() -> pathlib.Path | None:
  """Returns the folder of --run."""
  return pathlib.Path(RUN.value).expanduser() if RUN.value else None


def fold() -> int | None:
  """Returns the only fold asked for, None for all."""
  if FOLD.value == 'ensemble':
    return None
  if not FOLD.value.isdecimal():
    raise app.UsageError(f"--fold={FOLD.value}: give a number, or 'ensemble'")
  return int(FOLD.value)
