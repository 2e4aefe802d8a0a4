"""Scores of tiles: read, averaged over folds, scaled, painted, exported."""

import dataclasses
import itertools
import json
import shutil
import tracemalloc
import types
from unittest import mock
import uuid

import drawn_maps
from drawn_results import strict
import h5py
from hypothesis import example, given, strategies as st
from matplotlib import figure, patches
import numpy as np
from PIL import Image
import pytest
from scipy import ndimage
import shapely
from shapely import geometry

from data import inspection
from data.slides import Slide, SlideError
from experiments import draw_maps
from experiments.bags import crossval
from experiments.maps import (
  geojson,
  overlay,
  scale_bar,
  tile_scores,
  top_tiles,
)
from experiments.maps.source import Slides
from experiments.maps.tile_scores import MapError, TileScores, UnplacedError
from experiments.run.results import Folder
from experiments.viewer import slide_view

C = len(drawn_maps.CLASSES)
SIDE = drawn_maps.SIDE


def scores_of(*drawn, side=SIDE):
  """The scores of folds, as they are read."""
  arrays = {name: np.stack([d[name] for d in drawn]) for name in drawn[0]}
  coords = arrays.pop('coords')[0].astype(int)
  folds = tuple(range(len(drawn)))
  return TileScores('s', folds, drawn_maps.CLASSES, coords, side, **arrays)


def test_folds_count_only_for_tiles_that_they_keep():
  coords = drawn_maps.lattice()
  drawn = [drawn_maps.scores(coords, seed, kept=0.6) for seed in range(3)]
  found = scores_of(*drawn)
  prob = np.stack(
    [np.where(d['kept'][:, None], d['instance_prob'], np.nan) for d in drawn]
  )
  count = np.isfinite(prob[..., 0]).sum(0)
  assert set(count) == {0, 1, 2, 3}
  np.testing.assert_array_equal(found.shown, count > 0)
  for c in range(C):
    mean, deviation = found.probability(c), found.disagreement(c)
    np.testing.assert_allclose(
      mean[count > 0], np.nanmean(prob[:, count > 0, c], 0), rtol=1e-6
    )
    np.testing.assert_allclose(
      deviation[count > 1], np.nanstd(prob[:, count > 1, c], 0), atol=1e-7
    )
    assert np.isnan(mean[count == 0]).all()
    assert np.isnan(deviation[count < 2]).all()


def test_attention_is_a_multiple_of_an_equal_share():
  coords = drawn_maps.lattice()
  kept = np.arange(len(coords)) % 4 > 0
  equal = np.repeat(kept[:, None] / kept.sum(), C, 1)
  drawn = drawn_maps.scores(coords, 0) | {'kept': kept, 'attention': equal}
  multiples = scores_of(drawn).multiples(1)
  np.testing.assert_allclose(multiples[kept], 1)
  assert np.isnan(multiples[~kept]).all()


def test_the_absolute_scale_is_that_of_every_slide():
  coords = drawn_maps.lattice()
  flat = [drawn_maps.scores(coords, 0) for _ in range(2)]
  # One tile takes all; the folds are of opposite minds.
  peaked = [
    drawn
    | {
      'attention': np.eye(len(coords))[:, :1],
      'instance_prob': np.eye(C)[np.full(len(coords), c)],
    }
    for drawn, c in zip(flat, (0, 2), strict=True)
  ]
  one, two = (
    overlay.layers(scores_of(*drawn), 'absolute') for drawn in (flat, peaked)
  )
  ends = [
    [(x.key, x.low, x.high) for x in found.values()] for found in (one, two)
  ]
  assert ends[0] == ends[1]
  layer = one['probability-2']
  np.testing.assert_allclose(layer.norm(layer.values), layer.values)
  # An equal share lies in the middle, whatever the highest one.
  norm = one['attention'].norm
  np.testing.assert_allclose(norm(np.array([0, 0.1, 1, 1e9])), [0, 0, 0.5, 1])
  # The deviation of two folds fills its scale.
  np.testing.assert_array_equal(two['disagreement'].values, 0.5)
  assert two['disagreement'].high == 0.5


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_a_rank_counts_the_tiles_that_score_less(values):
  values = np.array([*values, np.nan])
  ranked = overlay._ranked(overlay.Layer('a', 'a', values)).values
  has = values[:-1]
  less = (has[:, None] > has).sum(1) + 0.5 * (has[:, None] == has).sum(1)
  np.testing.assert_allclose(ranked[:-1], less / len(has))
  assert np.isnan(ranked[-1])


