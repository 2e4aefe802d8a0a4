"""The whole way from a folder of slides to feature files, as a user runs it."""

import csv
import pathlib
import shutil

import numpy as np
import openslide
from PIL import Image
import pytest
import script_process

from data import features, slides
from experiments import extract
from kmil_jax import port
from kmil_jax.models.resnet import ResNet50Trunk

ROOT = pathlib.Path(__file__).parents[2]
WSI = ROOT / '..' / 'shared' / 'data' / 'wsi'
SLIDE = 'CMU-1-Small-Region'

real_slides = pytest.mark.skipif(
  not WSI.is_dir(), reason=f'no real slides at {WSI}'
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
  assert '--weights=\n' in done.stdout
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


@pytest.fixture
def outcome(monkeypatch):
  """A run in this process: what it exits with, and the slides it opened."""

  def run(*arguments):
    opened = []
    init = slides.Slide.__init__

    def recorded(self, path, *args):
      opened.append(slides.slide_id(path))
      init(self, path, *args)

    with monkeypatch.context() as context:
      context.setattr(slides.Slide, '__init__', recorded)
      try:
        extract.main(['extract', *arguments])
        code = 0
      except SystemExit as error:
        code = error.code
    return code, opened

  return run


@real_slides
def test_later_runs_do_what_is_missing_and_refuse_to_mix(extracted, outcome):
  folder, out, _ = extracted
  before = (out / f'{SLIDE}.h5').stat().st_mtime_ns
  where = [f'--slides_dir={folder}', f'--features_dir={out}']
  again = outcome(*where)
  # The good slide is not opened; the bad ones are tried again, and once more
  # for a picture of what is there.
  assert again == (1, 2 * ['damaged', 'truncated', 'unopenable', 'unreadable'])
  code, opened = outcome(*where, '--tile_size=128')
  assert 'patch_size is 256, not 128 as asked' in code
  assert not opened
  # Each slide is looked at, and what cannot be read is a problem.
  code, opened = outcome(*where, '--check')
  assert code == 1
  assert set(opened) == {SLIDE, *again[1]}
  assert (out / f'{SLIDE}.h5').stat().st_mtime_ns == before


def test_requests_that_cannot_be_met_say_why(tmp_path, outcome):
  empty, bad = tmp_path / 'empty', tmp_path / 'bad'
  empty.mkdir()
  bad.mkdir()
  (bad / 'a.svs').write_bytes(b'no slide')
  out = f'--features_dir={tmp_path / "features"}'
  for arguments, message in (
    ([f'--slides_dir={tmp_path / "absent"}'], 'absent: no such folder'),
    ([f'--slides_dir={empty}'], f'error: {empty}: holds no slides'),
    (
      [f'--slides_dir={bad}', '--weights=/absent.pth'],
      'error: /absent.pth: there is no such weights file',
    ),
    ([f'--slides_dir={bad}'], 'a.svs: OpenSlide cannot open it'),
    ([f'--slides_dir={bad}', 'more'], "'more' is not a flag"),
    ([], 'error: --slides_dir is missing: Folder with whole-slide images.'),
  ):
    code, _ = outcome(out, *arguments)
    assert message in code
  assert not (tmp_path / 'features').exists()
