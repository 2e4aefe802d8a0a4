"""NIfTI volumes and masks: axes, grids, and what is refused."""

import gzip
import struct
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from data.ct import VolumeError, volumes

SIZE = (4, 6, 5)  # z, y, x


def ramp():
  """Every voxel is another one's value."""
  return np.arange(np.prod(SIZE), dtype=np.int16).reshape(SIZE) - 50


def write(path, array, spacing=(0.7, 0.8, 3.0), origin=(-10, 5, 7), axes=None):
  """Writes NIfTI; spacing and origin are x, y, z, as SimpleITK has them."""
  image = sitk.GetImageFromArray(array)
  image.SetSpacing(spacing)
  image.SetOrigin(origin)
  if axes is not None:
    image.SetDirection(np.asarray(axes, float).ravel().tolist())
  sitk.WriteImage(image, str(path))
  return path


def edit(path, at, code, *values):
  """Overwrites header bytes of an uncompressed file."""
  content = bytearray(path.read_bytes())
  struct.pack_into('<' + code, content, at, *values)
  path.write_bytes(content)
  return path


def turned(degrees):
  c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
  return [[1, 0, 0], [0, c, -s], [0, s, c]]


@pytest.fixture
def volume(tmp_path):
  return volumes.read(write(tmp_path / 'image.nii.gz', ramp()))


def test_a_volume_is_read_as_it_was_written(volume):
  np.testing.assert_array_equal(volume.hu, ramp())
  assert volume.hu.dtype == np.float32
  np.testing.assert_allclose(volume.spacing, (3.0, 0.8, 0.7), rtol=1e-6)
  np.testing.assert_allclose(volume.origin, (7, 5, -10))


def test_axes_are_turned_to_the_patients(volume, tmp_path):
  """The same body, stored with other axes, is the same array."""
  image = sitk.ReadImage(str(volume.path))
  for code in ('RAS', 'LPI', 'PIR'):
    other = tmp_path / f'{code}.nii'
    sitk.WriteImage(sitk.DICOMOrient(image, code), str(other))
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(other)))
    assert stored.shape != SIZE or (stored != ramp()).any()
    found = volumes.read(other)
    np.testing.assert_array_equal(found.hu, volume.hu)
    np.testing.assert_allclose(found.spacing, volume.spacing, rtol=1e-6)
    np.testing.assert_allclose(found.origin, volume.origin, rtol=1e-6)


def test_scaled_values_are_hounsfield_units(tmp_path):
  path = write(tmp_path / 'a.nii', ramp())
  edit(path, 112, '2f', 2.0, -1024.0)  # scl_slope, scl_inter
  np.testing.assert_allclose(volumes.read(path).hu, 2.0 * ramp() - 1024)


def _spacing_of_0(path):
  edit(write(path, ramp()), 80, 'f', 0.0)


def _nan_spacing(path):
  edit(write(path, ramp()), 88, 'f', np.nan)


def _no_orientation(path):
  edit(write(path, ramp()), 252, '2h', 0, 0)


def _truncated(path):
  path.write_bytes(write(path, ramp()).read_bytes()[:400])


def _truncated_header(path):
  path.write_bytes(b'\x5c\x01\0\0')


def _text(path):
  path.write_text('patient_id,image_path\n' * 40)


def _oblique(path):
  write(path, ramp(), axes=turned(8))


def _nan(path):
  array = ramp().astype(np.float32)
  array[1, 2, 3] = np.nan
  write(path, array)


def _four_dimensions(path):
  array = np.zeros((2, *SIZE), np.int16)
  sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), path)


def _a_slice(path):
  sitk.WriteImage(sitk.GetImageFromArray(ramp()[0]), path)


