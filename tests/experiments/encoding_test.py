"""Tiles of many slides go through shared batches and come back in order."""

import csv
import dataclasses
import json
import os
import shutil
import threading
import time
import warnings

import jax
import next_command
import numpy as np
import openslide
from PIL import Image
import pytest
import small_slides

from data import features, slides, tiff, tiling
from experiments import extract as extract_script
from experiments.encoding import extraction
from experiments.encoding.encoder import Encoder
from experiments.encoding.extraction import EncodingError
from experiments.encoding.tiles import Scale, SlideTiles, Tiles
from kmil_jax import augment

TILES = Tiles(tile_size=64, tile_mpp=0.5, min_tissue=0, threads=2)
STATED = Scale()  # What slides state.
SIZES = {'a': (64, 192), 'b': (128, 320), 'c.01': (64, 64), 'd': (320, 320)}
COUNTS = {'a': 3, 'b': 10, 'c.01': 1, 'd': 25}


@pytest.fixture
def paths(tmp_path):
  """Slides of 3, 10, 1 and 25 tiles of different colours."""
  return small_slides.write(tmp_path / 'slides', SIZES)


def damage(path):
  """Ruins the first JPEG tile, so that the slide opens but cannot be read."""
  content = bytearray(path.read_bytes())
  start = content.index(b'\xff\xd8\xff')
  content[start : start + 200] = bytes(200)
  path.write_bytes(content)


def cohort(paths, scale=STATED, **tiles):
  return SlideTiles(paths, dataclasses.replace(TILES, **tiles), scale)


def extract(paths, out, encoder=None, scale=STATED, batch=None, **tiles):
  encoder = encoder or small_slides.encoder()
  return extraction.extract(
    cohort(paths, scale, **tiles), out, encoder, batch=batch
  )


def expected(path):
  with slides.Slide(path) as slide:
    some = cohort([path])
    grid = some.grid(slide)
    tiles = np.stack(list(some.read(slide, grid)))
  return small_slides.encoder().encode(tiles), grid.coords


@pytest.mark.parametrize('batch', [1, 13, 64])
def test_every_tile_comes_back_to_its_slide(paths, tmp_path, batch):
  calls, out = [], tmp_path / 'features'
  assert not extract(paths, out, small_slides.encoder(calls), batch=batch)
  assert calls == [(batch, 64, 64, 3)] * -(-39 // batch)  # One shape only.
  for path in paths:
    name = slides.slide_id(path)
    found = features.read(out / f'{name}.h5')
    want, coords = expected(path)
    assert len(want) == COUNTS[name]
    np.testing.assert_allclose(found.features, want, rtol=1e-6)
    np.testing.assert_array_equal(found.coords, coords)
    assert 'normalisation' not in found.attributes  # Of a function, unknown.


def write_square(path):
  corners = [[64, 64], [192, 64], [192, 192], [64, 192], [64, 64]]
  shape = {'type': 'Polygon', 'coordinates': [corners]}
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps({'type': 'Feature', 'geometry': shape}))


def test_slides_can_be_given_outlines_each(paths, tmp_path):
  regions = tmp_path / 'regions'
  write_square(regions / 'd.geojson')
  assert not extract(paths, tmp_path, regions_dir=regions)
  # As files of older versions are, for which tissue inside did not matter.
  kept = features.header(tmp_path / 'd.h5').attributes['regions']
  assert len(kept) == 16
  found = features.read(tmp_path / 'd.h5')
  places = [[64, 64], [128, 64], [64, 128], [128, 128]]
  assert found.coords.tolist() == places
  assert len(features.read(tmp_path / 'b.h5').coords) == COUNTS['b']
  extract(paths, tmp_path, regions_dir=regions)  # As it was.
  write_square(tmp_path / 'others/b.geojson')
  for other in (None, tmp_path / 'others'):
    with pytest.raises(EncodingError, match=': regions is '):
      extract(paths, tmp_path, regions_dir=other)