@given(st.integers(0, 10**6), st.sampled_from([1.0, 2.0, 3.7]))
def test_painting_averages_the_tiles_over_a_pixel(seed, scale):
  rng = np.random.default_rng(seed)
  corner, size = rng.integers(-5, 25, (12, 2)), rng.integers(1, 12, (12, 2))
  values = np.where(rng.random(12) < 0.2, np.nan, rng.random(12))
  boxes = np.c_[corner, corner + size].astype(float)
  x, y = np.meshgrid(np.arange(30), np.arange(20))
  left, top, right, bottom = (b[:, None, None] for b in boxes.T)
  over = (left <= x) & (x < right) & (top <= y) & (y < bottom)
  over &= ~np.isnan(values)[:, None, None]
  total = (np.nan_to_num(values)[:, None, None] * over).sum(0)
  count = over.sum(0)
  expected = np.where(count, total / np.maximum(count, 1), np.nan)
  painted = overlay.paint(boxes, values, 1, (20, 30))
  np.testing.assert_allclose(painted, expected, atol=1e-12)
  whole = overlay.paint(boxes, values, scale, (20, 30))
  part = overlay.paint(boxes, values, scale, (9, 12), (11, 7))
  np.testing.assert_allclose(part, whole[7:16, 11:23], atol=1e-12)


def test_tiles_smaller_than_a_pixel_stay_visible():
  box = np.array([[1000.0, 2000, 1010, 2010]])
  painted = overlay.paint(box, np.ones(1), 100, (40, 40))
  assert np.argwhere(~np.isnan(painted)).tolist() == [[20, 10]]


@pytest.mark.parametrize('side', [64, 51.3, 513.026])
def test_rounded_tiles_touch_their_neighbours(side):
  """As STAMP's, whose sides in pixels are not whole numbers."""
  for apart in (1, 3):  # Tiles farther apart keep their own size.
    starts = np.rint(np.arange(40) * side) * apart
    coords = np.stack([starts, np.zeros(40)], 1)
    found = scores_of(drawn_maps.scores(coords, 0), side=side)
    ends, own = overlay.boxes(found)[:, 2], np.rint(starts + side)
    if apart == 1:
      np.testing.assert_array_equal(ends[:-1], starts[1:])
      assert ends[-1] == own[-1]
    else:
      np.testing.assert_array_equal(ends, own)


TEXT = np.array('text', h5py.string_dtype())


def change(name, array):
  return lambda d: d | {name: array(d)}


