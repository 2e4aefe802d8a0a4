"""The flag --run, which scripts that read a results folder share."""

import pathlib

from absl import app, flags

RUN = flags.DEFINE_string(
  'run', None, 'Results folder of a run, like results/kmil_origin_s2023.'
)


def folder() -> pathlib.Path:
  """Returns the folder of --run.

  Raises:
    app.UsageError: if it is not given or not there.
  """
  if not RUN.value:
    raise app.UsageError('--run=<results folder> is needed')
  path = pathlib.Path(RUN.value).expanduser()
  if not path.is_dir():
    raise app.UsageError(f'--run={RUN.value}: no such folder')
  return path