def test_features_tell_the_two_meanings_of_outlines_apart(tmp_path):
  paths = [tmp_path / 'slides/a.tiff']
  image = np.full((192, 640, 3), 243, np.uint8)
  image[:, :128] = (200, 110, 170)
  paths[0].parent.mkdir()
  tiff.write(paths[0], image, mpp=0.5, levels=1)
  write_square(tmp_path / 'regions/a.geojson')  # From 64 to 192.
  flags = {'regions_dir': tmp_path / 'regions', 'min_tissue': 0.5}
  kept = {}
  for only in (True, False):
    out = tmp_path / f'{only}'
    assert not extract(paths, out, regions_only=only, **flags)
    found = features.read(out / 'a.h5')
    kept[only] = found.attributes['regions']
    assert set(found.coords[:, 0]) == ({64, 128} if only else {64})
    with pytest.raises(EncodingError, match=r'a\.h5: regions is '):
      extract(paths, out, regions_only=not only, **flags)
    extract(paths, out, regions_only=only, **flags)
  assert kept[False] == f'tissue in {kept[True]}' and len(kept[True]) == 16
  # Of tiles that need no tissue there is one meaning, as of old.
  flags['min_tissue'] = 0
  assert cohort(paths, **flags).attributes('a')['regions'] == kept[True]


def test_what_is_tissue_can_be_told_for_all_slides_and_for_one(tmp_path):
  """Glass, pale from 320 on, dark from 480."""
  image = np.full((320, 640, 3), 243, np.uint8)
  image[:, 320:480], image[:, 480:] = (232, 222, 230), (200, 110, 170)
  paths = [tmp_path / 'slides/b.tiff', tmp_path / 'slides/d.tiff']
  paths[0].parent.mkdir()
  for path in paths:
    tiff.write(path, image, mpp=0.5, levels=1)
  table, out = tmp_path / 'tissue.csv', tmp_path / 'features'
  table.write_text('slide_id,saturation,min_piece_mm2,max_hole_mm2\nd,0.2,,\n')
  flags = {'min_tissue': 0.5, 'saturation': 0.02, 'min_piece_mm2': 0.0}
  assert not extract(paths, out, tissue_csv=table, **flags)
  for name, own, left in (('b', None, 320), ('d', '(0.2, 0.0, 0.01)', 448)):
    found = features.read(out / f'{name}.h5')
    assert found.coords[:, 0].min() == left
    attributes = found.attributes
    assert (attributes['saturation'], attributes['min_piece_mm2']) == (0.02, 0)
    assert 'max_hole_mm2' not in attributes  # As in files made before.
    assert attributes.get('tissue_csv') == own
  with pytest.raises(EncodingError) as error:
    extract(paths, out, min_tissue=0.5)
  lines = str(error.value)
  assert 'b.h5: saturation is 0.02, not None as asked' in lines
  assert 'd.h5: tissue_csv is' in lines and 'b.h5: tissue_csv' not in lines
  table.write_text('slide_id,saturation,min_piece_mm2,max_hole_mm2\nx,-1,,\n')
  with pytest.raises(slides.SlideError, match="row 2: saturation '-1', not 0"):
    cohort(paths, tissue_csv=table)
  table.write_text(table.read_text().replace('-1', '1'))
  assert 'no slide files of x' in cohort(paths, tissue_csv=table).warnings[0]


def blur_half(paths):
  """Of slide d all tiles but those of the left column are even."""
  image = np.full((320, 320, 3), 120, np.uint8)
  image[::2, :64] = 160
  tiff.write(paths[3], image, mpp=0.5, levels=1, quality=98)