@pytest.mark.parametrize(
  ('arrays', 'attributes', 'message'),
  [
    (lambda d: d, {'patch_size_level0': None}, '--tile_size'),
    (lambda d: d, {'patch_size_level0': np.nan}, '--tile_size'),
    (lambda d: d, {'patch_size_level0': 2**63 - 1}, '--tile_size'),
    (lambda d: d, {'classes': None}, 'classes'),
    (lambda d: {k: v for k, v in d.items() if k != 'coords'}, {}, '_code'),
    (lambda d: {k: v for k, v in d.items() if k != 'prob'}, {}, 'prob'),
    (change('coords', lambda d: d['coords'][1:]), {}, 'coords'),
    (change('attention', lambda d: d['attention'] * np.nan), {}, 'attention'),
    (change('prob', lambda d: d['prob'][:2]), {}, 'prob'),
    # Damaged, or not by us.
    (
      change('coords', lambda d: h5py.SoftLink('/x')),
      {},
      'coords is a link to',
    ),
    (change('coords', lambda d: np.array([[b'a', b'b']] * 63)), {}, ''),
    (change('coords', lambda d: np.full((63, 2), 1e300)), {}, ''),
    (change('kept', lambda d: h5py.Empty('f')), {}, ''),
    (change('attention', lambda d: TEXT), {}, ''),
    (lambda d: d, {'level0_width': 'x', 'level0_height': 2}, 'not a complete'),
    (lambda d: d, {'classes': 3}, 'not a complete'),
  ],
)
def test_a_file_that_cannot_be_drawn_is_named(
  tmp_path, arrays, attributes, message
):
  drawn = drawn_maps.scores(drawn_maps.lattice(), 0)
  error = UnplacedError if message in ('--tile_size', '_code') else MapError
  changed = arrays(drawn)
  path = drawn_maps.write_scores(tmp_path, 0, 's', changed, **attributes)
  with pytest.raises(error, match=rf'fold_0/attention/s\.h5.*{message}'):
    tile_scores.read({0: path})
  path = drawn_maps.write_scores(
    tmp_path, 0, 's', drawn, patch_size_level0=None
  )
  assert tile_scores.read({0: path}, 32).side == 32
  guessed = {'patch_size_level0_source': 'spacing of coords'}
  path = drawn_maps.write_scores(tmp_path, 0, 's', drawn, **guessed)
  assert tile_scores.read({0: path}).side == SIDE
  assert tile_scores.read({0: path}, 96).side == 96  # Tiles overlap.
  path.write_bytes(path.read_bytes()[:900])
  with pytest.raises(MapError, match=r's\.h5: not a complete HDF5'):
    tile_scores.read({0: path})


def test_slides_are_found_by_fold(tmp_path):
  drawn = [
    drawn_maps.scores(drawn_maps.lattice(share=0.5, seed=s), 0) for s in (0, 1)
  ]
  for fold, name in ((0, '007.a'), (10, '007.a'), (2, 'b'), (2, '.b.part')):
    drawn_maps.write_scores(tmp_path, fold, name, drawn[fold > 0])
  found = tile_scores.find(tmp_path)
  assert {k: list(v) for k, v in found.items()} == {'007.a': [0, 10], 'b': [2]}
  assert list(tile_scores.find(tmp_path, 2)) == ['b']
  with pytest.raises(MapError, match='fold_5'):
    tile_scores.find(tmp_path, 5)
  # The folds have seen other tiles.
  with pytest.raises(MapError, match=r'fold_0.* and .*fold_10.* differ in coo'):
    tile_scores.read(found['007.a'])


def of_grid(grid, side=SIDE):
  """Scores with the probability of class 1 on each place of a lattice."""
  y, x = np.mgrid[: grid.shape[0], : grid.shape[1]]
  coords = np.rint(np.stack([x.ravel(), y.ravel()], 1) * side)
  scores = scores_of(drawn_maps.scores(coords, 0), side=side)
  scores.instance_prob[0, :, 1] = grid.ravel()
  return scores


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A file of a slide with dropped tiles, parsed, and the slide's scores."""
  coords = drawn_maps.lattice(share=0.8)
  drawn = [drawn_maps.scores(coords, seed, kept=0.5) for seed in range(2)]
  scores = scores_of(*drawn)
  path = tmp_path_factory.mktemp('geojson') / 'a.geojson'
  order = np.arange(len(scores))
  features = list(geojson.of_slide(scores, 0.4, order))
  geojson.write(path, features)
  first, *lines, last = path.read_text(encoding='utf-8').splitlines()
  assert strict(first + last) == {'type': 'FeatureCollection', 'features': []}
  assert len(lines) == len(features)  # A feature a line.
  return scores, [strict(line.rstrip(',')) for line in lines]


