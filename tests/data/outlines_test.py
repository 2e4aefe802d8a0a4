"""Outlines are read exactly, and cover the tiles that they should."""

import json

import numpy as np
import pytest
import shapely

from data import outlines
from data.labelled_tiles import TileError
from data.outlines import Ring, covered

SQUARE = [[10, 10], [50, 10], [50, 50], [10, 50], [10, 10]]
HOLE = [[20, 20], [30, 20], [30, 30], [20, 30], [20, 20]]


def feature(kind, coordinates):
  return {'geometry': {'type': kind, 'coordinates': coordinates}}


SCRIBBLE = feature(
  'Polygon', [np.random.default_rng(0).random((3000, 2)).tolist()]
)


def grid(n, size):
  y, x = np.mgrid[:n, :n] * size
  return np.stack([x.ravel(), y.ravel()], 1)


def rings(*corners):
  return [Ring(np.array(c, float), False) for c in corners]


def test_the_part_covered_is_exact():
  # A concave arrow; its area is known, and so is that within each tile.
  arrow = rings([[0, 0], [60, 30], [0, 60], [20, 30]])
  part = covered(arrow, grid(6, 10), 10)
  assert part.sum() * 100 == pytest.approx(60 * 60 / 2 - 60 * 20 / 2)
  y, x = (np.mgrid[:1200, :1200] + 0.5) / 20
  above = (y > x / 2) & (y < 60 - x / 2)
  inside = above & ~((y > 1.5 * x) & (y < 60 - 1.5 * x))
  counted = inside.reshape(6, 200, 6, 200).mean((1, 3)).ravel()
  np.testing.assert_allclose(part, counted, atol=5e-3)
  # Whatever the direction and the first corner.
  turned = rings(np.roll(arrow[0].corners[::-1], 2, 0))
  np.testing.assert_allclose(covered(turned, grid(6, 10), 10), part)


def test_where_outlines_overlap_the_area_counts_once():
  left, right = SQUARE, np.add(SQUARE, [20, 0])
  part = covered(rings(left, right, left), grid(8, 10), 10)
  assert part.sum() * 100 == pytest.approx(60 * 40)
  # A hole that lies in two outlines is one hole; beyond them it is nothing.
  holes = [Ring(np.add(HOLE, d).astype(float), True) for d in (20, 100)]
  cut = covered(rings(left, right) + holes, grid(16, 10), 10)
  assert cut.sum() * 100 == pytest.approx(60 * 40 - 10 * 10)


def test_a_ring_that_crosses_itself_is_even_odd():
  bow = rings([[0, 0], [40, 40], [40, 0], [0, 40]])
  assert covered(bow, np.zeros((1, 2)), 40)[0] == pytest.approx(1 / 2)
  angle = np.arange(5) * 4 * np.pi / 5
  star = rings(50 + 40 * np.stack([np.cos(angle), np.sin(angle)], 1))
  middle, arm = shapely.contains_xy(outlines.region(star), [[50, 50], [80, 50]])
  assert arm and not middle
  line = rings([[0, 0], [20, 20], [40, 40]])
  assert not covered(line, grid(4, 10), 10).any()


@pytest.mark.parametrize('scale', [20, 13.7])
@pytest.mark.parametrize('holes', [True, False])
def test_masks_hold_the_pixels_whose_middle_is_inside(scale, holes):
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:32, :40]
  middle = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) * scale
  for _ in range(20):
    stars = []
    for i in range(6):  # At random places, some beyond the mask.
      angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 13)))
      radius = rng.uniform(20, 300, (len(angle), 1))
      star = np.stack([np.cos(angle), np.sin(angle)], 1) * radius
      corners = rng.uniform(0, 640, 2) + star
      if i % 3 == 0:  # Corners and edges on middles of pixels.
        corners = corners.round(-1)
      stars.append(Ring(corners, i % 4 == 3))
    mask = outlines.rasterise(stars, (32, 40), scale, holes=holes)
    inside = shapely.contains_xy(outlines.region(stars, holes=holes), middle)
    np.testing.assert_array_equal(mask.ravel(), inside)


def annotation(i, ring, group):
  """ASAP's, the corners not in their order."""
  corners = ''.join(
    f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>'
    for k, (x, y) in reversed(list(enumerate(ring[:-1])))
  )
  return (
    f'<Annotation Name="A{i}" PartOfGroup="{group}" Type="Polygon">'
    f'<Coordinates>{corners}</Coordinates></Annotation>'
  )


