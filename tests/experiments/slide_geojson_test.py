"""GeoJSON by the rules of RFC 7946 and as QuPath reads it."""

import itertools
import tracemalloc
import uuid

import drawn_maps
from drawn_results import strict
from hypothesis import given, strategies as st
import numpy as np
import pytest
from scipy import ndimage
import shapely
from shapely import geometry

from experiments.slide_maps import geojson
from experiments.slide_maps.tile_scores import TileScores

SIDE = drawn_maps.SIDE
C = len(drawn_maps.CLASSES)


def scores_of(coords, folds=2, kept=1.0, side=SIDE, name='007.a'):
  drawn = [drawn_maps.scores(coords, seed, kept=kept) for seed in range(folds)]
  arrays = {
    key: np.stack([d[key] for d in drawn])
    for key in ('prob', 'instance_prob', 'attention', 'kept')
  }
  return TileScores(
    slide=name,
    folds=tuple(range(folds)),
    classes=drawn_maps.CLASSES,
    coords=coords.astype(int),
    side=side,
    **arrays,
  )


def of_grid(grid):
  """Scores with the probability of class 1 on each place of a lattice."""
  y, x = np.mgrid[: grid.shape[0], : grid.shape[1]]
  scores = scores_of(np.stack([x.ravel(), y.ravel()], 1) * SIDE, folds=1)
  scores.instance_prob[0, :, 1] = grid.ravel()
  return scores


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A file of a slide with dropped tiles, parsed, and the slide's scores."""
  scores = scores_of(drawn_maps.lattice(share=0.8), kept=0.5)
  path = tmp_path_factory.mktemp('geojson') / 'a.geojson'
  order = np.arange(len(scores))
  count = geojson.write(path, geojson.of_slide(scores, 0.4, order))
  content = strict(path.read_text(encoding='utf-8'))
  assert len(content['features']) == count
  return scores, content, path


def kind(feature):
  return feature['properties']['objectType']


def test_every_line_is_a_feature(written):
  _, content, path = written
  first, *lines, last = path.read_text().splitlines()
  assert content['type'] == 'FeatureCollection'
  assert strict(first + last)['features'] == []
  assert [strict(x.rstrip(',')) for x in lines] == content['features']


def test_features_are_what_qupath_reads(written):
  """Names of PathObjectTypeAdapters in QuPath 0.4 and later."""
  scores, content, _ = written
  allowed = {'objectType', 'name', 'classification', 'measurements'}
  colours = {}
  for feature in content['features']:
    assert set(feature) == {'type', 'id', 'geometry', 'properties'}
    assert feature['type'] == 'Feature'
    said = feature['properties']
    assert {'objectType', 'name', 'measurements'} <= set(said) <= allowed
    assert said['objectType'] in ('annotation', 'detection')
    assert all(
      isinstance(value, float) and np.isfinite(value)
      for value in said['measurements'].values()
    )
    if 'classification' in said:
      name, colour = (said['classification'][k] for k in ('name', 'color'))
      assert name in scores.classes
      assert len(colour) == 3
      assert all(isinstance(x, int) and 0 <= x <= 255 for x in colour)
      assert colours.setdefault(name, colour) == colour
  assert len({tuple(c) for c in colours.values()}) == len(colours) == C


def test_ids_are_uuids_that_stay(written, tmp_path):
  scores, content, path = written
  ids = [uuid.UUID(feature['id']) for feature in content['features']]
  assert len(set(ids)) == len(ids)
  again = geojson.of_slide(scores, 0.4, np.arange(len(scores)))
  geojson.write(tmp_path / 'b.geojson', again)
  assert (tmp_path / 'b.geojson').read_bytes() == path.read_bytes()
  other = scores_of(scores.coords, name='other')
  features = geojson.of_slide(other, 0.4, np.arange(len(other)))
  assert not {uuid.UUID(f['id']) for f in features} & set(ids)


def shoelace(ring):
  (x, y), (x1, y1) = np.array(ring[:-1]).T, np.array(ring[1:]).T
  return (x * y1 - x1 * y).sum() / 2


def assert_rings(feature):
  """RFC 7946, 3.1.6, in whole level-0 pixels."""
  assert feature['geometry']['type'] == 'Polygon'
  rings = feature['geometry']['coordinates']
  for ring in rings:
    assert len(ring) >= 4
    assert ring[0] == ring[-1]
    assert all(len(p) == 2 for p in ring)
    assert all(isinstance(x, int) for p in ring for x in p)
  assert shoelace(rings[0]) > 0
  assert all(shoelace(ring) < 0 for ring in rings[1:])
  assert geometry.shape(feature['geometry']).is_valid


