"""--check of an extraction names every slide that cannot be read, and why."""

import shutil

import numpy as np
import pytest
import script_process

from data import features
from experiments.cohort_tiles import TileSpec
from experiments.preflight import slides as preflight

ENCODER = {'encoder': 'e-1'}


@pytest.fixture
def folder(tmp_path, real_data):
  fixtures = real_data / 'wsi/openslide-fixtures'
  for name in ('boxes.tiff', 'unopenable.tiff', 'unreadable.svs'):
    shutil.copy(fixtures / name, tmp_path)
  return tmp_path


def check(folder, capsys, **spec):
  paths = sorted(p for p in folder.iterdir() if p.is_file())
  with pytest.raises(SystemExit) as done:
    preflight.check(paths, str(folder / 'features'), TileSpec(**spec), ENCODER)
  return done.value.code, capsys.readouterr().out.splitlines()


def test_all_unreadable_slides_are_named(folder, capsys):
  code, lines = check(folder, capsys)
  assert code == 1 and lines[-1].startswith('check: 3 problems, ')
  problems = [line for line in lines if line.startswith('problem: ')]
  for name, reason in (
    ('boxes.tiff', 'no usable um/px'),
    ('unopenable.tiff', 'OpenSlide cannot open it'),
    ('unreadable.svs', 'cannot be read'),
  ):
    assert any(name in line and reason in line for line in problems)


def test_a_slide_of_less_than_a_tile_is_found_beforehand(folder, capsys):
  code, lines = check(folder, capsys, default_mpp=0.5)
  assert code == 1
  assert any('boxes.tiff: 300 x 250 px, smaller than' in line for line in lines)


def test_weights_that_lack_do_not_hide_what_slides_lack(folder):
  done = script_process.run(
    'experiments.extract',
    '--check',
    f'--slides_dir={folder}',
    f'--features_dir={folder / "f"}',
    '--weights=no.pth',
  )
  assert done.returncode == 1, done.stderr
  assert 'problem: no.pth' in done.stdout and 'unopenable.tiff' in done.stdout


def test_readable_slides_are_bounded_and_finished_ones_looked_at(
  folder, capsys
):
  for name in ('unopenable.tiff', 'unreadable.svs'):
    (folder / name).unlink()
  # 300 x 250 pixels hold 4 x 3 tiles of 64.
  spec = {'default_mpp': 0.5, 'tile_size': 64}
  code, lines = check(folder, capsys, **spec)
  assert code == 0 and 'at most 12 tiles of 64 px at 0.5 um/px' in lines[0]
  done = folder / 'features/boxes.h5'
  attributes = dict.fromkeys(features.ATTRIBUTES, 1)
  attributes |= TileSpec(**spec).attributes() | ENCODER
  features.write(done, np.ones((3, 4), 'f4'), np.zeros((3, 2)), attributes)
  code, lines = check(folder, capsys, **spec)
  assert code == 0 and '1 have features; at most 0 tiles' in lines[0]
  code, lines = check(folder, capsys, **spec, mpp=0.6)
  assert code == 1 and '1 readable' in lines[0]
  assert 'boxes.h5: mpp is 0.5, not 0.6 as asked' in lines[1]
  features.write(
    done,
    np.ones((3, 4), 'f4'),
    np.zeros((3, 2)),
    attributes | {'encoder': 'e-2', 'slide_sha256': '0'},
  )
  code, lines = check(folder, capsys, **spec)
  assert code == 1 and 'was made of another slide of this name' in lines[1]
  features.write(
    done,
    np.ones((3, 4), 'f4'),
    np.zeros((3, 2)),
    attributes | {'encoder': 'e-2'},
  )
  code, lines = check(folder, capsys, **spec)
  assert code == 1 and "encoder is 'e-2', not 'e-1' as asked" in lines[1]
  done.write_bytes(done.read_bytes()[:500])
  code, lines = check(folder, capsys, **spec)
  assert code == 1 and 'boxes.h5: not a complete HDF5 file' in lines[1]
  code, lines = check(folder, capsys, default_mpp=2.0)
  assert code == 1 and 'would be mostly interpolation' in lines[1]