def test_geojson_and_xml_of_the_same_outlines_are_the_same(tmp_path):
  other = (np.array(SQUARE) + 100).tolist()
  shapes = [feature('Polygon', [SQUARE, HOLE]), feature('Polygon', [other])]
  several = feature('MultiPolygon', [[SQUARE, HOLE], [other]])
  groups = [(SQUARE, '_0'), (HOLE, '_2'), (other, 'Tumor')]
  annotations = ''.join(annotation(i, *one) for i, one in enumerate(groups))
  for name, encoding, content in (
    ('a.json', 'utf-8', json.dumps({'features': shapes})),
    ('b.geojson', 'utf-8-sig', json.dumps([several])),
    ('b.geojson', 'utf-16', json.dumps([several])),
    ('c.xml', 'utf-8', f'<ASAP_Annotations>{annotations}</ASAP_Annotations>'),
  ):
    (tmp_path / name).write_text(content, encoding)
    found = outlines.read(tmp_path / name)
    assert [ring.hole for ring in found] == [False, True, False]
    for ring, corners in zip(found, (SQUARE, HOLE, other), strict=True):
      np.testing.assert_array_equal(ring.corners, corners[:-1])
  (tmp_path / 'd.json').write_text('{"features": []}')
  assert outlines.read(tmp_path / 'd.json') == []


@pytest.mark.parametrize(
  'about, moved',
  [
    ({'properties': {'objectType': 'annotation'}}, True),
    ({'properties': {'object_type': 'annotation'}}, True),  # Of QuPath 0.3.
    ({'id': 'PathAnnotationObject', 'properties': {'isLocked': False}}, True),
    ({'id': 3, 'properties': {'tissue_id': 3}}, False),
    ({'id': ['a'], 'properties': None}, False),
  ],
)
def test_any_qupath_counts_from_its_own_corner(tmp_path, about, moved):
  content = [about | feature('Polygon', [SQUARE])]
  (tmp_path / 'a.geojson').write_text(json.dumps(content))
  (ring,) = outlines.read(tmp_path / 'a.geojson', (100, 20))
  corner = np.multiply((100, 20), moved)
  np.testing.assert_array_equal(ring.corners, SQUARE[:-1] + corner)


def box(low, high):
  return [[low, low], [high, low], [high, high], [low, high], [low, low]]


@pytest.mark.parametrize('layout', ['TRIDENT', 'QuPath'])
@pytest.mark.parametrize('turn', [0, 1])
def test_tissue_in_a_hole_of_other_tissue_is_tissue(layout, turn, tmp_path):
  """As both write it, in either order of the outlines."""
  shapes = [
    feature('Polygon', [box(0, 100), box(20, 80)]),
    feature('Polygon', [box(40, 70), box(50, 60)]),
  ][:: 1 - 2 * turn]
  content = {'type': 'FeatureCollection'}
  if layout == 'TRIDENT':
    crs = {'name': 'urn:ogc:def:crs:EPSG::3857'}
    content |= {'name': 'a', 'crs': {'type': 'name', 'properties': crs}}
    about = [{'tissue_id': i} for i in range(2)]
  else:
    about = [{'objectType': 'annotation', 'name': 'Ann', 'isLocked': False}] * 2
  content['features'] = [
    {'type': 'Feature', 'properties': one} | shape
    for one, shape in zip(about, shapes, strict=True)
  ]
  (tmp_path / 'a.geojson').write_text(json.dumps(content))
  found = outlines.read(tmp_path / 'a.geojson')
  middles = [[10, 50], [30, 50], [45, 50], [55, 55], [65, 50], [90, 50]]
  inside = shapely.contains_xy(outlines.region(found), middles)
  assert inside.tolist() == [True, False, True, False, True, True]
  assert outlines.region(found).area == 100**2 - 60**2 + 30**2 - 10**2
  mask = outlines.rasterise(found, (10, 10), 10)
  assert mask.sum() * 100 == outlines.region(found).area
  assert outlines.region(found, holes=False).area == 100**2


DOT = '<Annotation Name="A" Type="Dot"/>'
LINE = annotation(0, [[1, 2], [3, 4], [1, 2]], '')