def test_blurred_tiles_are_left_out_if_asked(paths, tmp_path, capsys):
  blur_half(paths)
  assert not extract(paths[3:], tmp_path / 'all')
  assert len(features.read(tmp_path / 'all/d.h5').coords) == 25
  assert not extract(paths[3:], tmp_path / 'sharp', min_focus=100)
  found = features.read(tmp_path / 'sharp/d.h5')
  assert found.coords.tolist() == [[0, y] for y in range(0, 320, 64)]
  assert found.attributes['min_focus'] == 100
  with pytest.raises(EncodingError, match=r'd\.h5: min_focus is None'):
    extract(paths[3:], tmp_path / 'all', min_focus=100)
  failures = extract(paths[3:], tmp_path / 'none', min_focus=1e6)
  assert 'd.tiff: all tiles are blurred, of ' in failures['d']
  capsys.readouterr()
  for path in paths[:3]:
    path.unlink()
  flags = '--min_tissue=0', '--min_focus=100'
  sheets = preview(paths[3].parent, tmp_path / 'features', *flags)
  assert '; blurred and left out: 20' in capsys.readouterr().out
  sheet = sheets['d']
  grey = (sheet[:320, 66:320] == (130, 130, 130)).all(2)
  assert (
    grey[:, ::63].any()
    and not (sheet[:320, :20] == (130, 130, 130)).all(2).any()
  )
  # Below the slide five that are taken, and below these some that are not.
  assert np.ptp(sheet[338:398, 2:60]) > 30 and np.ptp(sheet[426:486, 2:60]) < 9


def test_tiles_are_drawn_where_they_lie_on_a_narrow_slide(tmp_path):
  image = np.full((4096, 71, 3), 200, np.uint8)
  tiff.write(tmp_path / 'slides/a.tiff', image, mpp=0.5, levels=1)
  run(tmp_path / 'slides', tmp_path / 'features', '--min_tissue=0')
  picture = Image.open(tmp_path / 'features/grids/a.png')
  assert picture.size == (17, 1000)
  blue = (np.asarray(picture)[:, 8] == (30, 60, 220)).all(1)
  edges = np.arange(0, 4096, 64) * 1000 / 4096
  assert blue[edges.round().astype(int)].all()


def test_shapes_beside_the_pictures_are_the_tissue_and_the_tiles(tmp_path):
  folder, out = tmp_path / 'slides', tmp_path / 'features'
  folder.mkdir()
  image = np.full((320, 448, 3), 243, np.uint8)
  image[:, 128:320] = (200, 110, 170)
  tiff.write(folder / 'a.tiff', image, mpp=0.5, levels=1)
  run(folder, out)
  coords = features.read(out / 'a.h5').coords
  shapes = json.loads((out / 'grids/a.geojson').read_text())['features']
  corners = [np.array(s['geometry']['coordinates'][0]) for s in shapes]
  assert [c.min(0).tolist() for c in corners] == coords.tolist()
  assert {(*np.ptp(c, 0), len(c)) for c in corners} == {(64, 64, 5)}
  assert {s['properties']['objectType'] for s in shapes} == {'detection'}
  # The tissue given back is the tissue that was found.
  flags = f'--regions_dir={out}/grids/tissue', '--regions_only'
  run(folder, tmp_path / 'again', *flags)
  again = features.read(tmp_path / 'again/a.h5')
  assert again.coords.tolist() == coords.tolist()


def test_files_of_one_content_are_named(paths, capsys):
  assert not cohort(paths).warnings
  assert not cohort([*paths, paths[0]]).warnings
  shutil.copy(paths[0], paths[0].with_name('e.tiff'))
  paths[1].unlink()
  paths[1].symlink_to('absent')
  with pytest.raises(SystemExit, match='1'):
    run(paths[0].parent, paths[0].parent / 'out', '--check')
  out = capsys.readouterr().out
  assert 'warning: a.tiff and e.tiff are the same slide.' in out
  assert out.count('the same slide') == 1


def test_a_magnification_is_a_scale(paths):
  for flags, mpp, said in (
    ({'tile_mpp': None}, 0.5, '0.5 um/px (20x)'),
    ({'tile_mpp': None, 'magnification': 40}, 0.25, '0.25 um/px (40x)'),
    ({'tile_mpp': 0.333, 'magnification': 30}, 0.333, '0.333 um/px (30x)'),
  ):
    some = cohort(paths, **flags)
    assert some.attributes('a')['mpp'] == mpp and said in some.summary