def test_features_are_what_qupath_reads(written):
  """PathObjectTypeAdapters of QuPath 0.4 and later; RFC 7946, 3.1.6."""
  scores, features = written
  allowed = {'objectType', 'name', 'classification', 'measurements'}
  frame = shapely.box(0, 0, drawn_maps.WIDTH, drawn_maps.HEIGHT)
  colours = {}
  for feature in features:
    assert set(feature) == {'type', 'id', 'geometry', 'properties'}
    assert feature['type'] == 'Feature'
    about = feature['properties']
    assert {'objectType', 'name', 'measurements'} <= set(about) <= allowed
    assert about['objectType'] in ('annotation', 'detection')
    assert np.isfinite(list(about['measurements'].values())).all()
    if 'classification' in about:
      name, colour = (about['classification'][k] for k in ('name', 'color'))
      assert name in scores.classes and len(colour) == 3
      assert all(isinstance(x, int) and 0 <= x <= 255 for x in colour)
      assert colours.setdefault(name, colour) == colour
    assert feature['geometry']['type'] == 'Polygon'
    for ring in feature['geometry']['coordinates']:
      assert len(ring) >= 4 and ring[0] == ring[-1]
      assert all(isinstance(x, int) for p in ring for x in p)
    shape = geometry.shape(feature['geometry'])
    assert shape.is_valid and shape.within(frame)
    assert shape.exterior.is_ccw  # A positive shoelace sum.
    assert not any(hole.is_ccw for hole in shape.interiors)
  assert len({tuple(c) for c in colours.values()}) == len(colours) == C
  ids = [uuid.UUID(feature['id']) for feature in features]
  assert len(set(ids)) == len(ids)
  order = np.arange(len(scores))
  again = list(geojson.of_slide(scores, 0.4, order))
  assert [uuid.UUID(feature['id']) for feature in again] == ids
  other = dataclasses.replace(scores, slide='other')
  others = geojson.of_slide(other, 0.4, order)
  assert not {uuid.UUID(f['id']) for f in others} & set(ids)


def test_detections_are_the_tiles(written):
  scores, features = written
  found = [f for f in features if f['properties']['objectType'] == 'detection']
  assert len(found) == len(scores)
  for i, feature in enumerate(found):
    x, y = scores.coords[i].tolist()
    box = shapely.box(x, y, x + SIDE, y + SIDE)
    assert geometry.shape(feature['geometry']).equals(box)
    measured = feature['properties']['measurements']
    for c, name in enumerate(scores.classes):
      for key, value in (
        (f'probability {name}', scores.probability(c)[i]),
        (f's.d. over folds {name}', scores.disagreement(c)[i]),
      ):
        wanted = pytest.approx(value, rel=1e-5, nan_ok=True)
        assert measured.get(key, np.nan) == wanted
    assert measured['folds that keep it'] == scores.kept[:, i].sum()
    assert ('classification' in feature['properties']) == scores.shown[i]


@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.5, 0.7]))
def test_regions_are_the_components_of_the_lattice(seed, threshold):
  grid = np.random.default_rng(seed).random((6, 7))
  mask = grid >= threshold
  labelled, count = ndimage.label(mask)  # By edges, not by corners.
  regions = geojson.regions(of_grid(grid), 1, threshold)
  assert len(regions) == count
  seen = np.zeros(mask.shape, int)
  for polygon, tiles in regions:
    assert polygon.is_valid
    (label,) = set(labelled.ravel()[tiles])
    component = labelled == label
    assert polygon.area == component.sum() * SIDE**2
    assert len(tiles) == component.sum()
    seen += component
    holes = sum(shapely.Polygon(ring).area for ring in polygon.interiors)
    # Places that no path over edges joins with the outside.
    free = np.pad(~component, 1, constant_values=True)
    outside, _ = ndimage.label(free)
    assert holes == (free & (outside != outside[0, 0])).sum() * SIDE**2
  np.testing.assert_array_equal(seen, mask)


def test_straight_edges_have_no_corners_and_rounded_tiles_no_slits():
  grid = np.ones((3, 3))
  grid[1, 1] = 0
  ((polygon, tiles),) = geojson.regions(of_grid(grid), 1, 0.9)
  (hole,) = polygon.interiors
  assert len(tiles) == 8
  assert len(polygon.exterior.coords) == len(hole.coords) == 5
  scores = of_grid(np.ones((6, 6)), side=51.3)
  ((polygon, _),) = geojson.regions(scores, 1, 0.5)
  assert polygon.area == np.rint(scores.coords.max() + 51.3) ** 2
  assert not polygon.interiors


