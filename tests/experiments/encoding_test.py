"""Tiles of many slides go through shared batches and come back in order."""

import dataclasses
import os

import numpy as np
from PIL import Image
import pytest

from data import features, slides
from data.outlines import Ring
from data.phantom import tiff
from experiments import cohort_tiles, encoding, grid_pictures
from experiments.weights import Encoder

SPEC = cohort_tiles.TileSpec(tile_size=64, mpp=0.5, min_tissue=0)
SIZES = {'a': (64, 192), 'b': (128, 320), 'c.01': (64, 64), 'd': (320, 320)}
COUNTS = {'a': 3, 'b': 10, 'c.01': 1, 'd': 25}


def make_encoder(calls=None) -> Encoder:
  """An encoder that needs no network: each tile's colours."""

  def encode(tiles):
    if calls is not None:
      calls.append(tiles.shape)
    return np.concatenate([tiles.mean((1, 2)), tiles.std((1, 2))], 1)

  return Encoder('colours-0', encode, 'a test')


@pytest.fixture
def paths(tmp_path):
  """Slides of 3, 10, 1 and 25 tiles of different colours."""
  folder = tmp_path / 'slides'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for name, (height, width) in SIZES.items():
    coarse = rng.integers(0, 256, (height // 32, width // 32, 3), np.uint8)
    image = np.kron(coarse, np.ones((32, 32, 1), np.uint8))
    tiff.write(folder / f'{name}.tiff', image, mpp=0.5, levels=1)
  return slides.list_slides(folder)


def damage(path):
  """Ruins the first JPEG tile, so that the slide opens but cannot be read."""
  content = bytearray(path.read_bytes())
  start = content.index(b'\xff\xd8\xff')
  content[start : start + 200] = bytes(200)
  path.write_bytes(content)


def expected(path, spec=SPEC):
  with slides.Slide(path) as slide:
    grid = spec.grid(slide)
    tiles = np.concatenate(list(spec.tiles(slide, grid, 64)))
  return make_encoder().encode(tiles), grid.coords


@pytest.mark.parametrize('batch', [1, 4, 13, 64])
def test_every_tile_comes_back_to_its_slide(paths, tmp_path, batch):
  calls, out = [], tmp_path / 'features'
  failures = encoding.extract(
    paths, out, make_encoder(calls), SPEC, batch=batch
  )
  assert failures == []
  assert calls == [(batch, 64, 64, 3)] * -(-39 // batch)  # One shape only.
  for path in paths:
    name = slides.slide_id(path)
    found = features.read(out / f'{name}.h5')
    want, coords = expected(path)
    assert len(want) == COUNTS[name]
    np.testing.assert_allclose(found.features, want, rtol=1e-6)
    np.testing.assert_array_equal(found.coords, coords)


def test_files_say_how_they_were_made(paths, tmp_path):
  spec = dataclasses.replace(SPEC, mpp=0.75)
  encoding.extract(paths, tmp_path, make_encoder(), spec)
  found = features.read(tmp_path / 'd.h5').attributes
  assert found == {
    'encoder': 'colours-0',
    'encoder_note': 'a test',
    'precision': 'float32',
    'patch_size': 64,
    'patch_size_level0': 96,
    'mpp': 0.75,
    'effective_mpp': 0.75,
    'level0_mpp': pytest.approx(0.5, rel=1e-4),
    'level0_mpp_source': 'openslide',
    'level0_width': 320,
    'level0_height': 320,
    'slide_sha256': slides.digest(tmp_path / 'slides/d.tiff'),
    'overlap': 0,
    'min_tissue': 0.0,
    'augment': 'none',
  }


def test_another_slide_of_the_same_name_is_not_taken_for_the_first(
  paths, tmp_path
):
  encoding.extract(paths, tmp_path, make_encoder(), SPEC)
  damage(paths[0])
  with pytest.raises(
    encoding.EncodingError, match=r'a\.h5: was made of another slide'
  ):
    encoding.extract(paths, tmp_path, make_encoder(), SPEC)


def test_pictures_follow_features_and_show_slides_without_tissue(
  paths, tmp_path
):
  glass = paths[0].with_name('glass.tiff')
  tiff.write(glass, np.full((256, 256, 3), 243, np.uint8), mpp=0.5, levels=1)
  spec = dataclasses.replace(SPEC, min_tissue=0.5)
  assert encoding.extract([glass], tmp_path, make_encoder(), spec)
  assert not encoding.extract(paths[3:], tmp_path, make_encoder(), SPEC)
  drawn = [paths[3], glass]
  grid_pictures.draw(drawn, tmp_path, SPEC)
  pictures = [tmp_path / 'grids' / f'{name}.png' for name in ('d', 'glass')]
  with Image.open(pictures[1]) as image:
    assert image.size == (256, 256)
  pictures[0].write_bytes(b'as it was')
  grid_pictures.draw(drawn, tmp_path, SPEC)
  assert pictures[0].read_bytes() == b'as it was'
  os.utime(tmp_path / 'd.h5')  # Extracted anew.
  grid_pictures.draw(drawn, tmp_path, SPEC)
  with Image.open(pictures[0]) as image:
    assert image.size == (320, 320)


def test_slides_can_be_given_outlines_each(paths, tmp_path):
  square = Ring(np.array([[64, 64], [192, 64], [192, 192], [64, 192]]), False)
  spec = dataclasses.replace(SPEC, regions={'d': [square]})
  assert not encoding.extract(paths, tmp_path, make_encoder(), spec)
  found = features.read(tmp_path / 'd.h5')
  places = [[64, 64], [128, 64], [64, 128], [128, 128]]
  assert found.coords.tolist() == places
  assert len(features.read(tmp_path / 'b.h5').coords) == COUNTS['b']
  encoding.extract(paths, tmp_path, make_encoder(), spec)  # As it was.
  for regions in ({}, {'d': [square, square]}, {'b': [square]}):
    spec = dataclasses.replace(SPEC, regions=regions)
    with pytest.raises(encoding.EncodingError, match=': regions is '):
      encoding.extract(paths, tmp_path, make_encoder(), spec)


def test_slides_can_be_given_a_scale_each(paths, tmp_path):
  spec = dataclasses.replace(SPEC, mpp_of={'d': 1.0})
  assert not encoding.extract(paths, tmp_path, make_encoder(), spec)
  found = features.read(tmp_path / 'd.h5')
  assert found.attributes['level0_mpp'] == 1
  assert found.attributes['patch_size_level0'] == 32  # 64 px at 0.5 um/px.
  assert features.header(tmp_path / 'b.h5').attributes['level0_mpp'] < 0.6
  # Features of another scale than is meant now are not kept in silence.
  for mpp_of in ({'d': 0.9}, {}):
    with pytest.raises(
      encoding.EncodingError, match=r'd\.h5: level0_mpp is 1\.0, not'
    ):
      spec = dataclasses.replace(SPEC, mpp_of=mpp_of)
      encoding.extract(paths, tmp_path, make_encoder(), spec)


def test_features_of_another_default_scale_are_refused(tmp_path):
  image = np.full((64, 64, 3), 90, np.uint8)
  tiff.write(tmp_path / 'a.tiff', image, mpp=100.0, levels=1)
  path, out = tmp_path / 'a.tiff', tmp_path / 'features'
  spec = dataclasses.replace(SPEC, default_mpp=0.5)
  assert not encoding.extract([path], out, make_encoder(), spec)
  assert not encoding.extract([path], out, make_encoder(), spec)
  spec = dataclasses.replace(SPEC, default_mpp=0.25)
  with pytest.raises(encoding.EncodingError, match=r'is 0\.5, not 0\.25'):
    encoding.extract([path], out, make_encoder(), spec)


def test_a_bad_slide_spoils_no_other(paths, tmp_path):
  damage(paths[1])
  paths[0].write_bytes(b'no slide')
  out = tmp_path / 'features'
  failures = encoding.extract(paths, out, make_encoder(), SPEC, batch=4)
  assert [f.slide_id for f in failures] == ['a', 'b']
  assert failures[0].reason.startswith('a.tiff: OpenSlide cannot open it')
  assert failures[1].reason.startswith('b.tiff: ')
  assert 'cannot be read' in failures[1].reason
  assert sorted(p.name for p in out.iterdir()) == ['c.01.h5', 'd.h5']
  np.testing.assert_allclose(
    features.read(out / 'd.h5').features, expected(paths[3])[0], rtol=1e-6
  )


def test_features_that_are_not_finite_are_a_failure(paths, tmp_path):
  bad = dataclasses.replace(
    make_encoder(), encode=lambda tiles: tiles.mean((1, 2)) * np.nan
  )
  failures = encoding.extract(paths[:1], tmp_path / 'features', bad, SPEC)
  assert [f.slide_id for f in failures] == ['a']
  assert 'NaN' in failures[0].reason
  assert not list((tmp_path / 'features').iterdir())


def test_an_encoder_returns_a_row_of_each_tile(paths, tmp_path):
  for encode in (lambda tiles: tiles, lambda tiles: tiles[:1].mean((1, 2))):
    with pytest.raises(encoding.EncodingError, match='a row of each tile'):
      encoding.extract(paths, tmp_path, Encoder('odd', encode), SPEC, batch=4)


def test_slides_are_written_as_they_finish_and_never_again(
  paths, tmp_path, monkeypatch
):
  calls = []

  def encode(tiles):
    if len(calls) == 5:
      raise KeyboardInterrupt
    return make_encoder(calls).encode(tiles)

  stopping = dataclasses.replace(make_encoder(), encode=encode)
  with pytest.raises(KeyboardInterrupt):
    encoding.extract(paths, tmp_path, stopping, SPEC, batch=4)
  first = {p: p.stat().st_mtime_ns for p in tmp_path.glob('*.h5')}
  assert {p.name for p in first} == {'a.h5', 'b.h5', 'c.01.h5'}
  opened, open_slide = [], cohort_tiles.TileSpec.open

  def note(spec, path):
    opened.append(path)
    return open_slide(spec, path)

  monkeypatch.setattr(cohort_tiles.TileSpec, 'open', note)
  calls.clear()
  assert not encoding.extract(
    paths, tmp_path, make_encoder(calls), SPEC, batch=5
  )
  assert len(calls) == 5  # The 25 tiles of d alone.
  assert opened == paths[3:]
  assert {p: p.stat().st_mtime_ns for p in first} == first
  calls.clear()
  assert not encoding.extract(paths, tmp_path, make_encoder(calls), SPEC)
  assert not calls


def test_files_made_otherwise_are_refused_before_any_work(paths, tmp_path):
  encoding.extract(paths[:2], tmp_path, make_encoder(), SPEC)
  (tmp_path / 'c.01.h5').write_bytes(b'half a file')
  calls = []
  other = dataclasses.replace(make_encoder(calls), precision='bfloat16')
  spec = dataclasses.replace(SPEC, mpp=1.0, augment_seed=3)
  with pytest.raises(encoding.EncodingError) as error:
    encoding.extract(paths, tmp_path, other, spec)
  lines = str(error.value).splitlines()[1:]
  assert lines[:3] == [
    f"{tmp_path / 'a.h5'}: precision is 'float32', not 'bfloat16' as asked",
    f'{tmp_path / "a.h5"}: mpp is 0.5, not 1.0 as asked',
    f"{tmp_path / 'a.h5'}: augment is 'none', not '3' as asked",
  ]
  assert len(lines) == 7
  assert 'c.01.h5: not a complete HDF5 file' in lines[6]
  assert not calls
  assert not (tmp_path / 'd.h5').exists()


def test_slides_of_one_id_are_refused(paths, tmp_path):
  twin = tmp_path / 'a.svs'
  twin.touch()
  with pytest.raises(encoding.EncodingError, match='a: 2 slides have this id'):
    encoding.extract([*paths, twin], tmp_path, make_encoder(), SPEC)


def test_augmented_tiles_differ(paths, tmp_path):
  spec = dataclasses.replace(SPEC, augment_seed=0)
  encoding.extract(paths[1:2], tmp_path, make_encoder(), spec)
  found = features.read(tmp_path / 'b.h5')
  assert found.attributes['augment'] == '0'
  assert np.abs(found.features - expected(paths[1])[0]).mean() > 0.01


def test_calibration_tiles_come_evenly_from_all_slides(paths):
  got = cohort_tiles.calibration_tiles(paths, SPEC)
  want = {slides.slide_id(p): expected(p)[0] for p in paths}
  colours = make_encoder().encode(got)
  from_slide = {
    name: (abs(colours[:, None] - rows).max(-1) < 1e-5).any(1).sum()
    for name, rows in want.items()
  }
  assert from_slide == COUNTS  # 32 were asked of each, which have fewer.
  many = [paths[3]] * 8
  got = cohort_tiles.calibration_tiles(many, SPEC)
  assert got.shape == (128, 64, 64, 3)
  first = make_encoder().encode(got[:16])
  rows = abs(first[:, None] - want['d']).max(-1).argmin(1)
  assert rows[0] == 0 and rows[-1] == 24
  assert set(np.diff(rows)) == {1, 2}


def test_calibration_passes_over_bad_slides(paths):
  good = cohort_tiles.calibration_tiles(paths[1:], SPEC)
  paths[0].write_bytes(b'no slide')
  got = cohort_tiles.calibration_tiles(paths, SPEC)
  assert sorted(got.sum((1, 2, 3))) == sorted(good.sum((1, 2, 3)))
  with pytest.raises(slides.SlideError, match=r'a\.tiff'):
    cohort_tiles.calibration_tiles(paths[:1], SPEC)
