"""Annotations of CAMELYON16 in every format, and the masks made of them."""

import gzip
import json

from matplotlib.path import Path as Outline
import numpy as np
import pytest
import shapely
import tifffile

from data import outlines
from data.camelyon16 import annotations
from data.labelled_tiles import TileError
from data.outlines import Ring

SQUARE = [[64, 64], [512, 64], [512, 448], [64, 448]]
HOLE = [[128, 128], [256, 128], [256, 256], [128, 256]]
FAR = [[640, 640], [704, 640], [704, 704]]


def xml(*shapes):
  """ASAP's XML of (group, corners)."""
  return (
    '<?xml version="1.0"?>\n<ASAP_Annotations>\n<Annotations>'
    + ''.join(
      f'<Annotation Name="{i}" Type="Polygon" PartOfGroup="{group}" '
      'Color="#F4FA58"><Coordinates>'
      + ''.join(
        f'<Coordinate Order="{k}" X="{x}" Y="{y}" />'
        for k, (x, y) in enumerate(corners)
      )
      + '</Coordinates></Annotation>'
      for i, (group, corners) in enumerate(shapes)
    )
    + '</Annotations><AnnotationGroups /></ASAP_Annotations>'
  )


def write_mask(path, levels):
  """Writes a pyramid of grey pixels [H, W], uncompressed, tiles of 256.

  Tiles that are 0 throughout are not in the file, as ASAP leaves them out.
  """
  with tifffile.TiffWriter(path) as file:
    for k, level in enumerate(levels):
      height, width = level.shape
      padded = np.pad(level, ((0, -height % 256), (0, -width % 256)))
      tiles = [
        padded[y : y + 256, x : x + 256]
        for y in range(0, height, 256)
        for x in range(0, width, 256)
      ]
      file.write(
        (tile if tile.any() else None for tile in tiles),
        shape=level.shape,
        dtype=np.uint8,
        tile=(256, 256),
        photometric='minisblack',
        subfiletype=int(k > 0),
        metadata=None,
      )


@pytest.fixture
def truth():
  """Level 6 of SQUARE less HOLE and the triangle FAR, [12, 12]."""
  mask = np.zeros((12, 12), bool)
  mask[1:7, 1:8] = True
  mask[2:4, 2:4] = False
  mask[10, 10] = True
  return mask