def test_memory_does_not_grow_with_the_file(tmp_path):
  one = next(geojson.of_slide(of_grid(np.ones((5, 5))), 0, np.arange(1)))
  peaks = []
  for count in (50, 2000):
    tracemalloc.start()
    geojson.write(tmp_path / 'a.geojson', itertools.repeat(one, count))
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert (tmp_path / 'a.geojson').stat().st_size > 500_000
  assert peaks[1] < peaks[0] + 50_000
  with pytest.raises(ValueError, match='JSON'):
    geojson.write(tmp_path / 'a.geojson', [{'a': np.nan}])


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


@pytest.fixture
def of_slide(run):
  return tile_scores.read(tile_scores.find(run)['007.a'])


@pytest.mark.parametrize('scale', tile_scores.SCALES)
def test_each_tile_has_the_colour_of_its_score(run, of_slide, scale):
  drawing = overlay.draw(
    Slides(run).files()['007.a'],
    of_slide,
    scale=scale,
    colours='viridis',
    label='lymphoma',
    note=tile_scores.VALIDATION,
  )
  title = '007.a | truth lymphoma | predicted breast, probability 0.63'
  assert drawing.get_suptitle().startswith(title)
  end = f'over 3 folds | WRONG\n{tile_scores.VALIDATION}'
  assert drawing.get_suptitle().endswith(end)
  first, *maps = [ax for ax in drawing.subfigs[0].axes if len(ax.images)]
  drawn = overlay.layers(of_slide, scale) | {
    f'ranked {x.key}': x for x in overlay.layers(of_slide, 'rank').values()
  }
  found = {x.title: x for x in drawn.values()}
  # Probability, attention, disagreement; and the rank of attention.
  assert len({ax.get_title() for ax in maps}) == (3 if scale == 'rank' else 4)
  best = np.argsort(-of_slide.multiples(of_slide.predicted))[:5]
  numbers = {t.get_text(): t.xy for t in first.texts}
  for rank, (i, tile) in enumerate(
    zip(best, drawing.subfigs[1].axes, strict=True), 1
  ):
    corner = of_slide.coords[i]
    assert (numbers[str(rank)] == corner + SIDE / 2).all()
    assert 'x {}, y {} px'.format(*corner) in tile.get_xlabel()
    image = np.asarray(tile.images[0].get_array()).astype(int)
    assert abs(image - drawn_maps.pixel(corner)).max() <= 8
  for ax in (first, *maps):
    framed = {tuple(p.get_xy()) for p in ax.patches}
    assert framed == {*map(tuple, of_slide.coords[best].tolist())}
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


def test_tiles_that_weigh_nothing_are_no_key_tiles(run, of_slide):
  attention = np.full_like(of_slide.attention, 1e-9)
  attention[:, :2] = 0.5
  few = dataclasses.replace(
    of_slide, attention=attention, kept=np.ones_like(of_slide.kept)
  )
  drawing = overlay.draw(Slides(run).files()['007.a'], few)
  below = drawing.subfigs[1]
  assert len(below.axes) == 2
  title = (
    f'2 of {len(few)}, in order. All others have less than 0.1 of the mean'
  )
  assert below.get_suptitle().endswith(title)


def test_panels_begin_at_one_height_and_their_titles_lie_apart(run, of_slide):
  names = tuple(f'{c}, carcinoma of the head and neck' for c in 'abc')[:C]
  named = dataclasses.replace(of_slide, classes=names)
  drawing = overlay.draw(Slides(run).files()['007.a'], named)
  drawing.draw_without_rendering()
  panels = drawing.subfigs[0].axes[:2]
  tops = [ax.get_window_extent().y1 for ax in panels]
  assert tops[0] == pytest.approx(tops[1], abs=3)
  _, left, right = (ax.title.get_window_extent() for ax in drawing.axes[:3])
  assert left.x1 < right.x0


