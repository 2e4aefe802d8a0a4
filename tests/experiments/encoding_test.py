"""Tiles of many slides go through shared batches and come back in order."""

import dataclasses
import json
import os
import shutil

import numpy as np
from PIL import Image
import pytest

from data import features, slides
from data.phantom import tiff
from experiments import extract as extract_script
from experiments.encoding import extraction, pictures
from experiments.encoding.encoder import Encoder
from experiments.encoding.extraction import EncodingError
from experiments.encoding.tiles import Scale, SlideTiles, Tiles

TILES = Tiles(tile_size=64, tile_mpp=0.5, min_tissue=0, threads=2)
ENCODER = {'encoder': 'e-1'}
STATED = Scale()  # What slides state.
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


def cohort(paths, scale=STATED, **tiles):
  return SlideTiles(paths, dataclasses.replace(TILES, **tiles), scale)


def extract(paths, out, encoder=None, scale=STATED, batch=None, **tiles):
  return extraction.extract(
    cohort(paths, scale, **tiles), out, encoder or make_encoder(), batch=batch
  )


def expected(path):
  with slides.Slide(path) as slide:
    some = cohort([path])
    grid = some.grid(slide)
    tiles = np.concatenate(list(some.read(slide, grid, 64)))
  return make_encoder().encode(tiles), grid.coords


@pytest.mark.parametrize('batch', [1, 4, 13, 64])
def test_every_tile_comes_back_to_its_slide(paths, tmp_path, batch):
  calls, out = [], tmp_path / 'features'
  assert extract(paths, out, make_encoder(calls), batch=batch) == []
  assert calls == [(batch, 64, 64, 3)] * -(-39 // batch)  # One shape only.
  for path in paths:
    name = slides.slide_id(path)
    found = features.read(out / f'{name}.h5')
    want, coords = expected(path)
    assert len(want) == COUNTS[name]
    np.testing.assert_allclose(found.features, want, rtol=1e-6)
    np.testing.assert_array_equal(found.coords, coords)


def test_files_say_how_they_were_made(paths, tmp_path):
  extract(paths, tmp_path, tile_mpp=0.75)
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
  extract(paths, tmp_path)
  damage(paths[0])
  with pytest.raises(EncodingError, match=r'a\.h5: was made of another slide'):
    extract(paths, tmp_path)


def test_pictures_follow_features_and_show_slides_without_tissue(
  paths, tmp_path
):
  glass = paths[0].with_name('glass.tiff')
  tiff.write(glass, np.full((256, 256, 3), 243, np.uint8), mpp=0.5, levels=1)
  assert extract([glass], tmp_path, min_tissue=0.5)
  assert not extract(paths[3:], tmp_path)
  drawn = cohort([paths[3], glass])
  pictures.draw(drawn, tmp_path)
  files = [tmp_path / 'grids' / f'{name}.png' for name in ('d', 'glass')]
  with Image.open(files[1]) as image:
    assert image.size == (256, 256)
  files[0].write_bytes(b'as it was')
  pictures.draw(drawn, tmp_path)
  assert files[0].read_bytes() == b'as it was'
  os.utime(tmp_path / 'd.h5')  # Extracted anew.
  pictures.draw(drawn, tmp_path)
  with Image.open(files[0]) as image:
    assert image.size == (320, 320)


def write_square(path):
  corners = [[64, 64], [192, 64], [192, 192], [64, 192], [64, 64]]
  shape = {'type': 'Polygon', 'coordinates': [corners]}
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps({'type': 'Feature', 'geometry': shape}))


def test_slides_can_be_given_outlines_each(paths, tmp_path):
  regions = tmp_path / 'regions'
  write_square(regions / 'd.geojson')
  assert not extract(paths, tmp_path, regions_dir=regions)
  found = features.read(tmp_path / 'd.h5')
  places = [[64, 64], [128, 64], [64, 128], [128, 128]]
  assert found.coords.tolist() == places
  assert len(features.read(tmp_path / 'b.h5').coords) == COUNTS['b']
  extract(paths, tmp_path, regions_dir=regions)  # As it was.
  write_square(tmp_path / 'others/b.geojson')
  for other in (None, tmp_path / 'others'):
    with pytest.raises(EncodingError, match=': regions is '):
      extract(paths, tmp_path, regions_dir=other)


def scales(tmp_path, rows):
  file = tmp_path / 'scales.csv'
  file.write_text(f'slide_id,mpp\n{rows}')
  return Scale(slide_mpp_csv=file)