def test_all_formats_hold_the_same_tumour(tmp_path, truth):
  far = [*FAR[:2], [704, 706]]  # Its middle is inside.
  entry = {'positive': [SQUARE, far], 'negative': [HOLE]}
  named = {
    key: [{'name': 'Annotation', 'vertices': ring} for ring in rings]
    for key, rings in entry.items()
  }
  (tmp_path / 'Tumor_001.xml').write_text(
    xml(('Tumor', SQUARE), ('_1', far), ('_2', HOLE))
  )
  (tmp_path / 'tumor_002.json').write_text(json.dumps(named))
  fine = np.kron(truth, np.ones((64, 64), np.uint8)).astype(np.uint8)
  levels = [fine * 255, fine[::32, ::32] * 255, fine[::64, ::64] * 255]
  write_mask(tmp_path / 'Tumor_003_Mask.tif', levels)
  write_mask(tmp_path / 'tumor_004_mask.tiff', [v // 255 for v in levels])
  (tmp_path / 'tumor_004.tif').touch()  # The slide itself.
  found = annotations.find(tmp_path)
  names = [f'tumor_00{i}' for i in range(1, 5)]
  assert sorted(found.files) == names
  bundle = tmp_path / 'all.json.gz'
  bundle.write_bytes(gzip.compress(json.dumps({'Tumor_001': entry}).encode()))
  cases = [(found, name) for name in names]
  cases.append((annotations.find(bundle), 'tumor_001'))
  for some, name in cases:
    for scale in (32, 64):
      mask = np.kron(truth, np.ones((64 // scale,) * 2)).astype(bool)
      got = some.mask(name, mask.shape, scale)
      if name in ('tumor_003', 'tumor_004') or scale == 64:
        np.testing.assert_array_equal(got, mask)
  # Holes are left in where asked; masks have them cut out already.
  filled = truth.copy()
  filled[2:4, 2:4] = True
  np.testing.assert_array_equal(
    found.mask('tumor_001', (12, 12), 64, holes=False), filled
  )
  wide = found.mask('tumor_003', (13, 11), 64)
  np.testing.assert_array_equal(wide[:12], truth[:, :11])
  assert not wide[12:].any()


def test_all_slides_without_annotation_are_named(tmp_path):
  (tmp_path / 'tumor_001.json').write_text('{"positive": [], "negative": []}')
  found = annotations.find(tmp_path)
  found.require(['tumor_001'])
  with pytest.raises(TileError, match=r'2 tumour .*: normal_086, tumor_002$'):
    found.require(['tumor_002', 'tumor_001', 'normal_086'])
  with pytest.raises(TileError, match='tumor_002'):
    found.rings('tumor_002')


def test_two_annotations_of_one_slide_are_refused(tmp_path):
  (tmp_path / 'tumor_001.json').write_text('{}')
  (tmp_path / 'Tumor_001.xml').touch()
  with pytest.raises(TileError, match='tumor_001: both'):
    annotations.find(tmp_path)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(TileError, match=r'no <slide>\.xml'):
    annotations.find(tmp_path / 'empty')
  with pytest.raises(TileError, match=r'absent: cannot be read'):
    annotations.find(tmp_path / 'absent')


@pytest.mark.parametrize('kind', ['json', 'xml'])
def test_outlines_without_an_area_are_left_out_aloud(tmp_path, kind):
  line = [[1, 2], [3, 4], [1, 2]]
  text = xml(('Tumor', line), ('Tumor', SQUARE))
  if kind == 'json':
    text = json.dumps({'positive': [line, SQUARE], 'negative': []})
  path = tmp_path / f'tumor_054.{kind}'
  path.write_text(text)
  with pytest.warns(UserWarning, match=r'tumor_054.* no area'):
    (ring,) = annotations.find(tmp_path).rings('tumor_054')
  np.testing.assert_array_equal(ring.corners, SQUARE)
  if kind == 'xml':
    with pytest.raises(TileError, match='an outline of 2 corners'):
      outlines.read(path)


@pytest.mark.parametrize('kind', ['json', 'xml'])
def test_corners_beyond_all_numbers_are_refused(tmp_path, kind):
  corners = [[10**400, 0], [1, 0], [1, 1]]
  text = xml(('Tumor', corners))
  if kind == 'json':
    text = json.dumps({'positive': [corners], 'negative': []})
  (tmp_path / f'tumor_001.{kind}').write_text(text)
  with pytest.raises(TileError, match=rf'tumor_001\.{kind}'):
    annotations.find(tmp_path).rings('tumor_001')


@pytest.mark.parametrize(
  'values, fault', [([0, 7], 'value.* 7;'), ([1, 255], 'both 1 and 255')]
)
def test_masks_of_unknown_values_are_refused(tmp_path, values, fault):
  level = np.zeros((300, 300), np.uint8)
  level[:2, 0] = values
  write_mask(tmp_path / 'tumor_001_mask.tif', [level])
  found = annotations.find(tmp_path)
  with pytest.raises(TileError, match=fault):
    found.mask('tumor_001', (300, 300), 1)
  with pytest.raises(TileError, match='no level is 32 times'):
    found.mask('tumor_001', (10, 10), 32)
  with pytest.raises(TileError, match='a mask has no outlines'):
    found.rings('tumor_001')


def test_2_is_a_hole_in_masks(tmp_path):
  level = np.zeros((260, 270), np.uint8)
  level[10:50, 10:50], level[20:30, 20:30] = 1, 2
  write_mask(tmp_path / 'tumor_001_mask.tif', [level])
  mask = annotations.find(tmp_path).mask('tumor_001', (260, 270), 1)
  np.testing.assert_array_equal(mask, level == 1)


def random_rings(rng, count):
  """Stars of up to 12 corners, at random places, some beyond the mask."""
  rings = []
  for i in range(count):
    angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 13)))
    radius = rng.uniform(20, 300, (len(angle), 1))
    star = np.stack([np.cos(angle), np.sin(angle)], 1) * radius
    corners = rng.uniform(0, 640, 2) + star
    if i % 3 == 0:
      corners = corners.round(-1)  # Corners and edges on middles of pixels.
    rings.append(Ring(corners, i % 4 == 3))
  return rings


def test_masks_hold_the_pixels_whose_middle_is_inside():
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:32, :40]
  for scale in (20, 13.7):
    middle = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) * scale
    for _ in range(20):
      rings = random_rings(rng, 6)
      for holes in (True, False):
        mask = outlines.rasterise(rings, (32, 40), scale, holes=holes)
        inside = shapely.contains_xy(
          outlines.region(rings, holes=holes), middle
        )
        np.testing.assert_array_equal(mask.ravel(), inside)


def test_points_are_inside_where_matplotlib_says_so():
  rng = np.random.default_rng(1)
  points = rng.uniform(-50, 700, (500, 2))
  for ring in random_rings(rng, 30):
    expected = Outline(ring.corners).contains_points(points)
    found = shapely.contains_xy(
      outlines.region([Ring(ring.corners, False)]), points
    )
    np.testing.assert_array_equal(found, expected)


def test_touching_outlines_share_no_pixel_and_leave_none_out():
  left = Ring(np.array([[0, 0], [100, 0], [60, 100], [0, 100]], float), False)
  right = Ring(
    np.array([[100, 0], [160, 0], [160, 100], [60, 100]], float), False
  )
  parts = [
    outlines.rasterise([r], (10, 16), 10).astype(int) for r in (left, right)
  ]
  np.testing.assert_array_equal(sum(parts), 1)