def test_rings_are_closed_turn_the_right_way_and_lie_on_the_slide(written):
  _, content, _ = written
  for feature in content['features']:
    assert_rings(feature)
    left, top, right, bottom = geometry.shape(feature['geometry']).bounds
    assert left >= 0
    assert top >= 0
    assert right <= drawn_maps.WIDTH
    assert bottom <= drawn_maps.HEIGHT


def test_detections_are_the_tiles(written):
  scores, content, _ = written
  found = [f for f in content['features'] if kind(f) == 'detection']
  shapes = [geometry.shape(f['geometry']) for f in found]
  corners = [shape.bounds[:2] for shape in shapes]
  np.testing.assert_array_equal(corners, scores.coords)
  union = shapely.union_all(shapes)
  assert union.area == len(scores) * SIDE**2
  assert union.equals(
    shapely.union_all(
      [shapely.box(x, y, x + SIDE, y + SIDE) for x, y in scores.coords.tolist()]
    )
  )
  for i, feature in enumerate(found):
    said = feature['properties']['measurements']
    for c, name in enumerate(scores.classes):
      for key, value in (
        (f'probability {name}', scores.probability(c)[i]),
        (f's.d. over folds {name}', scores.disagreement(c)[i]),
      ):
        assert (key in said) == np.isfinite(value)
        assert said.get(key, 0) == pytest.approx(np.nan_to_num(value), rel=1e-5)
    assert said['folds that keep it'] == scores.kept[:, i].sum()
    assert ('classification' in feature['properties']) == scores.shown[i]


def test_only_the_asked_tiles_are_written_and_in_their_order():
  scores = scores_of(drawn_maps.lattice())
  order = np.array([5, 2, 9])
  found = [
    f for f in geojson.of_slide(scores, 0.5, order) if kind(f) == 'detection'
  ]
  assert [f['properties']['name'] for f in found] == [
    'tile 5',
    'tile 2',
    'tile 9',
  ]


@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.5, 0.7]))
def test_regions_are_the_components_of_the_lattice(seed, threshold):
  grid = np.random.default_rng(seed).random((6, 7))
  mask = grid >= threshold
  labelled, count = ndimage.label(mask)  # By edges, not by corners.
  regions = geojson.regions_of(of_grid(grid), 1, threshold)
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
    assert holes == shut_off(component) * SIDE**2
    centres = (np.argwhere(component)[:, ::-1] + 0.5) * SIDE
    assert shapely.contains_xy(polygon, centres).all()
  np.testing.assert_array_equal(seen, mask)


def shut_off(component):
  """Counts the places that no path over edges joins with the outside."""
  free = np.pad(~component, 1, constant_values=True)
  labelled, _ = ndimage.label(free)
  return int((free & (labelled != labelled[0, 0])).sum())


def test_a_hole_is_kept_and_straight_edges_have_no_corners():
  grid = np.zeros((5, 5))
  grid[1:4, 1:4] = 1
  grid[2, 2] = 0
  (feature,) = (
    f
    for f in geojson.of_slide(of_grid(grid), 0.9, np.arange(0))
    if f['properties']['classification']['name'] == drawn_maps.CLASSES[1]
  )
  assert_rings(feature)
  outer, hole = feature['geometry']['coordinates']
  assert (len(outer), len(hole)) == (5, 5)
  assert -shoelace(hole) == SIDE**2
  assert feature['properties']['measurements']['tiles'] == 8


def test_slits_of_rounded_tiles_do_not_part_a_region():
  side = 51.3
  y, x = np.mgrid[:6, :6]
  coords = np.rint(np.stack([x.ravel(), y.ravel()], 1) * side)
  scores = scores_of(coords, folds=1, side=side)
  scores.instance_prob[:] = 1
  ((polygon, _),) = geojson.regions_of(scores, 1, 0.5)
  assert polygon.area == np.rint(coords.max() + side) ** 2
  assert not polygon.interiors


def test_memory_does_not_grow_with_the_file(tmp_path):
  one = next(geojson.of_slide(scores_of(drawn_maps.lattice()), 0, np.arange(1)))
  peaks = []
  for count in (50, 2000):
    tracemalloc.start()
    geojson.write(tmp_path / 'a.geojson', itertools.repeat(one, count))
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert (tmp_path / 'a.geojson').stat().st_size > 500_000
  assert peaks[1] < peaks[0] + 50_000


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_failure_leaves_the_old_file(tmp_path, bad):
  path = tmp_path / 'a.geojson'
  geojson.write(path, [{'a': 1.0}])
  before = path.read_bytes()
  with pytest.raises(ValueError, match='JSON'):
    geojson.write(path, [{'a': 1.0}, {'a': bad}])
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]