def _colours(path):
  array = np.zeros((*SIZE, 3), np.uint8)
  sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), path)


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (_spacing_of_0, r'no voxel spacing \(pixdim is 0, 0\.8, 3\)'),
    (_nan_spacing, 'no voxel spacing'),
    (_no_orientation, 'neither qform nor sform'),
    (_truncated, '400 of 592 bytes'),
    (_truncated_header, 'no NIfTI header'),
    (_text, 'no NIfTI header'),
    (_oblique, r'oblique: an axis is 8\.0 degrees'),
    (_nan, '1 voxels are NaN or infinite'),
    (_four_dimensions, '5 x 6 x 4 x 2; one 3-D volume'),
    (_a_slice, '5 x 6; one 3-D volume|5 x 6 x 1'),
    (_colours, 'one 3-D volume|several values'),
  ],
)
def test_what_cannot_be_used_is_named(spoil, message, tmp_path):
  path = tmp_path / 'patient7.nii'
  spoil(path)
  with pytest.raises(VolumeError, match=message) as error:
    volumes.read(path)
  assert str(path) in str(error.value)


def test_a_little_tilt_is_rounding(tmp_path):
  path = write(tmp_path / 'a.nii', ramp(), axes=turned(0.1))
  np.testing.assert_array_equal(volumes.read(path).hu, ramp())


def test_truncated_gzip_is_named(volume):
  content = volume.path.read_bytes()
  for end in (20, len(content) // 2, len(content) - 6):
    volume.path.write_bytes(content[:end])
    with pytest.raises(VolumeError, match='to its end') as error:
      volumes.read(volume.path)
    assert str(volume.path) in str(error.value)
  volume.path.write_bytes(gzip.compress(gzip.decompress(content)[:500]))
  with pytest.raises(VolumeError, match='500 of 592 bytes'):
    volumes.read(volume.path)


def test_other_files_are_refused(tmp_path):
  with pytest.raises(VolumeError, match=r'gone\.nii: no such file'):
    volumes.read(tmp_path / 'gone.nii')
  (tmp_path / 'a.png').write_bytes(b'')
  with pytest.raises(VolumeError, match=r'a\.png: neither NIfTI'):
    volumes.read(tmp_path / 'a.png')


def node():
  mask = np.zeros(SIZE, np.uint8)
  mask[1:3, 2:4, 2:4] = 3
  return mask


def test_a_mask_follows_its_volume(volume, tmp_path):
  path = write(tmp_path / 'mask.nii.gz', node())
  found = volumes.read_mask(path, volume)
  np.testing.assert_array_equal(found, node())
  image = sitk.DICOMOrient(sitk.ReadImage(str(path)), 'RAI')
  sitk.WriteImage(image, str(path))
  np.testing.assert_array_equal(volumes.read_mask(path, volume), node())


@pytest.mark.parametrize(
  ('array', 'geometry', 'message'),
  [
    (node()[:3], {}, r'its size \(z, y, x\) is \(3, 6, 5\), not \(4, 6, 5\)'),
    (
      node(),
      {'spacing': (0.7, 0.8, 2.5)},
      r'its spacing \(z, y, x\) is \(2\.5, ',
    ),
    (node(), {'origin': (-10, 5, 8)}, r'its origin \(z, y, x\) is \(8, '),
    (node(), {'axes': np.diag([-1, -1, 1])}, 'its origin'),
    (node(), {'axes': turned(5)}, 'oblique'),
    (node(), {'axes': turned(0.5)}, r'its direction is .*, not \(1, 0, 0, '),
    (node() * 0, {}, 'an empty mask'),
    (node() * np.float32(0.5), {}, '1.5 in a mask of whole numbers'),
    (np.where(node(), np.nan, 0.0), {}, '8 voxels are NaN'),
    (-node().astype(np.int16), {}, '-3 in a mask'),
  ],
)
def test_masks_that_do_not_fit_are_named(
  array, geometry, message, volume, tmp_path
):
  path = write(tmp_path / 'mask.nii.gz', array, **geometry)
  with pytest.raises(VolumeError, match=message) as error:
    volumes.read_mask(path, volume)
  assert str(path) in str(error.value)


def test_writing_keeps_the_grid(volume, tmp_path):
  path = tmp_path / 'again.nii.gz'
  volumes.write(path, node(), volume)
  np.testing.assert_array_equal(volumes.read_mask(path, volume), node())


def test_without_simpleitk_it_says_what_to_install(volume, monkeypatch):
  monkeypatch.setitem(sys.modules, 'SimpleITK', None)
  with pytest.raises(VolumeError, match=r"pip install 'kmil_jax\[ct\]'"):
    volumes.read(volume.path)