def scales(tmp_path, rows):
  file = tmp_path / 'scales.csv'
  file.write_text(f'slide_id,mpp\n{rows}')
  return Scale(slide_mpp_csv=file)


def test_slides_can_be_given_a_scale_each(paths, tmp_path, capsys):
  image = np.full((64, 64, 3), 90, np.uint8)
  tiff.write(tmp_path / 'slides/e.tiff', image, mpp=100.0, levels=1)
  paths.append(tmp_path / 'slides/e.tiff')
  given = dataclasses.replace(scales(tmp_path, 'd,1.0\nx,1.0\n'), slide_mpp=0.5)
  for _ in range(2):
    assert not extract(paths, tmp_path, scale=given)
  assert 'scales.csv: no slide files of x' in capsys.readouterr().out
  found = features.read(tmp_path / 'd.h5')
  assert found.attributes['level0_mpp'] == 1
  assert found.attributes['patch_size_level0'] == 32  # 64 px at 0.5 um/px.
  assert features.header(tmp_path / 'b.h5').attributes['level0_mpp'] < 0.6
  # Features of another scale than is meant now are not kept in silence.
  for other, message in (
    (scales(tmp_path, 'd,0.9\n'), r'd\.h5: level0_mpp is 1\.0, not 0\.9'),
    (STATED, r'd\.h5: level0_mpp is 1\.0, not None'),
    (Scale(slide_mpp=0.25), r'e\.h5: level0_mpp is 0\.5, not 0\.25'),
  ):
    with pytest.raises(EncodingError, match=message):
      extract(paths, tmp_path, scale=other)


def run(folder, out, *flags):
  """Runs the script with the colours of tiles for features."""
  extract_script.main([
    'extract', '--weights=small_slides:colours', '--tile_size=64',
    f'--slides_dir={folder}', f'--features_dir={out}', *flags,
  ])  # fmt: skip


def test_a_bad_slide_spoils_no_other(paths, tmp_path, capsys):
  out = tmp_path / 'features'
  damage(paths[1])
  paths[0].write_bytes(b'no slide')
  with pytest.raises(SystemExit, match='1'):
    run(paths[0].parent, out, '--min_tissue=0', '--batch_size=4')
  printed, shown = capsys.readouterr()
  script, flags = next_command.read(shown)
  assert script == 'kmil' and '--allow_missing=True' in flags
  assert 'slides 0/4: 0/? [' in shown
  for words in ('--tile_size=64 ', 'encoder small_slides:colours', 'tiles/s'):
    assert words in printed
  table = printed.split('2 slides without features:\n')[1].splitlines()
  reasons = dict(line.split(maxsplit=1) for line in table)
  assert reasons['a'].startswith('a.tiff: OpenSlide cannot open it')
  assert reasons['b'].startswith('b.tiff: ')
  assert 'cannot be read' in reasons['b']
  with (out / 'failures.csv').open(newline='', encoding='utf-8') as file:
    assert {r['slide_id']: r['reason'] for r in csv.DictReader(file)} == reasons
  names = {'c.01.h5', 'd.h5', 'failures.csv', 'grids'}
  assert {path.name for path in out.iterdir()} == names
  np.testing.assert_allclose(
    features.read(out / 'd.h5').features, expected(paths[3])[0], rtol=1e-6
  )


