"""Pictures of slides with their tiles' scores; the script that makes all."""

import dataclasses
import json

import drawn_maps
from drawn_results import strict
import h5py
import numpy as np
from PIL import Image
import pytest
import script_process

from data.slides import SlideError
from experiments.slide_maps import (
  heat_map,
  layers,
  run_folder,
  tile_scores,
  top_tiles,
)
from experiments.slide_maps.tile_scores import MapError

SIDE = drawn_maps.SIDE


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Three folds, two slides and a slide file that is none."""
  root = tmp_path_factory.mktemp('maps')
  run = drawn_maps.run_folder(root, ('007.a', '007', 'broken'), kept=0.7)
  (root / 'slides' / 'broken.tiff').write_bytes(b'no slide')
  (run / 'fold_1' / 'predictions.csv').write_text(
    'case_id,slide_id,fold,split,label,pred\n'
    'c,007.a,1,test,lymphoma,breast\nc,007,1,val,lymphoma,breast\n'
  )
  return run


def slide_of(run, name='007.a'):
  return run.parent / 'slides' / f'{name}.tiff'


@pytest.fixture
def scores(run):
  return tile_scores.read(tile_scores.find(run)['007.a'])


@pytest.mark.parametrize('scale', layers.SCALES)
def test_each_tile_has_the_colour_of_its_score(run, scores, scale):
  drawing = heat_map.draw(
    slide_of(run), scores, scale=scale, colours='viridis', label='lymphoma'
  )
  first, *maps = [ax for ax in drawing.axes if len(ax.images)]
  said = first.get_title()
  assert '007.a' in said
  assert 'lymphoma, predicted breast' in said
  found = {layer.title: layer for layer in layers.of(scores, scale)}
  assert len(maps) == 3  # Probability, attention, disagreement.
  colours = layers.colour_map('viridis')
  for ax in maps:
    layer = found[ax.get_title()]
    picture = ax.images[1]
    left, right, bottom, top = picture.get_extent()
    assert (left, top, right, bottom) == (
      0,
      0,
      drawn_maps.WIDTH,
      drawn_maps.HEIGHT,
    )
    image = np.asarray(picture.get_array())
    scale_y = image.shape[0] / drawn_maps.HEIGHT
    scale_x = image.shape[1] / drawn_maps.WIDTH
    for (x, y), value in zip(
      scores.coords + SIDE / 2, layer.values, strict=True
    ):
      seen = image[int(y * scale_y), int(x * scale_x)]
      if np.isnan(value):
        assert seen[3] == 0
      else:
        place = np.rint(255 * layer.place(value)).astype(int)
        assert seen[:3].tolist() == colours[place][:3].tolist()
        assert seen[3] > 0


def test_an_unreadable_slide_is_named(run, scores):
  with pytest.raises(SlideError, match='broken'):
    heat_map.draw(slide_of(run, 'broken'), scores)


@pytest.mark.parametrize('score', ['attention', 'probability'])
def test_pictures_show_the_tiles_that_score_highest_and_lowest(
  run, scores, score, tmp_path
):
  made = top_tiles.write(tmp_path, slide_of(run), scores, score=score, count=4)
  *tiles, sheet = made
  assert sheet.name == '007.a_sheet.png'
  assert sorted(tmp_path.iterdir()) == sorted(made)
  c = scores.predicted
  values = (
    scores.multiples(c) if score == 'attention' else scores.probability(c)
  )
  kept = values[scores.shown]
  ranks = [int(path.name.split('_')[1]) for path in tiles]
  n = len(kept)
  assert ranks == [1, 2, 3, 4, n - 3, n - 2, n - 1, n]
  for path, rank in zip(tiles, ranks, strict=True):
    value = np.sort(kept)[::-1][rank - 1]
    assert path.name.endswith(f'_{value:.4f}.png')
    (i,) = np.flatnonzero(values == value)
    image = np.asarray(Image.open(path))
    assert image.shape == (SIDE, SIDE, 3)
    expected = drawn_maps.pixel(scores.coords[i])
    assert abs(image - expected).max() <= 8  # JPEG; neighbours differ by 20.


def test_a_slide_of_few_tiles_shows_each_once(run, scores, tmp_path):
  """And what an earlier call left goes, of this slide alone."""
  others = [tmp_path / '007.a_1_1_0.5.png', tmp_path / '007_1_0.5.png']
  for path in others:
    path.touch()
  for count in (100, 1):
    made = top_tiles.write(
      tmp_path, slide_of(run), scores, score='attention', count=count
    )
    found = set(tmp_path.iterdir())
    assert found == {*made, *others}
    assert len(made) == 1 + min(2 * count, scores.shown.sum())


def test_what_lies_beyond_the_slide_is_grey(run, scores, tmp_path):
  """CLAM and TRIDENT place tiles across the edge."""
  corner = np.array([[576, 448]])
  one = dataclasses.replace(
    scores,
    coords=corner,
    **{k: getattr(scores, k)[:, :1] for k in ('attention', 'instance_prob')},
    kept=np.ones((3, 1), bool),
  )
  tile, _ = top_tiles.write(
    tmp_path, slide_of(run), one, score='probability', count=1
  )
  image = np.asarray(Image.open(tile)).astype(int)
  height, width = drawn_maps.HEIGHT - 448, drawn_maps.WIDTH - 576
  inside = image[:height, :width]
  assert abs(inside - drawn_maps.pixel(corner[0])).max() <= 8
  assert (image[height:] == 160).all()
  assert (image[:, width:] == 160).all()


def test_the_script_draws_all_slides_but_one_it_cannot_read(run):
  flags = ['--geojson', '--top_tiles=1', '--top_fraction=0.25']
  done = script_process.run('experiments.draw_maps', f'--run={run}', *flags)
  assert done.returncode == 1
  assert 'maps of 2 slides' in done.stdout
  assert 'broken.tiff' in done.stderr.split('error: 1 slides failed')[1]
  for name in ('007.a', '007'):
    picture = run / 'figures' / 'slide_maps' / 'absolute' / f'{name}.png'
    with Image.open(picture) as image:
      assert image.width > 1000
    assert (run / 'figures' / 'topk' / f'{name}_sheet.png').exists()
    scores = tile_scores.read(tile_scores.find(run)[name])
    with h5py.File(run / 'disagreement' / f'{name}.h5') as file:
      for c in range(3):
        np.testing.assert_array_equal(
          file['probability_std'][:, c], scores.disagreement(c)
        )
      np.testing.assert_array_equal(file['coords'][()], scores.coords)
    path = run / 'qupath' / f'{name}.geojson'
    said = [f['properties'] for f in strict(path.read_text())['features']]
    tiles = [x for x in said if x['objectType'] == 'detection']
    assert len(tiles) == -(-len(scores) // 4)
    best = np.argsort(-np.nan_to_num(scores.multiples(scores.predicted)))
    assert [x['name'] for x in tiles] == [
      f'tile {i}' for i in best[: len(tiles)]
    ]


def test_a_folder_that_is_no_run_is_named(tmp_path):
  with pytest.raises(MapError, match=r'config\.json: no such file.*--run'):
    run_folder.slide_files(tmp_path, None)
  (tmp_path / 'config.json').write_text('[]')
  with pytest.raises(MapError, match=r'config\.json: not the record of a run'):
    run_folder.slide_files(tmp_path, None)


def test_the_labels_are_those_of_the_test_part(run):
  assert run_folder.labels(run) == {'007.a': 'lymphoma'}


def test_slides_that_are_elsewhere_now_cost_their_pictures(
  run, tmp_path, capsys
):
  config = json.loads((run / 'config.json').read_text())
  config['flags']['slides_dir'] = 'gone'
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert run_folder.slide_files(tmp_path, None) == {}
  assert 'config.json says that the slides are in gone' in (
    capsys.readouterr().out
  )
  with pytest.raises(SlideError, match='absent: no such folder'):
    run_folder.slide_files(tmp_path, 'absent')


def test_the_phantoms_slides_are_those_beside_its_features(run, tmp_path):
  record = {
    'flags': {'csv_path': None},
    'cohort': {'features_dir': str(run.parent / 'features_1')},
  }
  (tmp_path / 'config.json').write_text(json.dumps(record))
  names = {'007', '007.a', 'broken'}
  assert set(run_folder.slide_files(tmp_path, None)) == names
  record['cohort']['features_dir'] = str(tmp_path / 'gone' / 'features_1')
  (tmp_path / 'config.json').write_text(json.dumps(record))
  assert run_folder.slide_files(tmp_path, None) == {}
