"""Nodes: found, measured, boxed and cut out of their volumes."""

import pathlib

import numpy as np
import pytest

from data.ct import VolumeError, nodes, resample, table
from data.ct.volumes import Volume

SPACING = (3.0, 1.0, 0.8)
SIZE = (12, 60, 70)


def ball(centre, radius, size=SIZE, spacing=SPACING):
  """A ball; centre in mm from the corner of the volume, (z, y, x)."""
  at = [(np.arange(n) + 0.5) * s for n, s in zip(size, spacing, strict=True)]
  z, y, x = np.meshgrid(*at, indexing='ij')
  away = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
  return away < radius**2


def found_in(mask):
  numbered = nodes.parts(mask)
  return numbered, *nodes.find(numbered, SPACING)


def test_nodes_are_connected_parts_of_one_value():
  mask = np.zeros(SIZE, np.int32)
  mask[ball((18, 20, 20), 5)] = 2
  mask[ball((18, 20, 29), 4)] = 4  # Touches the first.
  mask[ball((18, 45, 40), 6)] = 4
  mask[3, 50, 60] = 4  # A speck.
  numbered, found, specks = found_in(mask)
  assert specks == 1
  assert len(found) == 3
  assert [len(np.unique(mask[numbered == n.index])) for n in found] == [1] * 3
  expected = [4 / 3 * np.pi * r**3 for r in (5, 6, 4)]
  volume = [n.volume for n in found]
  np.testing.assert_allclose(volume, expected, rtol=0.08)
  np.testing.assert_allclose([n.extent for n in found], [10, 12, 8], atol=1)
  assert nodes.parts(mask, 2).max() == 1
  corner = np.zeros(SIZE, np.int32)
  corner[4, 4, 4] = corner[5, 5, 5] = 1
  assert nodes.parts(corner).max() == 1


def test_nodes_cut_by_an_end_are_marked():
  mask = ball((0, 30, 20), 6) | ball((36, 30, 40), 6) | ball((18, 10, 10), 6)
  _, found, _ = found_in(mask)
  assert sorted(n.is_cut for n in found) == [False, True, True]
  middle = next(n for n in found if not n.is_cut)
  np.testing.assert_allclose(
    np.array(middle.corner) * resample.SPACING, 10, atol=1
  )
  # 10 mm to either border.
  assert middle.room in (24, 26)


def test_the_box_suits_the_most_nodes():
  extent = np.array([8.0, 9.0, 10.0, 30.0])
  room = np.array([100, 100, 100, 100])
  large, small = nodes.box_side(30), nodes.box_side(10)
  assert nodes.choose_box(extent, room, 162) == large
  assert large * resample.SPACING >= 30 > (large - 2) * resample.SPACING
  # A box of 30 mm would lose two nodes near the border for one.
  room[:2] = 20
  assert nodes.choose_box(extent, room, 162) == small
  assert nodes.choose_box(extent, room, 10) == 10  # At most.
  assert nodes.box_side(0.79 * 6) == 6
  assert nodes.box_side(0.79 * 6 + 0.01) == 8