def test_the_tiles_are_the_pixels_of_openslide(tmp_path, real_data):
  folder, out = tmp_path / 'slides', tmp_path / 'features'
  folder.mkdir()
  shutil.copy(real_data / 'wsi/CMU-1-Small-Region.svs', folder)
  (path,) = folder.iterdir()
  run(folder, out)
  found = features.read(out / f'{path.stem}.h5')
  side = found.attributes['patch_size_level0']
  assert len(found.coords) > 100 and side == 64
  with openslide.OpenSlide(path) as slide:
    size = slide.dimensions
    pixels = [
      np.asarray(slide.read_region(xy, 0, (side, side)))[..., :3]
      for xy in found.coords[:100].tolist()
    ]
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  want = small_slides.colours((np.float32(pixels) / 255 - mean) / std)
  np.testing.assert_allclose(found.features[:100], want, atol=1e-4)
  picture = np.asarray(Image.open(out / f'grids/{path.stem}.png'))
  for x, y in found.coords * np.divide(picture.shape[1::-1], size):
    # The upper edge of the tile is a line in the tiles' blue.
    row = picture[round(y), round(x) + 2 : round(x) + 8]
    assert (row == (30, 60, 220)).all()


def test_slides_that_are_folders_and_one_without_a_scale(tmp_path, real_data):
  """MIRAX is a file and a folder, DICOM a folder of files."""
  folder, out = tmp_path / 'slides', tmp_path / 'features'
  (folder / 'case.1').mkdir(parents=True)
  fixtures = real_data / 'wsi/openslide-fixtures'
  for path in fixtures.glob('*.dcm'):
    shutil.copy(path, folder / 'case.1')
  shutil.copy(fixtures / 'boxes.tiff', folder)
  image = np.arange(256, dtype=np.uint8)[:, None, None]
  small_slides.write_mrxs(folder / 'm.mrxs', image.repeat(256, 1).repeat(3, 2))
  scales(tmp_path, 'case.1,0.5')  # One tile is as wide as this slide, then.
  flags = '--tile_size=32', '--tile_mpp=0.25', '--min_tissue=0'
  table = f'--slide_mpp_csv={tmp_path / "scales.csv"}'
  with warnings.catch_warnings(action='error'):
    run(folder, out, *flags, '--default_mpp=0.25', table)
  found = {p.stem: features.read(p) for p in out.glob('*.h5')}
  source = {
    name: f.attributes['level0_mpp_source'] for name, f in found.items()
  }
  assert source == {
    'boxes': 'default_mpp', 'case.1': 'mpp_csv', 'm': 'openslide'
  }  # fmt: skip
  counts = {name: len(file.coords) for name, file in found.items()}
  assert counts == {'boxes': 9 * 7, 'case.1': 1, 'm': 64}
  grey = found['m'].features.reshape(8, 8, 6)[..., 0]  # Row by row lighter.
  assert (np.diff(grey, axis=0) > 0.4).all() and np.ptp(grey, 1).max() < 0.02
  shutil.rmtree(folder / 'm')
  with pytest.raises(slides.SlideError, match=r'm\.mrxs: .* folder m beside'):
    slides.Slide(folder / 'm.mrxs')


def test_pictures_are_drawn_anew_after_their_features(paths, tmp_path):
  out = tmp_path / 'features'
  picture = out / 'grids/a.png'
  run(paths[0].parent, out, '--min_tissue=0')
  picture.write_bytes(b'as it was')
  run(paths[0].parent, out, '--min_tissue=0')
  assert picture.read_bytes() == b'as it was'
  os.utime(out / 'a.h5')  # Extracted anew.
  run(paths[0].parent, out, '--min_tissue=0')
  assert Image.open(picture).size == (192, 64)


BLUE, ORANGE, GREEN = (30, 60, 220), (230, 90, 0), (0, 140, 60)


def preview(folder, out, *flags):
  run(folder, out, '--preview', *flags)
  return {
    path.stem: np.asarray(Image.open(path))
    for path in (out / 'previews').glob('*.png')
  }