@pytest.mark.parametrize('seed', range(20))
def test_lines_to_the_numbers_of_tiles_do_not_cross(seed):
  ax, size = figure.Figure().subplots(), (900, 90 if seed % 2 else 400)
  ax.set(xlim=(0, size[0]), ylim=(size[1], 0))
  overlay._number(ax, np.random.default_rng(seed).random((5, 2)) * size)
  ends = ((t.xy, t.get_position()) for t in ax.texts)
  lines = [(np.divide(a, size), np.array(b)) for a, b in ends]
  places = np.sort([place for _, (_, place) in lines])
  assert np.diff(places).min() * 4.9 * size[1] / 900 > 0.16  # Inches.
  assert sorted(text.get_text() for text in ax.texts) == list('12345')
  lines = [(a * (1, -1) + (0, 1), b) for a, b in lines]
  side = lambda a, b, c: np.cross([*(b - a), 0], [*(c - a), 0])[2] > 0
  for (a, b), (c, d) in itertools.combinations(lines, 2):
    crosses = side(a, b, c) != side(a, b, d) and side(c, d, a) != side(c, d, b)
    assert not crosses


@given(st.floats(0.06, 15), st.integers(20, 10**6), st.integers(50, 900))
@example(14.999999999999998, 20, 50)
def test_a_scale_bar_is_as_long_as_it_says(mpp, width, pixels):
  drawing = figure.Figure((pixels / 100, 4))
  ax = drawing.subplots()
  ax.imshow(np.zeros((9, 99)), extent=(0, width, 9, 0), aspect='auto')

  def drawn(source):
    slide = types.SimpleNamespace(mpp=mpp, mpp_source=source)
    scale_bar.add_scale_bar(ax, scale_bar.known_mpp(slide))
    drawing.draw_without_rendering()
    return ax.artists

  assert not drawn('default_mpp')
  (bar,) = drawn('openslide')
  length = bar.size_bar.get_children()[0].get_width()
  text, power = bar.txt_label.get_text().split(', ')
  number, unit = text.split()
  micrometres = float(number) * {'µm': 1, 'mm': 1000}[unit]
  assert micrometres == pytest.approx(length * mpp)
  assert number.strip('0.')[0] in '125' and width / 10 < length <= width / 3
  per_pixel = mpp * width / ax.get_window_extent().width
  assert float(power[:-1]) == pytest.approx(10 / per_pixel, rel=0.06)


@pytest.mark.parametrize('rank_by', top_tiles.RANKS)
def test_pictures_show_the_tiles_that_score_highest_and_lowest(
  run, of_slide, rank_by, tmp_path
):
  # What an earlier call left goes, of this slide alone.
  others = [tmp_path / '007.a_1_1_0.5.png', tmp_path / '007_1_0.5.png']
  for path in others:
    path.touch()
  by = {'attention': of_slide.multiples, 'probability': of_slide.probability}
  values = by[rank_by](of_slide.predicted)
  kept = np.sort(values[of_slide.shown])[::-1]
  n = len(kept)
  for count, wanted in (
    (100, range(1, n + 1)),  # Each once.
    (4, [1, 2, 3, 4, n - 3, n - 2, n - 1, n]),
  ):
    slide = Slides(run).files()['007.a']
    made = top_tiles.write(
      tmp_path, slide, of_slide, rank_by=rank_by, count=count
    )
    assert set(tmp_path.iterdir()) == {*made, *others}
    *tiles, sheet = made
    assert sheet.name == '007.a_sheet.png'
    ranks = [int(path.name.split('_')[1]) for path in tiles]
    assert ranks == list(wanted)
  for path, rank in zip(tiles, ranks, strict=True):
    assert path.name.endswith(f'_{kept[rank - 1]:.4f}.png')
    (i,) = np.flatnonzero(values == kept[rank - 1])
    image = np.asarray(Image.open(path))
    assert image.shape == (SIDE, SIDE, 3)
    expected = drawn_maps.pixel(of_slide.coords[i])
    assert abs(image - expected).max() <= 8  # JPEG; neighbours differ by 20.


