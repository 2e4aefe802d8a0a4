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

from experiments.maps import geojson
from experiments.maps.tile_scores import TileScores

SIDE = drawn_maps.SIDE
C = len(drawn_maps.CLASSES)


def scores_of(coords, folds=2, kept=1.0, side=SIDE, name='007.a'):
  drawn = [drawn_maps.scores(coords, seed, kept=kept) for seed in range(folds)]
  arrays = {
    key: np.stack([d[key] for d in drawn])
    for key in ('prob', 'instance_prob', 'attention', 'kept')
  }
  of_slide = name, tuple(range(folds)), drawn_maps.CLASSES
  return TileScores(*of_slide, coords.astype(int), side, **arrays)


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
  features = strict(path.read_text(encoding='utf-8'))['features']
  assert len(features) == count
  return scores, features, path


def kind(feature):
  return feature['properties']['objectType']


def test_every_line_is_a_feature(written):
  _, features, path = written
  first, *lines, last = path.read_text().splitlines()
  assert strict(first + last) == {'type': 'FeatureCollection', 'features': []}
  assert [strict(x.rstrip(',')) for x in lines] == features


def test_features_are_what_qupath_reads(written):
  """Names of PathObjectTypeAdapters in QuPath 0.4 and later."""
  scores, features, _ = written
  allowed = {'objectType', 'name', 'classification', 'measurements'}
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
      assert name in scores.classes
      assert len(colour) == 3
      assert all(isinstance(x, int) and 0 <= x <= 255 for x in colour)
      assert colours.setdefault(name, colour) == colour
  assert len({tuple(c) for c in colours.values()}) == len(colours) == C


def test_ids_are_uuids_that_stay(written, tmp_path):
  scores, features, path = written
  ids = {uuid.UUID(feature['id']) for feature in features}
  assert len(ids) == len(features)
  again = geojson.of_slide(scores, 0.4, np.arange(len(scores)))
  geojson.write(tmp_path / 'b.geojson', again)
  assert (tmp_path / 'b.geojson').read_bytes() == path.read_bytes()
  other = scores_of(scores.coords, name='other')
  others = geojson.of_slide(other, 0.4, np.arange(len(other)))
  assert not {uuid.UUID(f['id']) for f in others} & ids


def shoelace(ring):
  (x, y), (x1, y1) = np.array(ring[:-1]).T, np.array(ring[1:]).T
  return (x * y1 - x1 * y).sum() / 2


def test_rings_are_closed_turn_the_right_way_and_lie_on_the_slide(written):
  """RFC 7946, 3.1.6, in whole level-0 pixels."""
  for feature in written[1]:
    assert feature['geometry']['type'] == 'Polygon'
    rings = feature['geometry']['coordinates']
    for i, ring in enumerate(rings):
      assert len(ring) >= 4
      assert ring[0] == ring[-1]
      assert all(isinstance(x, int) for p in ring for x in p)
      assert (shoelace(ring) > 0) == (i == 0)
    shape = geometry.shape(feature['geometry'])
    assert shape.is_valid
    frame = shapely.box(0, 0, drawn_maps.WIDTH, drawn_maps.HEIGHT)
    assert shape.within(frame)


def test_detections_are_the_tiles(written):
  scores, features, _ = written
  found = [f for f in features if kind(f) == 'detection']
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
        wanted = pytest.approx(np.nan_to_num(value), rel=1e-5)
        assert (key in measured) == np.isfinite(value)
        assert measured.get(key, 0) == wanted
    assert measured['folds that keep it'] == scores.kept[:, i].sum()
    assert ('classification' in feature['properties']) == scores.shown[i]


def test_only_the_tiles_asked_for_are_written_and_in_their_order():
  scores = scores_of(drawn_maps.lattice())
  features = geojson.of_slide(scores, 0.5, np.array([5, 2, 9]))
  names = [f['properties']['name'] for f in features if kind(f) == 'detection']
  assert names == ['tile 5', 'tile 2', 'tile 9']


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
    assert holes == shut_off(component) * SIDE**2
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
  ((polygon, _),) = geojson.regions(scores, 1, 0.5)
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


def test_a_failure_leaves_the_old_file(tmp_path):
  path = tmp_path / 'a.geojson'
  geojson.write(path, [{'a': 1.0}])
  before = path.read_bytes()
  with pytest.raises(ValueError, match='JSON'):
    geojson.write(path, [{'a': 1.0}, {'a': np.nan}])
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]