def test_a_preview_shows_tissue_grid_and_tiles_and_encodes_nothing(
  paths, tmp_path, capsys, monkeypatch
):
  out, regions = tmp_path / 'features', tmp_path / 'regions'
  write_square(regions / 'd.geojson')
  monkeypatch.setattr(extract_script.encoder, 'make_encoder', None)
  sheets = preview(paths[3].parent, out, '--min_tissue=0')
  printed = capsys.readouterr()
  assert f'{out}/previews: 39 tiles of 4 slides' in printed.out
  script, flags = next_command.read(printed.err)
  assert script == 'extract'
  assert '--tile_size=64' in flags and '--preview=True' not in flags
  assert sheets.keys() == COUNTS.keys()
  assert [path.name for path in out.iterdir()] == ['previews']
  sheet = sheets['d'][:320]
  # Tiles of a second row begin where those of the first end, at 64.
  blue, orange = ((sheet[64, :320] == c).all(1) for c in (BLUE, ORANGE))
  assert (blue | orange).all() and blue.any() and orange.any()
  with slides.Slide(paths[3]) as slide:
    last = slide.read(256, 256, 0, 64, 64)  # Of 8 tiles shown, the first row.
    place = sheets['d'][336:400, 7 * 72 : 7 * 72 + 64]
    np.testing.assert_array_equal(place, last)
  # Its number, 8, stands above it and in the middle of its frame.
  above, within = (
    sheets['d'][y - 4 : y + 4, x - 3 : x + 3]
    for x, y in ((7 * 72 + 32, 328), (288, 288))
  )
  np.testing.assert_array_equal(above, within)
  assert len(np.unique(above)) > 2
  # Outlined: the last of the four tiles ends at 192.
  flags = '--min_tissue=0', f'--regions_dir={regions}'
  sheet = preview(paths[3].parent, out, *flags)['d']
  assert (sheet[66:126, 65] == GREEN).all()  # Within the tile's own edge.
  assert not sheet[66:126, 63].any()  # What was outlined, around that.
  assert (sheet[192, 130:190] == ORANGE).all()
  assert not (sheet[193:320, :320] == BLUE).all(2).any()


def test_a_preview_shows_what_a_slide_without_tiles_looks_like(
  paths, tmp_path, capsys
):
  out, regions = tmp_path / 'features', tmp_path / 'regions'
  write_square(regions / 'd.geojson')
  paths[0].unlink()
  damage(paths[1])
  paths[2].write_bytes(b'no slide')
  glass = np.full((320, 320, 3), 240, np.uint8)
  tiff.write(paths[0].parent / 'glass.tiff', glass, mpp=0.5, levels=1)
  with pytest.raises(SystemExit, match='1'):
    flags = f'--regions_dir={regions}', '--regions_only'
    preview(paths[0].parent, out, *flags)
  table = capsys.readouterr().out.split('slides would have no features:\n')[1]
  assert [line.split()[0] for line in table.splitlines()] == [
    'b', 'c.01', 'glass'
  ]  # fmt: skip
  assert 'glass.tiff: no tissue' in table
  names = {path.stem for path in (out / 'previews').glob('*.png')}
  assert names == {'d', 'glass'}
  assert Image.open(out / 'previews/glass.png').size == (320, 320)


def test_an_encoder_returns_a_finite_row_of_each_tile(paths, tmp_path):
  bad = Encoder('bad', lambda tiles: tiles.mean((1, 2)) * np.nan)
  failures = extract(paths[:1], tmp_path / 'features', bad)
  assert list(failures) == ['a'] and 'NaN' in failures['a']
  assert not list((tmp_path / 'features').iterdir())
  for encode in (lambda tiles: tiles, lambda tiles: tiles[:1].mean((1, 2))):
    with pytest.raises(EncodingError, match='a row of each tile'):
      extract(paths, tmp_path, Encoder('odd', encode), batch=4)