def test_what_lies_beyond_the_slide_is_grey(run, of_slide, tmp_path):
  """CLAM and TRIDENT place tiles across the edge."""
  corner = np.array([[576, 448]])
  one = dataclasses.replace(
    of_slide,
    coords=corner,
    **{k: getattr(of_slide, k)[:, :1] for k in ('attention', 'instance_prob')},
    kept=np.ones((3, 1), bool),
  )
  slide = Slides(run).files()['007.a']
  tile, _ = top_tiles.write(
    tmp_path, slide, one, rank_by='probability', count=1
  )
  image = np.asarray(Image.open(tile)).astype(int)
  height, width = drawn_maps.HEIGHT - 448, drawn_maps.WIDTH - 576
  inside = image[:height, :width]
  assert abs(inside - drawn_maps.pixel(corner[0])).max() <= 8
  assert (image[height:] == 160).all()
  assert (image[:, width:] == 160).all()
  before = dataclasses.replace(one, coords=np.array([[-24, -16]]))
  with Slide(slide) as opened:
    image = np.asarray(top_tiles.read(opened, before, 0)).astype(int)
  assert abs(image[16:56, 24:64] - drawn_maps.pixel([0, 0])).max() <= 8
  assert (image[:16] == 160).all() and (image[:, :24] == 160).all()