def test_slides_can_be_given_a_scale_each(paths, tmp_path, capsys):
  given = scales(tmp_path, 'd,1.0\nx,1.0\n')
  assert not extract(paths, tmp_path, scale=given)
  assert 'scales.csv: no slide files of x' in capsys.readouterr().out
  found = features.read(tmp_path / 'd.h5')
  assert found.attributes['level0_mpp'] == 1
  assert found.attributes['patch_size_level0'] == 32  # 64 px at 0.5 um/px.
  assert features.header(tmp_path / 'b.h5').attributes['level0_mpp'] < 0.6
  # Features of another scale than is meant now are not kept in silence.
  for other in (scales(tmp_path, 'd,0.9\n'), Scale()):
    with pytest.raises(EncodingError, match=r'd\.h5: level0_mpp is 1\.0, not'):
      extract(paths, tmp_path, scale=other)


def test_features_of_another_default_scale_are_refused(tmp_path):
  image = np.full((64, 64, 3), 90, np.uint8)
  tiff.write(tmp_path / 'a.tiff', image, mpp=100.0, levels=1)
  path, out = tmp_path / 'a.tiff', tmp_path / 'features'
  for _ in range(2):
    assert not extract([path], out, scale=Scale(slide_mpp=0.5))
  with pytest.raises(EncodingError, match=r'is 0\.5, not 0\.25'):
    extract([path], out, scale=Scale(slide_mpp=0.25))


def test_a_bad_slide_spoils_no_other(paths, tmp_path):
  damage(paths[1])
  paths[0].write_bytes(b'no slide')
  out = tmp_path / 'features'
  failures = extract(paths, out, batch=4)
  assert [f.slide_id for f in failures] == ['a', 'b']
  assert failures[0].reason.startswith('a.tiff: OpenSlide cannot open it')
  assert failures[1].reason.startswith('b.tiff: ')
  assert 'cannot be read' in failures[1].reason
  assert sorted(p.name for p in out.iterdir()) == ['c.01.h5', 'd.h5']
  np.testing.assert_allclose(
    features.read(out / 'd.h5').features, expected(paths[3])[0], rtol=1e-6
  )


def test_features_that_are_not_finite_are_a_failure(paths, tmp_path):
  bad = Encoder('bad', lambda tiles: tiles.mean((1, 2)) * np.nan)
  (failure,) = extract(paths[:1], tmp_path / 'features', bad)
  assert failure.slide_id == 'a' and 'NaN' in failure.reason
  assert not list((tmp_path / 'features').iterdir())


def test_an_encoder_returns_a_row_of_each_tile(paths, tmp_path):
  for encode in (lambda tiles: tiles, lambda tiles: tiles[:1].mean((1, 2))):
    with pytest.raises(EncodingError, match='a row of each tile'):
      extract(paths, tmp_path, Encoder('odd', encode), batch=4)


def test_slides_are_written_as_they_finish_and_never_again(
  paths, tmp_path, monkeypatch
):
  calls = []

  def encode(tiles):
    if len(calls) == 5:
      raise KeyboardInterrupt
    return make_encoder(calls).encode(tiles)

  with pytest.raises(KeyboardInterrupt):
    stopping = dataclasses.replace(make_encoder(), encode=encode)
    extract(paths, tmp_path, stopping, batch=4)
  first = {p: p.stat().st_mtime_ns for p in tmp_path.glob('*.h5')}
  assert {p.name for p in first} == {'a.h5', 'b.h5', 'c.01.h5'}
  opened, open_slide = [], SlideTiles.open

  def note(self, path):
    opened.append(path)
    return open_slide(self, path)

  monkeypatch.setattr(SlideTiles, 'open', note)
  calls.clear()
  assert not extract(paths, tmp_path, make_encoder(calls), batch=5)
  assert len(calls) == 5  # The 25 tiles of d alone.
  assert opened == paths[3:]
  assert {p: p.stat().st_mtime_ns for p in first} == first
  calls.clear()
  assert not extract(paths, tmp_path, make_encoder(calls))
  assert not calls


def test_files_made_otherwise_are_refused_before_any_work(paths, tmp_path):
  extract(paths[:2], tmp_path)
  (tmp_path / 'c.01.h5').write_bytes(b'half a file')
  calls = []
  other = dataclasses.replace(make_encoder(calls), precision='bfloat16')
  with pytest.raises(EncodingError) as error:
    extract(paths, tmp_path, other, tile_mpp=1.0, augment=True, seed=3)
  lines = str(error.value).splitlines()[1:]
  file = tmp_path / 'a.h5'
  assert lines[:3] == [
    f"{file}: precision is 'float32', not 'bfloat16' as asked",
    f'{file}: mpp is 0.5, not 1.0 as asked',
    f"{file}: augment is 'none', not '3' as asked",
  ]
  assert len(lines) == 7
  assert 'c.01.h5: not a complete HDF5 file' in lines[6]
  assert not calls
  assert not (tmp_path / 'd.h5').exists()


def test_slides_of_one_id_are_refused(paths, tmp_path):
  twin = tmp_path / 'a.svs'
  twin.touch()
  with pytest.raises(EncodingError, match='a: 2 slides have this id'):
    extract([*paths, twin], tmp_path)


