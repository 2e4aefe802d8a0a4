"""QuPath shows what of a slide was scanned, and counts pixels from there."""

import json

import drawn_maps
import numpy as np
import pytest
import shapely
import small_slides

from data import features, slides
from experiments import draw_maps, extract as extract_script
from experiments.maps import overlay, tile_scores

SIDE = 320  # Of what was scanned, which lies at (SIDE, SIDE).
TISSUE = 40, 72, 296, 200  # Within it.


@pytest.fixture
def folder(tmp_path):
  """Slides of MIRAX: three quarters of the slide were not scanned."""
  image = np.full((SIDE, SIDE, 3), 243, np.uint8)
  left, top, right, bottom = TISSUE
  image[top:bottom, left:right] = (200, 110, 170)
  (tmp_path / 'slides').mkdir()
  small_slides.write_mrxs(tmp_path / 'slides/a.mrxs', image, across=2)
  return tmp_path / 'slides'


def extract(folder, out, *flags):
  extract_script.main([
    'extract', '--weights=small_slides:colours', '--tile_size=32',
    '--tile_mpp=0.25', '--min_piece_mm2=0.001', f'--slides_dir={folder}',
    f'--features_dir={out}', *flags,
  ])  # fmt: skip
  return features.read(out / 'a.h5').coords


def shapes(path):
  content = json.loads(path.read_text())['features']
  return [shapely.from_geojson(json.dumps(s['geometry'])) for s in content]


def write(path, about, *ring):
  path.parent.mkdir()
  shape = {'type': 'Polygon', 'coordinates': [[*ring, ring[0]]]}
  feature = {'type': 'Feature', 'properties': about, 'geometry': shape}
  path.write_text(json.dumps({'features': [feature]}))


def test_where_a_slide_begins(folder, tmp_path):
  with slides.Slide(folder / 'a.mrxs') as slide:
    assert (slide.width, slide.height) == (2 * SIDE, 2 * SIDE)
  assert slides.corner(folder / 'a.mrxs') == (SIDE, SIDE)
  small_slides.write(tmp_path / 'others', {'b': (64, 64)})
  assert slides.corner(tmp_path / 'others/b.tiff') == (0, 0)
  assert slides.corner(tmp_path / 'absent.svs') == (0, 0)


def test_a_slide_of_mirax_is_its_folder(folder):
  other = np.full((SIDE, SIDE, 3), 240, np.uint8)
  small_slides.write_mrxs(folder / 'b.mrxs', other)
  assert slides.digest(folder / 'a.mrxs') != slides.digest(folder / 'b.mrxs')


def test_tissue_and_tiles_go_to_qupath_and_come_back(folder, tmp_path):
  coords = extract(folder, tmp_path / 'features')
  assert len(coords) and (coords >= SIDE).all()
  grids = tmp_path / 'features/grids'
  corners = [shape.bounds[:2] for shape in shapes(grids / 'a.geojson')]
  assert corners == list(map(tuple, coords - SIDE))
  (tissue,) = shapes(grids / 'tissue/a.geojson')
  assert np.abs(np.subtract(tissue.bounds, TISSUE)).max() <= 32
  flags = f'--regions_dir={grids}/tissue', '--regions_only'
  again = extract(folder, tmp_path / 'again', *flags)
  # Their tissue has coarser edges than that which tiles are cut from.
  assert np.abs(again.mean(0) - coords.mean(0)).max() <= 16


def test_outlines_of_qupath_count_from_there_and_others_do_not(
  folder, tmp_path
):
  ring = np.array([(32, 64), (160, 64), (160, 192), (32, 192)])
  by_qupath = {'objectType': 'annotation'}
  write(tmp_path / 'qupath/a.geojson', by_qupath, *ring.tolist())
  trident = (ring + SIDE).tolist()
  write(tmp_path / 'trident/a.geojson', {'tissue_id': 0}, *trident)
  for name in ('qupath', 'trident'):
    flags = f'--regions_dir={tmp_path / name}', '--regions_only'
    coords = extract(folder, tmp_path / f'features_{name}', *flags)
    assert coords.min(0).tolist() == [SIDE + 32, SIDE + 64]
    assert coords.max(0).tolist() == [SIDE + 128, SIDE + 160]
    path, outlines = folder / 'a.mrxs', tmp_path / name
    (known,) = overlay.known_outlines(path, 'a', outlines)
    assert known.tolist() == trident


def test_maps_go_to_qupath(folder, tmp_path):
  coords = extract(folder, tmp_path / 'features')
  run = tmp_path / 'run'
  scores = drawn_maps.scores(coords, 0)
  drawn_maps.write_scores(run, 0, 'a', scores, patch_size_level0=32)
  drawn_maps.write_config(run, flags={'slides_dir': str(folder)})
  draw_maps.main(['draw_maps', f'--run={run}', '--geojson'])
  content = json.loads((run / 'qupath/a.geojson').read_text())['features']
  tiles = {
    f['properties']['name']: f['geometry']['coordinates'][0]
    for f in content
    if f['properties']['objectType'] == 'detection'
  }
  assert len(tiles) == len(coords)
  for i, corner in enumerate(coords - SIDE):
    assert np.min(tiles[f'tile {i}'], 0).tolist() == corner.tolist()
  # Pictures are of the whole slide.
  (fold,) = tile_scores.find(run)['a'].values()
  assert (tile_scores.read({0: fold}).coords == coords).all()
