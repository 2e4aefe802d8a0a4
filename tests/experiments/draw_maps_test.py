"""Pictures of slides with their tiles' scores; the script that makes all."""

import dataclasses

import drawn_maps
from drawn_results import strict
import h5py
import numpy as np
from PIL import Image
import pytest
import script_process

from data.slides import SlideError
from experiments import draw_maps
from experiments.maps import overlay, tile_scores, top_tiles
from experiments.maps.source import Slides
from experiments.run.options import OptionError
from experiments.run.results import ResultsError

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
def of_slide(run):
  return tile_scores.read(tile_scores.find(run)['007.a'])


@pytest.mark.parametrize('scale', overlay.SCALES)
def test_each_tile_has_the_colour_of_its_score(run, of_slide, scale):
  drawing = overlay.draw(
    slide_of(run), of_slide, scale=scale, colours='viridis', label='lymphoma'
  )
  first, *maps = [ax for ax in drawing.axes if len(ax.images)]
  assert '007.a' in first.get_title()
  assert 'lymphoma, predicted breast' in first.get_title()
  found = {x.title: x for x in overlay.layers(of_slide, scale).values()}
  assert len(maps) == 3  # Probability, attention, disagreement.
  colours = overlay.colour_map('viridis')
  for ax in maps:
    layer = found[ax.get_title()]
    picture = ax.images[1]
    frame = [0, drawn_maps.WIDTH, drawn_maps.HEIGHT, 0]
    assert list(picture.get_extent()) == frame
    image = np.asarray(picture.get_array())
    factor = np.divide(image.shape[:2], (drawn_maps.HEIGHT, drawn_maps.WIDTH))
    y, x = ((of_slide.coords[:, ::-1] + SIDE / 2) * factor).astype(int).T
    seen, has = image[y, x], ~np.isnan(layer.values)
    assert (seen[~has, 3] == 0).all() and (seen[has, 3] > 0).all()
    place = np.rint(255 * layer.norm(layer.values[has])).astype(int)
    np.testing.assert_array_equal(seen[has, :3], colours[place, :3])


def test_an_unreadable_slide_is_named(run, of_slide):
  with pytest.raises(SlideError, match='broken'):
    overlay.draw(slide_of(run, 'broken'), of_slide)


@pytest.mark.parametrize('rank_by', top_tiles.RANKS)
def test_pictures_show_the_tiles_that_score_highest_and_lowest(
  run, of_slide, rank_by, tmp_path
):
  made = top_tiles.write(
    tmp_path, slide_of(run), of_slide, rank_by=rank_by, count=4
  )
  *tiles, sheet = made
  assert sheet.name == '007.a_sheet.png'
  assert sorted(tmp_path.iterdir()) == sorted(made)
  by = {'attention': of_slide.multiples, 'probability': of_slide.probability}
  values = by[rank_by](of_slide.predicted)
  kept = np.sort(values[of_slide.shown])[::-1]
  ranks = [int(path.name.split('_')[1]) for path in tiles]
  n = len(kept)
  assert ranks == [1, 2, 3, 4, n - 3, n - 2, n - 1, n]
  for path, rank in zip(tiles, ranks, strict=True):
    assert path.name.endswith(f'_{kept[rank - 1]:.4f}.png')
    (i,) = np.flatnonzero(values == kept[rank - 1])
    image = np.asarray(Image.open(path))
    assert image.shape == (SIDE, SIDE, 3)
    expected = drawn_maps.pixel(of_slide.coords[i])
    assert abs(image - expected).max() <= 8  # JPEG; neighbours differ by 20.


def test_a_slide_of_few_tiles_shows_each_once(run, of_slide, tmp_path):
  """And what an earlier call left goes, of this slide alone."""
  others = [tmp_path / '007.a_1_1_0.5.png', tmp_path / '007_1_0.5.png']
  for path in others:
    path.touch()
  for count in (100, 1):
    made = top_tiles.write(
      tmp_path, slide_of(run), of_slide, rank_by='attention', count=count
    )
    assert set(tmp_path.iterdir()) == {*made, *others}
    assert len(made) == 1 + min(2 * count, of_slide.shown.sum())


def test_what_lies_beyond_the_slide_is_grey(run, of_slide, tmp_path):
  """CLAM and TRIDENT place tiles across the edge."""
  corner = np.array([[576, 448]])
  one = dataclasses.replace(
    of_slide,
    coords=corner,
    **{k: getattr(of_slide, k)[:, :1] for k in ('attention', 'instance_prob')},
    kept=np.ones((3, 1), bool),
  )
  tile, _ = top_tiles.write(
    tmp_path, slide_of(run), one, rank_by='probability', count=1
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
    with Image.open(run / f'figures/slide_maps/absolute/{name}.png') as image:
      assert image.width > 1000
    assert (run / 'figures' / 'topk' / f'{name}_sheet.png').exists()
    of_slide = tile_scores.read(tile_scores.find(run)[name])
    with h5py.File(run / 'disagreement' / f'{name}.h5') as file:
      for c in range(3):
        np.testing.assert_array_equal(
          file['probability_std'][:, c], of_slide.disagreement(c)
        )
      np.testing.assert_array_equal(file['coords'][()], of_slide.coords)
    path = run / 'qupath' / f'{name}.geojson'
    about = [f['properties'] for f in strict(path.read_text())['features']]
    tiles = [x['name'] for x in about if x['objectType'] == 'detection']
    best = top_tiles.order(of_slide, 'attention')[: -(-len(of_slide) // 4)]
    assert tiles == [f'tile {i}' for i in best]


def test_an_unknown_slide_is_named(run):
  flags = [f'--run={run}', '--slide=008', '--score=probability']
  with pytest.raises(SystemExit, match='--slide=008: no scores'):
    draw_maps.main(['draw_maps', *flags])


def test_a_folder_that_is_no_run_is_named(tmp_path):
  with pytest.raises(OptionError, match=r'--run=.*gone: no such folder'):
    Slides(tmp_path / 'gone').files()
  with pytest.raises(ResultsError, match=r'config\.json: no such file'):
    Slides(tmp_path).files()


def test_the_labels_are_those_of_the_test_part(run):
  assert Slides(run).labels() == {'007.a': 'lymphoma'}


def test_slides_that_are_elsewhere_now_cost_their_pictures(tmp_path, capsys):
  drawn_maps.write_config(tmp_path, flags={'slides_dir': 'gone'})
  assert Slides(tmp_path).files() == {}
  assert 'says that the slides are in gone' in capsys.readouterr().out
  with pytest.raises(SlideError, match='absent: no such folder'):
    Slides(tmp_path, slides_dir='absent').files()


def test_the_phantoms_slides_are_those_beside_its_features(run, tmp_path):
  for folder, names in (
    (run.parent, {'007', '007.a', 'broken'}),
    (tmp_path / 'gone', set()),
  ):
    cohort = {'features_dir': str(folder / 'features_1')}
    drawn_maps.write_config(tmp_path, cohort=cohort)
    assert set(Slides(tmp_path).files()) == names
