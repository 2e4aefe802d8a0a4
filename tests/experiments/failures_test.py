"""Failures of machines: locks, forks, open files, writers, the accelerator.

Public issue trackers of pathology toolkits report these again and again. Those
of slides, features and cohorts are tested where the module is that meets them.
"""

import fcntl
import importlib
import os
import pathlib
import re
import threading

import h5py
import numpy as np
import pytest

from data import features, host_tensorflow, slides
from data.features import ATTRIBUTES

ROOT = pathlib.Path(__file__).parents[2]
ATTRS = dict.fromkeys(ATTRIBUTES, 1)


def write(path, rows=3, value=1):
  features.write(
    path, np.full((rows, 4), value, np.float32), np.zeros((rows, 2)), ATTRS
  )


def test_a_locked_file_is_read(tmp_path):
  """Disks of clusters refuse locks; a reader of ours asks for none."""
  path = tmp_path / 'a.h5'
  write(path)
  with path.open('rb') as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(OSError, match='lock'):
      h5py.File(path, 'r', locking=True)
    assert features.read(path).features.shape == (3, 4)


def test_closed_slides_leave_no_files_open(real_data):
  path = real_data / 'wsi/openslide-fixtures/boxes.tiff'
  opened = lambda: len(os.listdir('/proc/self/fd'))
  before = opened()
  for _ in range(20):
    with slides.Slide(path, default_mpp=0.5) as slide:
      slide.read(0, 0, 0, 8, 8)
    with pytest.raises(slides.SlideError):
      slides.Slide(path)  # It has no scale.
  assert opened() == before


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
  path = tmp_path / 'a.h5'
  threads = [
    threading.Thread(target=write, args=(path, 500, i)) for i in range(8)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert list(tmp_path.iterdir()) == [path]
  assert len(np.unique(features.read(path).features)) == 1


@pytest.mark.parametrize(
  'pattern,allowed',
  [
    # Threads read slides; JAX and OpenSlide do not survive a fork.
    (
      r'(?<!\.)\bmultiprocessing\b|\bos\.fork\b|ProcessPoolExecutor|\bjoblib\b',
      [],
    ),
    # It hides accelerators before anything can take them.
    (r'(?m)^ *(import|from) tensorflow\b', ['data/host_tensorflow.py']),
  ],
)
def test_no_process_is_forked_and_one_module_loads_tensorflow(pattern, allowed):
  found = [
    path.relative_to(ROOT).as_posix()
    for package in ('data', 'experiments', 'kmil_jax')
    for path in (ROOT / package).rglob('*.py')
    if re.search(pattern, path.read_text(encoding='utf-8'))
  ]
  assert found == allowed


def test_tensorflow_leaves_accelerators_alone(monkeypatch):
  hidden = []
  config = host_tensorflow.tf.config
  monkeypatch.setattr(
    config, 'set_visible_devices', lambda *args: hidden.append(args)
  )
  importlib.reload(host_tensorflow)
  assert hidden == [([], 'GPU')]
  assert 'TF_USE_LEGACY_KERAS' not in os.environ  # tf.keras is as it was.
