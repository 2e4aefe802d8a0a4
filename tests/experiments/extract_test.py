"""The whole way from a folder of slides to feature files, as a user runs it.

Scripts run in processes of their own, as two of them may have a flag in common.
"""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import openslide
from PIL import Image
import pytest
import script_process

from data import features, slides
from kmil_jax import port
from kmil_jax.models.resnet import ResNet50Trunk

ROOT = pathlib.Path(__file__).parents[2]
WSI = ROOT / '..' / 'shared' / 'data' / 'wsi'
SLIDE = 'CMU-1-Small-Region'

real_slides = pytest.mark.skipif(
  not WSI.is_dir(), reason=f'no real slides at {WSI}'
)


def run_python(*arguments):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=os.environ | script_process.ENVIRONMENT,
    capture_output=True,
    encoding='utf-8',
    timeout=300,
  )


@pytest.fixture(scope='module')
def extracted(tmp_path_factory):
  """One good slide among bad ones, extracted by a process of its own."""
  folder = tmp_path_factory.mktemp('slides')
  out = tmp_path_factory.mktemp('out') / 'features'
  good = folder / f'{SLIDE}.svs'
  shutil.copy(WSI / f'{SLIDE}.svs', good)
  for name in ('unopenable.tiff', 'unreadable.svs'):
    shutil.copy(WSI / 'openslide-fixtures' / name, folder)
  content = good.read_bytes()
  (folder / 'truncated.svs').write_bytes(content[: len(content) // 2])
  half = len(content) // 2  # Among the tiles' JPEG data.
  hurt = content[:half] + bytes(60_000) + content[half + 60_000 :]
  (folder / 'damaged.svs').write_bytes(hurt)
  done = script_process.run(
    'experiments.extract', f'--slides_dir={folder}', f'--features_dir={out}'
  )
  return folder, out, done


@real_slides
def test_bad_slides_are_named_with_reasons_and_fail_the_run(extracted):
  _, out, done = extracted
  assert done.returncode == 1, done.stderr
  assert '4 slides have no features:' in done.stdout
  table = done.stdout.split('4 slides have no features:\n')[1].splitlines()
  reasons = dict(line.split(maxsplit=1) for line in table)
  assert set(reasons) == {'damaged', 'truncated', 'unopenable', 'unreadable'}
  for name, reason in reasons.items():
    assert reason.startswith(f'{name}.'), reason
  assert 'damaged' in reasons['damaged'], reasons['damaged']
  assert 'cannot open' in reasons['truncated']
  assert 'cannot open' in reasons['unopenable']
  written = {path.name for path in out.iterdir()}
  assert written == {
    f'{SLIDE}.h5',
    'encoder.safetensors',
    'failures.csv',
    'grids',
  }
  with (out / 'failures.csv').open(newline='', encoding='utf-8') as file:
    told = {row['slide_id']: row['reason'] for row in csv.DictReader(file)}
  assert told == reasons


@real_slides
def test_a_picture_shows_every_tile_of_the_good_slide(extracted):
  folder, out, _ = extracted
  (path,) = (out / 'grids').iterdir()
  assert path.stem == SLIDE
  with Image.open(path) as picture, slides.Slide(folder / f'{SLIDE}.svs') as s:
    pixels = np.asarray(picture).astype(int)
    scale = picture.width / s.width
  for x, y in features.read(out / f'{SLIDE}.h5').coords:
    # The upper edge of the tile is a line in the tiles' blue.
    row = pixels[round(y * scale), round(x * scale) + 2 : round(x * scale) + 10]
    assert (row == (30, 60, 220)).all()


@real_slides
def test_the_run_says_what_it_does(extracted):
  _, _, done = extracted
  assert '--tile_size=256\n' in done.stdout
  assert '--weights=None\n' in done.stdout
  assert 'RANDOM' in done.stdout
  assert 'tiles/s' in done.stdout


@real_slides
def test_features_are_those_of_openslides_own_pixels(extracted):
  folder, out, _ = extracted
  found = features.read(out / f'{SLIDE}.h5')
  assert found.features.shape == (len(found.coords), 1024)
  assert len(found.coords) > 20
  assert np.isfinite(found.features).all()
  assert 0.1 < found.features.std(0).mean() < 3
  assert 'random' in found.attributes['encoder']
  assert 'NOT pretrained' in found.attributes['encoder_note']
  rows = [0, 15, 16, len(found.coords) - 1]  # Of three batches.
  with openslide.OpenSlide(folder / f'{SLIDE}.svs') as slide:
    pixels = [
      np.asarray(slide.read_region(xy, 0, (256, 256)))[..., :3]
      for xy in found.coords[rows].tolist()
    ]
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  tiles = (np.float32(pixels) / 255 - mean) / std
  state = port.load_state_dict(out / 'encoder.safetensors')
  want = ResNet50Trunk().apply(
    port.from_torch('resnet50_trunk', state), tiles.astype(np.float32)
  )
  np.testing.assert_allclose(found.features[rows], want, atol=1e-3)


# Runs main once per list of arguments in one process, and notes the outcome.
_RUNS = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from data import slides
from experiments import extract

init = slides.Slide.__init__

def recorded(self, path, *args):
  opened.append(slides.slide_id(path))
  init(self, path, *args)

slides.Slide.__init__ = recorded
outcomes = []
for arguments in json.loads(sys.argv[1]):
  opened = []
  with flagsaver.flagsaver():
    try:
      extract.main(flags.FLAGS(['extract', *arguments]))
      code = 0
    except BaseException as error:
      code = getattr(error, 'code', str(error))
  outcomes.append([code, opened])
print(json.dumps(outcomes))
"""


def outcomes(*runs):
  """Returns what each run exits with, and the slides it opened."""
  done = run_python('-c', _RUNS, json.dumps(runs))
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@real_slides
def test_later_runs_do_what_is_missing_and_refuse_to_mix(extracted):
  folder, out, _ = extracted
  before = (out / f'{SLIDE}.h5').stat().st_mtime_ns
  where = [f'--slides_dir={folder}', f'--features_dir={out}']
  again, other, check = outcomes(
    where, [*where, '--tile_size=128'], [*where, '--check']
  )
  # The good slide is not opened; the bad ones are tried again, and once more
  # for a picture of what is there.
  assert again == [1, 2 * ['damaged', 'truncated', 'unopenable', 'unreadable']]
  code, opened = other
  assert 'patch_size is 256, not 128 as asked' in code
  assert not opened
  # Each slide is looked at, and what cannot be read is a problem.
  assert check[0] == 1
  assert set(check[1]) == {SLIDE, *again[1]}
  assert (out / f'{SLIDE}.h5').stat().st_mtime_ns == before


def test_requests_that_cannot_be_met_say_why(tmp_path):
  empty, bad = tmp_path / 'empty', tmp_path / 'bad'
  empty.mkdir()
  bad.mkdir()
  (bad / 'a.svs').write_bytes(b'no slide')
  out = f'--features_dir={tmp_path / "features"}'
  codes = [
    code
    for code, _ in outcomes(
      [f'--slides_dir={tmp_path / "absent"}', out],
      [f'--slides_dir={empty}', out],
      [f'--slides_dir={bad}', out, '--weights=/absent.pth'],
      [f'--slides_dir={bad}', out],
      [f'--slides_dir={bad}', out, 'more'],
    )
  ]
  assert 'absent: no such folder' in codes[0]
  assert codes[1] == f'ERROR: {empty}: holds no slides'
  assert codes[2] == 'ERROR: /absent.pth: there is no such weights file'
  assert 'a.svs: OpenSlide cannot open it' in codes[3]
  assert codes[4] == 'unknown arguments: more'
  assert not (tmp_path / 'features').exists()