@pytest.mark.parametrize('mode', ['nearest', 'bspline'])
def test_the_largest_slice_lies_through_the_middle(mode):
  centre, radius = (17, 31, 25), 7
  mask = ball(centre, radius)
  z = np.arange(SIZE[0], dtype=np.float32)[:, None, None]
  y = np.arange(SIZE[1], dtype=np.float32)[:, None]
  hu = np.broadcast_to(100 * z + y, SIZE).copy()
  volume = Volume(pathlib.Path('v.nii'), hu, SPACING, (0.0, 0.0, 0.0))
  numbered, (node,), _ = found_in(mask)
  side = 24
  (piece,) = nodes.cut(volume, numbered, node, side, mode=mode, every=False)
  assert piece.hu.shape == piece.inside.shape == (side, side)
  assert abs(piece.z - centre[0]) <= 3.0
  area = piece.inside.sum() * resample.SPACING**2
  assert area == pytest.approx(np.pi * radius**2, rel=0.1)
  rows, columns = np.nonzero(piece.inside)
  for places in (rows, columns):
    assert places.mean() == pytest.approx((side - 1) / 2, abs=0.6)
  # The values are those of the place: voxel z has its centre at (z + 1/2) 3 mm.
  depth = piece.z / SPACING[0] - 0.5
  first = (node.corner[0] - side // 2 + 0.5) * resample.SPACING - 0.5
  expected = 100 * depth + first + resample.SPACING * np.arange(side)
  np.testing.assert_allclose(piece.hu[:, 3], expected, rtol=1e-4)
  every = nodes.cut(volume, numbered, node, side, mode=mode, every=True)
  places = [each.z for each in every]
  np.testing.assert_allclose(np.diff(places), resample.SPACING, rtol=1e-6)
  span = places[-1] - places[0] + resample.SPACING
  assert span == pytest.approx(2 * radius, abs=3.5)
  assert max(each.inside.sum() for each in every) == piece.inside.sum()
  with pytest.raises(ValueError, match='there is room for'):
    nodes.cut(volume, numbered, node, 200, mode=mode, every=False)


def test_a_neighbour_is_not_inside():
  mask = np.zeros(SIZE, np.int32)
  mask[ball((18, 30, 24), 5)] = 1
  mask[ball((18, 30, 34), 5)] = 2
  volume = Volume(
    pathlib.Path('v.nii'), mask.astype(np.float32), SPACING, (0.0, 0.0, 0.0)
  )
  numbered, found, _ = found_in(mask)
  (piece,) = nodes.cut(
    volume, numbered, found[0], 30, mode='nearest', every=False
  )
  assert piece.hu[piece.inside].max() < 1.6
  assert (piece.hu > 1.9).any()


HEADER = 'patient_id,image_path,mask_path,label,mask_value\n'
CLASSES = ('benign', 'metastatic')


@pytest.fixture
def files(tmp_path):
  for name in ('a', 'b', 'c', 'd'):
    (tmp_path / f'{name}.nii').touch()
  return tmp_path


def write(folder, *lines, header=HEADER):
  path = folder / 'nodes.csv'
  path.write_text(header + ''.join(line + '\n' for line in lines))
  return path


GOOD = (
  'p1,a.nii,b.nii,benign,1',
  'p1,a.nii,b.nii,metastatic,2',
  'p2,c.nii,d.nii,metastatic,1',
  'p2,c.nii,d.nii,benign,3',
)


def test_rows_do_not_depend_on_their_order(files):
  rows = table.read(write(files, *GOOD), CLASSES)
  again = table.read(write(files, *GOOD[::-1]), CLASSES)
  assert rows == again
  assert [(r.patient, r.value, r.label) for r in rows] == [
    ('p1', 1, 'benign'),
    ('p1', 2, 'metastatic'),
    ('p2', 1, 'metastatic'),
    ('p2', 3, 'benign'),
  ]
  (files / 'sub').mkdir()
  path = write(files / 'sub', *GOOD)
  with pytest.raises(VolumeError, match='no file'):
    table.read(path, CLASSES)
  assert table.read(path, CLASSES, files)[0].image == files / 'a.nii'


def test_all_problems_are_listed_at_once(files):
  path = write(
    files,
    'p1,a.nii,b.nii,benign,1',
    'p1,a.nii,b.nii,benign,1',
    'p1,a.nii,b.nii,benign,',
    'p2,gone.nii,also_gone.nii,metastatic,1',
    'p2,c.nii,d.nii,malignant,1',
    ',c.nii,d.nii,benign,0',
    'p3,c.nii,d.nii,,x',
    'p4,a.nii,c.nii,benign,',
  )
  with pytest.raises(VolumeError) as error:
    table.read(path, CLASSES)
  message = str(error.value)
  for part in (
    f'{path}: 10 problem(s)',
    f'row 5: no file {files / "gone.nii"}',
    f'row 5: no file {files / "also_gone.nii"}',
    "row 6: label 'malignant', which is neither of benign, metastatic",
    'row 7: empty patient_id',
    "row 7: mask_value '0'",
    'row 8: empty label',
    "row 8: mask_value 'x'",
    f'{files / "b.nii"}, value 1: 2 rows',
    f'{files / "b.nii"}: rows with and without mask_value',
    f'{files / "a.nii"}: patients p1, p4 have the same image',
  ):
    assert part in message, part


def test_other_tables_are_refused(files):
  with pytest.raises(VolumeError, match='no column label; found'):
    table.read(
      write(files, header='patient_id,image_path,mask_path\n'), CLASSES
    )
  with pytest.raises(VolumeError, match='no rows'):
    table.read(write(files), CLASSES)
  with pytest.raises(VolumeError, match='cannot be read as CSV'):
    table.read(files / 'other.csv', CLASSES)