def test_slides_are_written_as_they_finish_and_never_again(
  paths, tmp_path, monkeypatch, capsys
):
  calls = []

  def encode(tiles):
    if len(calls) == 5:
      raise KeyboardInterrupt
    return small_slides.encoder(calls).encode(tiles)

  with pytest.raises(KeyboardInterrupt):
    stopping = dataclasses.replace(small_slides.encoder(), encode=encode)
    extract(paths, tmp_path, stopping, batch=4)
  first = {p: p.stat().st_mtime_ns for p in tmp_path.glob('*.h5')}
  assert {p.name for p in first} == {'a.h5', 'b.h5', 'c.01.h5'}
  opened, open_slide = [], SlideTiles.open

  def note(self, path):
    opened.append(path)
    return open_slide(self, path)

  monkeypatch.setattr(SlideTiles, 'open', note)
  calls.clear()
  assert not extract(paths, tmp_path, small_slides.encoder(calls), batch=5)
  assert len(calls) == 5  # The 25 tiles of d alone.
  assert opened == paths[3:]
  assert {p: p.stat().st_mtime_ns for p in first} == first
  capsys.readouterr()
  assert not extract(paths, tmp_path, small_slides.encoder(calls), batch=5)
  printed = capsys.readouterr()
  assert f'{tmp_path} has features of all slides, 4:' in printed.out
  assert '0/0' not in printed.err and len(calls) == 5


def test_files_made_otherwise_are_refused_before_any_work(paths, tmp_path):
  extract(paths[:3], tmp_path)
  damage(paths[1])
  (tmp_path / 'c.01.h5').write_bytes(b'half a file')
  calls = []
  other = small_slides.encoder(calls, precision='bfloat16')
  with pytest.raises(EncodingError) as error:
    extract(paths, tmp_path, other, tile_mpp=1.0, augment=True, seed=3)
  lines = str(error.value).splitlines()[1:]
  file = tmp_path / 'a.h5'
  assert lines[:3] == [
    f"{file}: precision is 'float32', not 'bfloat16' as asked",
    f'{file}: mpp is 0.5, not 1.0 as asked',
    f"{file}: augment is 'none', not 'stain 3' as asked",
  ]
  assert len(lines) == 5
  assert 'b.h5: was made of another slide of this name' in lines[3]
  assert 'c.01.h5: not a complete HDF5 file' in lines[4]
  assert not calls
  assert not (tmp_path / 'd.h5').exists()


def test_tiles_are_augmented_by_seed_and_place_in_the_slide(paths, tmp_path):
  seed = 2**32 + 3  # Keys take the lowest 32 bits.
  extract(paths[1:2], tmp_path, augment=True, seed=seed, batch=4)
  found = features.read(tmp_path / 'b.h5')
  assert found.attributes['augment'] == f'stain {seed}'
  with slides.Slide(paths[1]) as slide:
    grid = cohort(paths[1:2]).grid(slide)
    tiles = np.stack([tiling.read_tile(slide, grid, i) for i in range(10)])
  key, policy = jax.random.key(3), augment.PRESETS['stain']
  changed = augment.apply(tiles, key, np.arange(10), policy)
  want = small_slides.encoder().encode(np.uint8(np.round(255 * changed)))
  np.testing.assert_allclose(found.features, want, atol=0.01)
  assert np.abs(found.features - expected(paths[1])[0]).mean() > 0.01


def test_batches_are_encoded_two_at_a_time_and_come_back_in_order():
  both = threading.Barrier(2, timeout=60)

  def encode(images):
    both.wait()
    return images

  batches = [([i], np.full((2, 1), i)) for i in range(6)]
  twice = Encoder('of_two', encode, at_once=2)
  seen = [*extraction._encoded(twice, iter(batches))]
  assert [(bags, rows.tolist()) for bags, rows, _ in seen] == [
    (bags, rows.tolist()) for bags, rows in batches
  ]


def test_the_time_without_tiles_is_counted():
  slow, quick = 0.3, 0.0

  def waited(reading, encoding):
    def batches():
      for i in range(4):
        time.sleep(reading)
        yield [i], np.zeros((1, 1))

    def encode(images):
      time.sleep(encoding)
      return images

    ahead = extraction._in_thread(batches())
    encoder = Encoder('slow', encode)
    return sum(seen[2] for seen in extraction._encoded(encoder, ahead))

  assert waited(slow, quick) > 3 * slow
  # The first batch has nothing before it to wait behind.
  assert waited(quick, slow) < slow


