"""Windowing and resampling against NumPy, SimpleITK and a real volume."""

import numpy as np
import pytest
from scipy import ndimage
import SimpleITK as sitk

from data.ct import resample, volumes

SPACING = (2.5, 0.7, 0.9)  # z, y, x
NAMES = {
  'linear': sitk.sitkLinear,
  'nearest': sitk.sitkNearestNeighbor,
  'bspline': sitk.sitkBSpline,
}


def by_simpleitk(array, spacing, start, stop, mode):
  """What ITK's filter makes of the same part of the same grid."""
  image = sitk.GetImageFromArray(array)
  image.SetSpacing(spacing[::-1])
  image.SetOrigin([s / 2 for s in spacing[::-1]])  # Faces are at 0.
  target = resample.SPACING
  found = sitk.Resample(
    image,
    [b - a for a, b in zip(start, stop, strict=True)][::-1],
    sitk.Transform(),
    NAMES[mode],
    [(a + 0.5) * target for a in start][::-1],
    [target] * 3,
    np.eye(3).ravel().tolist(),
    0.0,
    sitk.sitkFloat32,
  )
  return sitk.GetArrayFromImage(found)


def resampled(array, spacing, mode):
  """The whole of an array on the isotropic grid."""
  full = resample.shape(array.shape, spacing)
  return resample.region(
    array.__getitem__, array.shape, spacing, (0, 0, 0), full, mode
  )


@pytest.fixture
def array():
  rng = np.random.default_rng(0)
  return rng.normal(0, 300, (9, 14, 11)).astype(np.float32)


@pytest.mark.parametrize('mode', NAMES)
def test_the_whole_volume_is_simpleitks(mode, array):
  found = resampled(array, SPACING, mode)
  assert found.shape == (28, 12, 13)  # 22.5, 9.8 and 9.9 mm.
  expected = by_simpleitk(array, SPACING, (0, 0, 0), found.shape, mode)
  np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.parametrize('mode', NAMES)
def test_a_region_is_a_part_of_the_whole(mode):
  rng = np.random.default_rng(1)
  array = rng.normal(0, 300, (40, 45, 50)).astype(np.float32)
  whole = resampled(array, SPACING, mode)
  seen = []

  def read(at):
    seen.append(array[at].size)
    return array[at]

  start, stop = (50, 18, 20), (53, 22, 26)
  args = (array.shape, SPACING, start, stop, mode)
  found = resample.region(read, *args)
  at = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
  np.testing.assert_allclose(found, whole[at], atol=2e-3)
  assert sum(seen) < array.size * (0.01 if mode != 'bspline' else 0.5)


def test_linear_is_exact_on_a_ramp():
  """A linear function stays what it is where it is not extended."""
  z, y, x = np.indices((8, 9, 10)).astype(np.float32)
  spacing = (3.0, 0.5, 1.2)
  array = 2 * (z + 0.5) * 3.0 - (y + 0.5) * 0.5 + 5 * (x + 0.5) * 1.2
  found = resampled(array, spacing, 'linear')
  z, y, x = (np.indices(found.shape) + 0.5) * resample.SPACING
  inner = (slice(2, -2),) * 3
  np.testing.assert_allclose(
    found[inner], (2 * z - y + 5 * x)[inner], rtol=1e-4
  )


def test_one_slice_of_a_mask_stays_a_mask():
  mask = np.array([[[0, 7], [7, 0]]], np.uint8)
  found = resampled(mask, (0.79, 1.58, 1.58), 'nearest')
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found[0], np.kron(mask[0], np.ones((2, 2))))


def test_an_unknown_mode_is_refused(array):
  with pytest.raises(ValueError, match="'cubic'"):
    resampled(array, SPACING, 'cubic')


def test_window_is_its_formula():
  hu = np.array([-2000.0, -135.0, -134.0, 40.0, 215.0, 3000.0])
  expected = [0, 0, 1 / 350, 0.5, 1, 1]
  np.testing.assert_allclose(resample.window(hu), expected, atol=1e-7)
  assert resample.window(hu).dtype == np.float32


@pytest.fixture(scope='module')
def real(real_data):
  """A CT at 3 mm and its map of organs."""
  volume = volumes.read(real_data / 'ct/example_ct.nii.gz')
  path = real_data / 'ct/example_seg_fast_force_split.nii.gz'
  return volume, volumes.read_mask(path, volume)


def test_a_real_volume_is_windowed_and_resampled(real):
  volume, _ = real
  reference = np.minimum(np.maximum((volume.hu + 135) / 350, 0), 1)
  np.testing.assert_allclose(resample.window(volume.hu), reference, atol=1e-6)
  assert reference.std() > 0.2
  full = resample.shape(volume.hu.shape, volume.spacing)
  assert full == (425, 384, 463)
  start, stop = (200, 120, 150), (230, 180, 220)
  found = resample.region(
    volume.hu.__getitem__,
    volume.hu.shape,
    volume.spacing,
    start,
    stop,
    'linear',
  )
  expected = by_simpleitk(volume.hu, volume.spacing, start, stop, 'linear')
  np.testing.assert_allclose(found, expected, atol=0.05)
  assert expected.std() > 30


@pytest.mark.parametrize('mode', ['nearest', 'bspline'])
def test_organs_keep_their_volume(mode, real):
  """Within 2 % for organs above 3000 voxels, 81 ml; 5 % above 1000."""
  volume, mask = real
  size, spacing = mask.shape, volume.spacing
  full = resample.shape(size, spacing)
  change = {}
  for label, box in enumerate(ndimage.find_objects(mask), 1):
    voxels = (mask[box] == label).sum() if box else 0
    limit = 12_000 if mode == 'nearest' else 6_000  # The largest take longest.
    if not 1000 < voxels < limit:
      continue
    ratio = np.array(spacing) / resample.SPACING
    low = [int((s.start - 2) * r) for s, r in zip(box, ratio, strict=True)]
    high = [int((s.stop + 2) * r) for s, r in zip(box, ratio, strict=True)]
    found = resample.region(
      lambda at, label=label: (mask[at] == label).astype(np.float32),
      size,
      spacing,
      tuple(np.clip(low, 0, full)),
      tuple(np.clip(high, 0, full)),
      mode,
    )
    after = (found >= 0.5).sum() * resample.SPACING**3
    change[int(voxels)] = after / (voxels * np.prod(spacing)) - 1
  large = [abs(c) for voxels, c in change.items() if voxels > 3000]
  assert len(large) > 3
  assert max(large) < 0.02
  assert max(map(abs, change.values())) < 0.05