@pytest.mark.parametrize(
  'name, content, words',
  [
    ('a.json', '{', 'JSONDecodeError'),
    ('a.json', '3', 'TypeError'),
    ('a.json', '{"features": [{}]}', "KeyError: 'geometry'"),
    ('a.json', '[{"geometry": 3}]', 'TypeError'),
    ('a.json', json.dumps([feature('Polygon', [[[1, np.nan]]])]), 'unknown'),
    ('a.json', json.dumps([feature('Polygon', [[[10**400, 0]]])]), 'Overflow'),
    (
      'a.json',
      json.dumps([SCRIBBLE]),
      'crosses itself over 1000 times. Draw',
    ),
    ('a.xml', '<ASAP_Annotations>', 'ParseError'),
    ('a.xml', '<html/>', 'its root is html'),
  ],
)
def test_what_is_no_outline_is_named(name, content, words, tmp_path):
  (tmp_path / name).write_text(content)
  with pytest.raises(TileError, match=rf'{name}: .*{words}'):
    outlines.read(tmp_path / name)


@pytest.mark.parametrize(
  'name, shape, words',
  [
    ('a.json', feature('Point', [1, 2]), r'feature 0 \(Point\)'),
    ('a.json', feature('LineString', SQUARE), r'feature 0 \(LineString\)'),
    ('a.json', feature('Polygon', [[[1, 2]]]), r'feature 0 \(Polygon\)'),
    ('a.json', feature('Polygon', [[]]), r'feature 0 \(Polygon\)'),
    ('a.json', feature('Polygon', []), r'feature 0 \(Polygon\)'),
    ('a.json', feature('MultiPolygon', []), r'feature 0 \(MultiPolygon\)'),
    (
      'a.json',
      {'geometry': {'type': 'GeometryCollection', 'geometries': []}},
      'feature 0',
    ),
    ('a.json', feature('Polygon', [[[i, i] for i in range(9)]]), 'feature 0'),
    ('a.json', {'geometry': None}, r'feature 0 \(object without a shape\)'),
    ('a.xml', DOT, r'annotation A \(Dot\)'),
    ('a.xml', LINE, r'annotation A0 \(Polygon\)'),
    ('a.xml', LINE.replace('Polygon', 'PointSet'), r'A0 \(PointSet\)'),
  ],
)
def test_shapes_without_an_area_are_left_out_by_name(
  name, shape, words, tmp_path
):
  path = tmp_path / name

  def read(*shapes):
    text = f'<ASAP_Annotations>{"".join(map(str, shapes))}</ASAP_Annotations>'
    path.write_text(json.dumps(shapes) if path.suffix == '.json' else text)
    return outlines.read(path)

  if path.suffix == '.json':
    collection = {'type': 'GeometryCollection'} | {
      'geometries': [feature('Polygon', [SQUARE])['geometry']]
    }
    others = feature('Polygon', [SQUARE]), {'geometry': collection}
  else:
    square = annotation(1, SQUARE, '')
    others = square, square.replace('Polygon', 'Spline')
  with pytest.warns(UserWarning, match=rf'{name}: no area in .*{words}'):
    found = read(shape, *others)
  for ring in found:
    np.testing.assert_array_equal(ring.corners, SQUARE[:-1])
  assert len(found) == 2
  with pytest.raises(TileError, match=rf'{name}: no area in .*{words}'):
    read(shape)


@pytest.mark.parametrize('seed', range(3))
def test_the_outlines_of_a_mask_give_it_back(tmp_path, seed):
  """Holes, islands in them and pixels that touch at corners, too."""
  rng = np.random.default_rng(seed)
  mask = rng.random((12, 20)) < rng.uniform(0.3, 0.8)
  mask[2:8, 3:12], mask[4:6, 5:9], mask[4, 6] = True, False, True
  polygons = outlines.of_mask(mask, (20 * 16, 12 * 16))
  features = [{'geometry': shapely.geometry.mapping(p)} for p in polygons]
  path = tmp_path / 'a.geojson'
  path.write_text(json.dumps({'features': features}))
  back = outlines.rasterise(outlines.read(path), mask.shape, 16)
  np.testing.assert_array_equal(back, mask)
  assert sum(p.area for p in polygons) == 256 * mask.sum()
  assert outlines.of_mask(mask & False, (20, 12)) == []