def test_augmented_tiles_differ(paths, tmp_path):
  extract(paths[1:2], tmp_path, augment=True)
  found = features.read(tmp_path / 'b.h5')
  assert found.attributes['augment'] == '0'
  assert np.abs(found.features - expected(paths[1])[0]).mean() > 0.01


def test_a_sample_comes_evenly_from_all_slides(paths):
  got = cohort(paths, augment=True).sample()  # As they are.
  want = {slides.slide_id(p): expected(p)[0] for p in paths}
  colours = make_encoder().encode(got)
  from_slide = {
    name: (abs(colours[:, None] - rows).max(-1) < 1e-5).any(1).sum()
    for name, rows in want.items()
  }
  assert from_slide == COUNTS  # 32 were asked of each, which have fewer.
  got = cohort([paths[3]] * 8).sample()
  assert got.shape == (128, 64, 64, 3)
  first = make_encoder().encode(got[:16])
  rows = abs(first[:, None] - want['d']).max(-1).argmin(1)
  assert rows[0] == 0 and rows[-1] == 24
  assert set(np.diff(rows)) == {1, 2}


def test_a_sample_passes_over_bad_slides(paths):
  good = cohort(paths[1:]).sample()
  paths[0].write_bytes(b'no slide')
  got = cohort(paths).sample()
  assert sorted(got.sum((1, 2, 3))) == sorted(good.sum((1, 2, 3)))
  with pytest.raises(slides.SlideError, match=r'a\.tiff'):
    cohort(paths[:1]).sample()


@pytest.fixture
def folder(tmp_path, real_data):
  fixtures = real_data / 'wsi/openslide-fixtures'
  for name in ('boxes.tiff', 'unopenable.tiff', 'unreadable.svs'):
    shutil.copy(fixtures / name, tmp_path)
  return tmp_path


def check(folder, capsys, scale=STATED, **tiles):
  paths = sorted(p for p in folder.iterdir() if p.is_file())
  with pytest.raises(SystemExit) as done:
    extraction.check(
      SlideTiles(paths, Tiles(**tiles), scale), folder / 'features', ENCODER
    )
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
  code, lines = check(folder, capsys, Scale(slide_mpp=0.5))
  assert code == 1
  wanted = 'boxes.tiff: 300 x 250 px are smaller than'
  assert any(wanted in line for line in lines)


def test_weights_that_lack_do_not_hide_what_slides_lack(folder, capsys):
  with pytest.raises(SystemExit, match='1'):
    extract_script.main([
      'extract', '--check', f'--slides_dir={folder}',
      f'--features_dir={folder / "f"}', '--weights=no.pth',
    ])  # fmt: skip
  out = capsys.readouterr().out
  assert 'problem: no.pth' in out and 'unopenable.tiff' in out


def test_readable_slides_are_bounded_and_finished_ones_looked_at(
  folder, capsys
):
  for name in ('unopenable.tiff', 'unreadable.svs'):
    (folder / name).unlink()
  # 300 x 250 pixels hold 4 x 3 tiles of 64.
  scale, small = Scale(slide_mpp=0.5), Tiles(tile_size=64)
  code, lines = check(folder, capsys, scale, tile_size=64)
  assert code == 0 and 'at most 12 tiles of 64 px at 0.5 um/px' in lines[0]
  done = folder / 'features/boxes.h5'
  attributes = dict.fromkeys(features.ATTRIBUTES, 1) | ENCODER
  attributes |= SlideTiles([], small).attributes('boxes')

  def write(**others):
    rows = np.ones((3, 4), 'f4'), np.zeros((3, 2))
    features.write(done, *rows, attributes | others)

  write()
  code, lines = check(folder, capsys, scale, tile_size=64)
  assert code == 0 and '1 have features; at most 0 tiles' in lines[0]
  code, lines = check(folder, capsys, scale, tile_size=64, tile_mpp=0.6)
  assert code == 1 and '1 readable' in lines[0]
  assert 'boxes.h5: mpp is 0.5, not 0.6 as asked' in lines[1]
  write(encoder='e-2', slide_sha256='0')
  code, lines = check(folder, capsys, scale, tile_size=64)
  assert code == 1 and 'was made of another slide of this name' in lines[1]
  write(encoder='e-2')
  code, lines = check(folder, capsys, scale, tile_size=64)
  assert code == 1 and "encoder is 'e-2', not 'e-1' as asked" in lines[1]
  done.write_bytes(done.read_bytes()[:500])
  code, lines = check(folder, capsys, scale, tile_size=64)
  assert code == 1 and 'boxes.h5: not a complete HDF5 file' in lines[1]
  code, lines = check(folder, capsys, Scale(slide_mpp=2.0))
  assert code == 1 and 'times as coarse' in lines[1]
