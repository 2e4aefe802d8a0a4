"""Outlines are read exactly, and cover the tiles that they should."""

import json

from hypothesis import given, settings, strategies as st
import numpy as np
from PIL import Image, ImageDraw
import pytest
import shapely

from data import outlines
from data.labelled_tiles import TileError
from data.outlines import Ring, covered
from data.phantom import cohort
from data.phantom.slide import LABELS
from data.slides import Slide
from data.tiling import tile_grid

SQUARE = [[10, 10], [50, 10], [50, 50], [10, 50], [10, 10]]
HOLE = [[20, 20], [30, 20], [30, 30], [20, 30], [20, 20]]


def feature(kind, coordinates):
  return {
    'type': 'Feature',
    'geometry': {'type': kind, 'coordinates': coordinates},
    'properties': {},
  }


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


@settings(max_examples=20)
@given(
  st.lists(st.floats(0.2, 1), min_size=3, max_size=12),
  st.floats(3, 40),
  st.floats(0, 6),
)
def test_tiles_share_the_area_of_any_star(radii, size, turn):
  angle = turn + 2 * np.pi * np.arange(len(radii)) / len(radii)
  star = 50 + 45 * np.array(radii) * [np.cos(angle), np.sin(angle)]
  x, y = star
  area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
  n = int(np.ceil(100 / size))
  part = covered(rings(star.T), grid(n, size), size)
  assert part.sum() * size**2 == pytest.approx(area, rel=1e-6)
  assert covered(rings(star.T), np.array([[0, 0]]), 100)[0] == pytest.approx(
    area / 1e4
  )


def test_geojson_and_xml_of_the_same_outlines_are_the_same(tmp_path):
  path = tmp_path / 'a.json'
  other = (np.array(SQUARE) + 100).tolist()
  files = {
    'a.json': {
      'type': 'FeatureCollection',
      'features': [
        feature('Polygon', [SQUARE, HOLE]),
        feature('Polygon', [other]),
      ],
    },
    'b.geojson': [feature('MultiPolygon', [[SQUARE, HOLE], [other]])],
  }
  for name, content in files.items():
    (tmp_path / name).write_text(json.dumps(content))

  def annotation(i, ring, group):
    corners = ''.join(
      f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>'
      for k, (x, y) in reversed(list(enumerate(ring[:-1])))
    )
    return (
      f'<Annotation Name="A{i}" PartOfGroup="{group}" Type="Polygon">'
      f'<Coordinates>{corners}</Coordinates></Annotation>'
    )

  (tmp_path / 'c.xml').write_text(
    '<?xml version="1.0"?><ASAP_Annotations><Annotations>'
    + annotation(0, SQUARE, '_0')
    + annotation(1, HOLE, '_2')
    + annotation(2, other, 'Tumor')
    + '</Annotations></ASAP_Annotations>'
  )
  tiles = grid(16, 10)
  parts = [
    covered(outlines.read(tmp_path / name), tiles, 10)
    for name in ('a.json', 'b.geojson', 'c.xml')
  ]
  assert parts[0].sum() == 16 - 1 + 16
  np.testing.assert_array_equal(parts[0], parts[1])
  np.testing.assert_array_equal(parts[0], parts[2])
  assert set(np.unique(parts[0])) == {0, 1}
  path.write_text('{"features": []}')
  assert outlines.read(path) == []


@pytest.mark.parametrize(
  'name, content, found',
  [
    ('a.json', '{', 'JSONDecodeError'),
    ('a.json', '3', 'TypeError'),
    ('a.json', '{"features": [{}]}', "KeyError: 'geometry'"),
    ('a.json', json.dumps([feature('Point', [1, 2])]), 'is a Point'),
    ('a.json', json.dumps([feature('Polygon', [[[1, 2]]])]), '1 corners'),
    ('a.json', json.dumps([feature('Polygon', [[]])]), '0 corners'),
    ('a.json', '[{"geometry": null}]', 'TypeError'),
    (
      'a.json',
      '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, NaN], '
      '[5, 6]]]}}]',
      'a place unknown',
    ),
    ('a.xml', '<ASAP_Annotations>', 'ParseError'),
    ('a.xml', '<html/>', 'its root is html'),
    (
      'a.xml',
      '<ASAP_Annotations><Annotation Name="A" Type="Dot"/></ASAP_Annotations>',
      'annotation A is a Dot',
    ),
  ],
)
def test_what_is_no_outline_is_named(name, content, found, tmp_path):
  (tmp_path / name).write_text(content)
  with pytest.raises(TileError, match=found) as error:
    outlines.read(tmp_path / name)
  assert name in str(error.value)


@given(text=st.text(max_size=80))
def test_any_text_is_no_outline_or_a_named_fault(text, tmp_path_factory):
  folder = tmp_path_factory.mktemp('fuzz')
  for name in ('a.json', 'a.xml'):
    (folder / name).write_bytes(text.encode('utf-8', 'surrogatepass'))
    try:
      assert outlines.read(folder / name) == []
    except TileError as error:
      assert name in str(error)


def test_the_phantoms_outlines_mark_its_lesions(tmp_path):
  name, spec = next(
    (name, spec)
    for name, spec in cohort.specs(1, 0).items()
    if spec.label not in ('normal', 'Normal', LABELS[0])
  )
  for folder in ('slides', 'outlines'):
    (tmp_path / folder).mkdir()
  cohort._write_slide(tmp_path, name, spec)
  path = tmp_path / f'outlines/{name}.json'
  shapes = json.loads(path.read_text())
  with Slide(tmp_path / f'slides/{name}.tiff') as slide:
    drawn = Image.new('L', (slide.width, slide.height))
    side = round(40 / slide.mpp)
    tiles = tile_grid(slide, tile_size=40, mpp=1.0)
  for shape in shapes['features']:
    corners = [tuple(c) for c in shape['geometry']['coordinates'][0]]
    ImageDraw.Draw(drawn).polygon(corners, fill=1)
  part = np.array(
    [
      np.asarray(drawn)[y : y + side, x : x + side].mean()
      for x, y in tiles.coords
    ]
  )
  sure = abs(part - 0.5) > 0.03
  assert sure.mean() > 0.95 and (part > 0.5).any() and (part < 0.5).any()
  found = covered(outlines.read(path), tiles.coords, tiles.size_level0)
  np.testing.assert_array_equal(found[sure] >= 0.5, part[sure] > 0.5)