def test_the_script_draws_all_slides_but_one_it_cannot_read(run, capsys):
  flags = ['--geojson', '--top_tiles=1', '--top_fraction=0.25']
  with pytest.raises(SystemExit) as error:
    draw_maps.main(['draw_maps', f'--run={run}', *flags])
  assert error.value.code.startswith('error: slides that failed: 1\n  broken: ')
  assert 'slides with maps: 2,' in capsys.readouterr().out
  for name in ('007.a', '007'):
    of_slide = tile_scores.read(tile_scores.find(run)[name])
    content = strict((run / 'qupath' / f'{name}.geojson').read_text())
    about = [feature['properties'] for feature in content['features']]
    tiles = [x['name'] for x in about if x['objectType'] == 'detection']
    best = top_tiles.order(of_slide, 'attention')[: -(-len(of_slide) // 4)]
    assert tiles == [f'tile {i}' for i in best]
  with pytest.raises(SystemExit, match='--slide=008: no scores'):
    draw_maps.main(['draw_maps', f'--run={run}', '--slide=008'])
  elsewhere = run.parent / 'elsewhere'
  elsewhere.mkdir()
  shutil.copy(run.parent / 'slides' / '007.tiff', elsewhere / 'other.tiff')
  flags = [f'--run={run}', f'--slides_dir={elsewhere}']
  with pytest.raises(SystemExit, match='No slide has a slide file'):
    draw_maps.main(['draw_maps', *flags])


@pytest.mark.parametrize('tested', [True, False])
def test_pictures_of_a_run_that_tests_nothing_say_so(run, monkeypatch, tested):
  notes, slide = [], '007.a'

  def draw(path, scores, *, label, note):
    notes.append((path.stem, label, note))
    raise MapError('not drawn')

  monkeypatch.setattr(overlay, 'draw', draw)
  cohort = mock.Mock(classes=drawn_maps.CLASSES, label=[1])
  cohort.manifest.slide = [slide]
  cohort.slides = {slide: Slides(run).files()[slide]}
  material = mock.Mock(cohort=cohort, splits=[mock.Mock(test=np.array(tested))])
  assert crossval.draw_heat_maps(Folder(run), 0, material, limit=1) == [
    'not drawn'
  ]
  note = None if tested else tile_scores.VALIDATION
  assert notes == [(slide, 'lymphoma', note)]


def test_outlines_are_found_beside_the_slides_or_where_asked(
  run, of_slide, tmp_path
):
  path = Slides(run).files()['007.a']

  def framed(**flags):
    drawing = overlay.draw(path, of_slide, **flags)
    legend = [t.get_text() for t in drawing.subfigs[0].legends[0].texts]
    panel = drawing.subfigs[0].axes[0].patches
    rings = [p for p in panel if type(p) is patches.Polygon]
    assert ('known outlines' in legend) == bool(rings)
    return [p.get_xy()[:-1].tolist() for p in rings]

  assert framed() == []
  ring = [[10, 10], [300, 20], [200, 250]]
  shape = {'type': 'Polygon', 'coordinates': [[*ring, ring[0]]]}
  (tmp_path / '007.a.geojson').write_text(json.dumps({'geometry': shape}))
  assert framed(outlines_dir=tmp_path) == [ring]
  beside = path.parent.parent / 'outlines'
  shutil.copytree(tmp_path, beside)
  assert framed() == [ring]
  (beside / '007.a.geojson').write_text('[')
  with pytest.raises(MapError, match=r'007\.a\.geojson'):
    framed()
  shutil.rmtree(beside)


def test_probabilities_of_one_fold_are_those_of_no_other(tmp_path):
  for fold in range(2):  # Repeated random splits test a slide in several.
    path = tmp_path / f'fold_{fold}' / 'predictions.csv'
    path.parent.mkdir()
    path.write_text(f'slide_id,split,prob_x\na,test,0.{fold}\n')
  assert Slides(tmp_path).predictions() == {'a': {'x': 0.05}}
  assert Slides(tmp_path, fold=1).predictions() == {'a': {'x': 0.1}}


def test_slides_are_where_the_run_says_or_cost_their_pictures(
  run, tmp_path, capsys
):
  assert Slides(run).labels() == {'007.a': 'lymphoma'}  # Of the test part.
  drawn_maps.write_config(tmp_path, flags={'slides_dir': 'gone'})
  assert Slides(tmp_path).files() == {}
  assert 'says that the slides are in gone' in capsys.readouterr().out
  with pytest.raises(SlideError, match='absent: no such folder'):
    Slides(tmp_path, slides_dir='absent').files()
  # The phantom's are beside its features.
  for folder, names in (
    (run.parent, {'007', '007.a', 'broken'}),
    (tmp_path / 'gone', set()),
  ):
    cohort = {'features_dir': str(folder / 'features_1')}
    drawn_maps.write_config(tmp_path, cohort=cohort)
    assert set(Slides(tmp_path).files()) == names


@pytest.mark.parametrize(
  'stated, times, other',
  [
    (True, 2, 'of a slide of 1200 x 940'),
    (False, 2, 'to x 1024, y 768'),
    (False, -1, 'from x -512, y -384 to x 0, y 0'),
  ],
)
def test_slides_of_another_size_are_refused_with_both_sizes(
  tmp_path, stated, times, other, capsys
):
  run = drawn_maps.run_folder(tmp_path, ('a', 'b'))
  size = {'level0_width': 1200, 'level0_height': 940}
  coords = drawn_maps.lattice() * times
  arrays = drawn_maps.scores(coords, 0)
  for fold in range(3):  # Of twice, or not at all, where the slide file is.
    drawn_maps.write_scores(run, fold, 'b', arrays, **(size if stated else {}))
  with pytest.raises(SystemExit) as error:
    draw_maps.main(['draw_maps', f'--run={run}', '--geojson'])
  assert 'slides with maps: 1,' in capsys.readouterr().out
  lines = error.value.code.splitlines()
  assert lines[0] == 'error: slides that failed: 1'
  assert 'b.tiff: has 600 x 470 px, but the tiles of b are' in lines[1]
  assert f'{other} px' in lines[1]
  assert not list(run.glob('figures/*/b*')) + list(run.glob('figures/*/*/b*'))
  assert (run / 'qupath/b.geojson').exists()  # It is in the tiles' own pixels.
  with pytest.raises(MapError, match=r'b\.tiff: has 600 x 470 px'):
    slide_view.SlideView(tmp_path / 'slides/b.tiff', tile_scores.find(run)['b'])


def test_scores_whose_reading_never_ends_are_named(tmp_path, monkeypatch):
  monkeypatch.setattr(inspection, '_PATIENCE', 1)
  arrays = drawn_maps.scores(drawn_maps.lattice(4, 4), 0)
  path = drawn_maps.write_scores(tmp_path, 0, 'a', arrays)
  content = bytearray(path.read_bytes())
  texts = content.index(b'GCOL') + 16
  content[texts : texts + 128] = bytes(128)
  path.write_bytes(content)
  with pytest.raises(MapError, match=r'a\.h5: damaged'):
    tile_scores.read({0: path})