def test_a_sample_comes_evenly_from_all_slides_but_bad_ones(paths):
  got = cohort(paths, augment=True).sample()  # As they are.
  want = {slides.slide_id(p): expected(p)[0] for p in paths}
  colours = small_slides.encoder().encode(got)
  from_slide = {
    name: (abs(colours[:, None] - rows).max(-1) < 1e-5).any(1).sum()
    for name, rows in want.items()
  }
  assert from_slide == COUNTS  # 32 were asked of each, which have fewer.
  got = cohort([paths[3]] * 8).sample()
  assert got.shape == (128, 64, 64, 3)
  first = small_slides.encoder().encode(got[:16])
  rows = abs(first[:, None] - want['d']).max(-1).argmin(1)
  assert rows[0] == 0 and rows[-1] == 24
  assert set(np.diff(rows)) == {1, 2}
  good = cohort(paths[1:]).sample()
  paths[0].write_bytes(b'no slide')
  got = cohort(paths).sample()
  assert sorted(got.sum((1, 2, 3))) == sorted(good.sum((1, 2, 3)))
  with pytest.raises(slides.SlideError, match=r'a\.tiff'):
    cohort(paths[:1]).sample()


def test_a_check_names_all_that_is_wrong_and_bounds_the_rest(
  tmp_path, real_data, capsys, monkeypatch
):
  fixtures = real_data / 'wsi/openslide-fixtures'
  for name in ('boxes.tiff', 'unopenable.tiff', 'unreadable.svs'):
    shutil.copy(fixtures / name, tmp_path)

  def check(*flags):
    with pytest.raises(SystemExit) as done:
      extract_script.main([
        'extract', '--check', f'--slides_dir={tmp_path}',
        f'--features_dir={tmp_path / "features"}', *flags,
      ])  # fmt: skip
    return done.value.code, capsys.readouterr().out

  code, printed = check('--weights=no.pth')
  assert code == 1 and 'check: 4 problems, ' in printed
  problems = [x for x in printed.splitlines() if x.startswith('problem: ')]
  for name, reason in (
    ('no.pth', 'no such weights file'),
    ('boxes.tiff', 'no usable um/px'),
    ('unopenable.tiff', 'OpenSlide cannot open it'),
    ('unreadable.svs', 'cannot be read'),
  ):
    assert any(name in line and reason in line for line in problems)
  code, printed = check('--slide_mpp=0.5')
  assert code == 1 and 'boxes.tiff: 300 x 250 px are smaller than' in printed
  for name in ('unopenable.tiff', 'unreadable.svs'):
    (tmp_path / name).unlink()
  # 300 x 250 pixels hold 4 x 3 tiles of 64.
  code, printed = check('--slide_mpp=0.5', '--tile_size=64')
  assert code == 0 and 'at most 12 tiles of 64 px at 0.5 um/px' in printed
  assert 'are free' not in printed
  with monkeypatch.context() as patched:
    # 12 tiles of 1,280 features are 61,440 bytes.
    patched.setattr(extraction.files, 'free_space', lambda folder: 60_000)
    code, printed = check('--slide_mpp=0.5', '--tile_size=64')
    assert code == 0 and 'features: 0.0 GiB are free' in printed
  boxes = [tmp_path / 'boxes.tiff']
  name = 'small_slides:colours'
  encoder = small_slides.encoder(name=name)
  assert not extract(boxes, tmp_path / 'features', encoder, Scale(0.5))
  flags = '--slide_mpp=0.5', '--tile_size=64', '--min_tissue=0'
  code, printed = check(*flags, '--encoder=random')
  assert code == 1 and 'holds features of another encoder' in printed
  code, printed = check(*flags, f'--weights={name}')
  assert code == 0 and '1 with features; at most 0 tiles' in printed
  code, printed = check(*flags, f'--features_dir={boxes[0]}/new')
  assert code == 1 and f'problem: {boxes[0]}: there is a file' in printed
