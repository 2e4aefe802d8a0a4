"""How many files of the library a training runs through to its first update."""

import pathlib
import sys
import threading

import feature_folder
import pytest

from experiments import kmil
import kmil_jax

MOST_FILES = 16
ROOT = pathlib.Path(kmil_jax.__file__).parent


class FirstUpdateError(Exception):
  """Ends the training when the updates of its first epoch are done."""


def test_few_files_run_before_the_first_update(tmp_path):
  called = set()

  def note(frame, event, _):
    if event == 'call':
      called.add(frame.f_code.co_filename)
    if event == 'return' and frame.f_code.co_qualname == 'Program.train':
      raise FirstUpdateError

  args = feature_folder.write(tmp_path, *feature_folder.planted(12, width=4))
  args += ['--k=3', '--fold=1', f'--results_dir={tmp_path}']
  threading.setprofile(note)
  sys.setprofile(note)
  try:
    with pytest.raises(FirstUpdateError):
      kmil.main(['kmil', *args])
  finally:
    sys.setprofile(None)
    threading.setprofile(None)
  paths = [pathlib.PurePath(name) for name in called]
  ours = {p.relative_to(ROOT).as_posix() for p in paths if ROOT in p.parents}
  assert {'folds.py', 'models/abmil.py', 'train.py'} <= ours
  assert len(ours) <= MOST_FILES, '\n'.join(sorted(ours))
