"""CT: volumes of NIfTI and DICOM, masks, nodes, resampling, the table."""

import gzip
import locale
import os
import pathlib
import struct
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from data.ct import (
  VolumeError,
  check_size,
  dicom,
  itk_errors,
  nodes,
  resample,
  table,
  volumes,
)
from data.ct.volumes import Volume

SIZE = (4, 6, 5)  # z, y, x
# Every voxel is another one's value.
RAMP = np.arange(np.prod(SIZE), dtype=np.int16).reshape(SIZE) - 50


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
  """Overwrites header bytes of a volume as it is written."""
  content = bytearray(write(path, RAMP).read_bytes())
  struct.pack_into('<' + code, content, at, *values)
  path.write_bytes(content)
  return path


def store(array, is_vector=False):
  """Returns what writes an image of any axes."""
  image = sitk.GetImageFromArray(array, isVector=is_vector)
  return lambda path: sitk.WriteImage(image, path)


def turned(degrees):
  c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
  return [[1, 0, 0], [0, c, -s], [0, s, c]]


@pytest.fixture
def volume(tmp_path):
  return volumes.read(write(tmp_path / 'image.nii.gz', RAMP))


def test_axes_are_turned_to_the_patients(volume, tmp_path):
  """The same body, stored with other axes, is the same array."""
  np.testing.assert_array_equal(volume.hu, RAMP)
  assert volume.hu.dtype == np.float32
  np.testing.assert_allclose(volume.spacing, (3.0, 0.8, 0.7), rtol=1e-6)
  np.testing.assert_allclose(volume.origin, (7, 5, -10))
  image = sitk.ReadImage(str(volume.path))
  for code in ('RAS', 'LPI', 'PIR'):
    other = tmp_path / f'{code}.nii'
    sitk.WriteImage(sitk.DICOMOrient(image, code), str(other))
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(other)))
    assert stored.shape != SIZE or (stored != RAMP).any()
    found = volumes.read(other)
    np.testing.assert_array_equal(found.hu, RAMP)
    np.testing.assert_allclose(found.spacing, volume.spacing, rtol=1e-6)
    np.testing.assert_allclose(found.origin, volume.origin, rtol=1e-6)
  path = write(tmp_path / 'a.nii', RAMP, axes=turned(0.1))  # Rounding.
  np.testing.assert_array_equal(volumes.read(path).hu, RAMP)


def test_scaled_values_are_hounsfield_units(tmp_path):
  path = edit(tmp_path / 'a.nii', 112, '2f', 2.0, -1024.0)  # Slope, intercept.
  np.testing.assert_allclose(volumes.read(path).hu, 2.0 * RAMP - 1024)


@pytest.mark.parametrize(
  ('spoil', 'words'),
  [
    (lambda p: edit(p, 80, 'f', 0.0), r'no voxel spacing \(pixdim is 0, 0\.8'),
    (lambda p: edit(p, 88, 'f', np.nan), 'no voxel spacing'),
    (lambda p: edit(p, 252, '2h', 0, 0), 'neither qform nor sform'),
    (lambda p: p.write_bytes(b'\x5c\x01\0\0'), 'no NIfTI header'),
    (lambda p: p.write_text('patient_id,image\n' * 40), 'no NIfTI header'),
    (lambda p: write(p, RAMP, axes=turned(37)), r'oblique: .* is 37\.0 deg'),
    (lambda p: write(p, RAMP, axes=turned(60)), r'oblique: .* is 30\.0 deg'),
    (
      lambda p: write(p, RAMP, (0.08, 0.08, 0.25)),
      r'0\.25 mm\. .*has metres, c',
    ),
    (lambda p: os.mkfifo(p), 'no such file'),
    (store(np.where(RAMP == 3, np.nan, 0)), '1 voxels are NaN or infinite'),
    (store(np.stack([RAMP] * 2)), '5 x 6 x 4 x 2. One 3-D volume'),
    (store(RAMP[0]), '5 x 6. One 3-D volume|5 x 6 x 1'),
    (store(np.stack([RAMP] * 3, -1), True), 'One 3-D volume|several values'),
    (lambda p: edit(p, 40, 'h', 9), 'its size is unknown. One 3-D volume'),
    (lambda p: None, 'no such file'),
    (lambda p: edit(p, 280, 'f', -1.4), '0.7 x 0.8 x 3 mm by pixdim and 1.4 x'),
    (lambda p: edit(p, 280, 'f', np.nan), 'by pixdim and nan x'),
    (lambda p: edit(p, 320, 'f', -3.0), 'qform and sform turn its axes'),
    (
      lambda p: edit(p, 304, '5f', 1.02606, 0, 0, 0, 2.81908),  # 20 degrees.
      'not at right angles by sform, as of a tilted gantry',
    ),
    (lambda p: edit(p, 72, 'h', 64), 'of type 4 with 64 bits'),
    (lambda p: edit(p, 42, '3h', 999, 999, 999), '1.9 GiB of voxels, and 0.0'),
    (lambda p: edit(p, 42, '3h', 32767, 32767, 9999), 'GiB to read. This mach'),
    (lambda p: edit(p, 112, '2f', 1e38, 0), 'values are not finite'),
    (
      lambda p: write(p, RAMP, (8e-4, 8e-4, 2e-3)),
      r'0008 x 0\.002 mm\. .* metr',
    ),
  ],
)
def test_volumes_that_cannot_be_used_are_named(spoil, words, tmp_path):
  path = tmp_path / 'patient7.nii'
  spoil(path)
  with pytest.raises(VolumeError, match=words) as error:
    volumes.read(path)
  assert str(path) in str(error.value)


def test_truncated_gzip_and_other_files_are_named(volume, monkeypatch):
  content = volume.path.read_bytes()
  for end in (20, len(content) // 2, len(content) - 6):
    volume.path.write_bytes(content[:end])
    with pytest.raises(VolumeError, match=r'image\.nii\.gz: cannot be read'):
      volumes.read(volume.path)
  volume.path.write_bytes(gzip.compress(gzip.decompress(content)[:500]))
  with pytest.raises(VolumeError, match='500 of 592 bytes'):
    volumes.read(volume.path)
  other = volume.path.rename(volume.path.with_name('a.png'))
  with pytest.raises(VolumeError, match=r'a\.png: neither \.nii, \.nii'):
    volumes.read(other)
  monkeypatch.setitem(sys.modules, 'SimpleITK', None)
  with pytest.raises(VolumeError, match=r"pip install 'kmil_jax\[ct\]'"):
    volumes.read(other.rename(volume.path))


@pytest.mark.parametrize(
  'suffix', ['.NII', '.Nii', '.NII.gz', '.nii.GZ', '.nii.gz']
)
@pytest.mark.parametrize('is_packed', [False, True])
def test_names_may_be_in_capitals_and_wrong_about_gzip(
  suffix, is_packed, volume
):
  content = volume.path.read_bytes()
  other = volume.path.with_name('B' + suffix)
  write(volume.path.with_name('B.nii'), -RAMP)  # Another volume.
  other.write_bytes(content if is_packed else gzip.decompress(content))
  np.testing.assert_array_equal(volumes.read(other).hu, RAMP)


def test_a_file_that_unpacks_to_more_than_its_header_says_is_no_mask(
  volume, tmp_path
):
  path = tmp_path / 'mask.nii.gz'
  volumes.write(path, np.ones((64, 64, 64), np.uint8), volume)
  with pytest.raises(VolumeError, match='262144 voxels, not 120'):
    volumes.read_mask(path, volume)
  volumes.write(path, np.arange(600).reshape(4, 10, 15), volume)
  large = Volume(path, np.zeros((4, 10, 15)), volume.spacing, volume.origin)
  with pytest.raises(VolumeError, match='599 values in a mask'):
    volumes.read_mask(path, large)
  check_size(path, 2**28, 1, 2**20)  # As far as any file may.
  with pytest.raises(VolumeError, match='no CT packs so far'):
    check_size(path, 2**28 + 1, 1, 2**19)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda hu: hu, None),
    (lambda hu: hu + 1024, 'negative'),
    (lambda hu: hu + 950, 'above 700'),
    (lambda hu: hu.clip(-135, 215) / 350, '50 apart'),
    (lambda hu: hu * 10, 'below -5000'),
    (lambda hu: np.where(hu < -900, -3024, hu), None),
    (lambda hu: hu - 1024, 'counted twice'),
  ],
)
def test_volumes_that_may_not_be_in_hu_get_a_warning(change, words, volume):
  rng = np.random.default_rng(0)
  hu = np.repeat([-1000.0, -100.0, 50.0, 900.0], (300, 300, 380, 20))
  hu = change((hu + rng.normal(0, 9, 1000)).reshape(10, 10, 10))
  warning = volumes.hu_warning(Volume(volume.path, hu, SPACING, SPACING))
  assert words in warning if words else warning is None


NODE = np.zeros(SIZE, np.uint8)
NODE[1:3, 2:4, 2:4] = 3


def test_a_mask_follows_its_volume(volume, tmp_path):
  path = tmp_path / 'mask.nii.gz'
  volumes.write(path, NODE, volume)
  np.testing.assert_array_equal(volumes.read_mask(path, volume), NODE)
  image = sitk.DICOMOrient(sitk.ReadImage(str(path)), 'RAI')
  sitk.WriteImage(image, str(path))
  np.testing.assert_array_equal(volumes.read_mask(path, volume), NODE)
  with pytest.raises(VolumeError, match=r'a folder\. Give the NIfTI file'):
    volumes.read_mask(tmp_path, volume)


@pytest.mark.parametrize(
  ('array', 'geometry', 'words'),
  [
    (NODE[:3], {}, r'its size \(z, y, x\) is \(3, 6, 5\), not \(4, 6, 5\)'),
    (NODE, {'spacing': (0.7, 0.8, 2.5)}, r'its spacing .* is \(2\.5, '),
    (NODE, {'origin': (-10, 5, 8)}, r'its origin \(z, y, x\) is \(8, '),
    (NODE, {'axes': np.diag([-1, -1, 1])}, 'its origin'),
    (NODE, {'axes': turned(5)}, 'oblique'),
    (NODE, {'axes': turned(0.5)}, r'its direction is .*, not \(1, 0, 0, '),
    (NODE * 0, {}, 'an empty mask'),
    (NODE * np.float32(0.5), {}, r'1\.5 in a mask\. Label with 0, 1'),
    (np.where(NODE, np.nan, 0.0), {}, '8 voxels are NaN'),
    (-NODE.astype(np.int16), {}, '-3 in a mask'),
  ],
)
def test_masks_that_do_not_fit_are_named(
  array, geometry, words, volume, tmp_path
):
  path = write(tmp_path / 'mask.nii.gz', array, **geometry)
  with pytest.raises(VolumeError, match=words) as error:
    volumes.read_mask(path, volume)
  assert str(path) in str(error.value)


# DICOM: positions decide.
STEP, COUNT, PLANE = 2.5, 5, (6, 4)  # mm, slices, rows and columns


def plane(z):
  """HU of slice z."""
  return 2 * np.arange(24, dtype=np.int16).reshape(PLANE) + 100 * z


def write_slice(folder, z, **tags):
  """Writes slice z of a series; `tags` overrides."""
  values = {
    '0008|0060': 'CT',
    '0008|103e': 'portal venous',
    '0020|000d': '1.2.3',
    '0020|000e': '1.2.3.4',
    '0008|0018': f'1.2.3.4.{z + 1}',
    '0020|0013': str(99 - z),  # InstanceNumber runs the other way.
    '0018|0050': '5.0',  # SliceThickness, which is wrong.
    '0018|0088': '1.0',  # SpacingBetweenSlices, likewise.
    '0020|0032': f'-7\\-9\\{12 + STEP * z}',
    '0020|0037': '1\\0\\0\\0\\1\\0',
    '0028|0030': '0.8\\0.6',
    '0028|1052': '-1024',
    '0028|1053': '1',
  } | {key.replace('_', '|').lstrip('t'): v for key, v in tags.items()}
  image = sitk.GetImageFromArray(plane(z)[None])
  for tag, value in values.items():
    image.SetMetaData(tag, value)
  # The writer derives these from the image.
  spacing, origin, axes = (
    [float(v) for v in values[tag].split('\\')]
    for tag in ('0028|0030', '0020|0032', '0020|0037')
  )
  image.SetSpacing([*spacing[::-1], 1.0])
  image.SetOrigin(origin)
  row, column = np.reshape(axes, (2, 3))
  normal = np.cross(row, column)
  image.SetDirection(np.stack([row, column, normal], 1).ravel().tolist())
  writer = sitk.ImageFileWriter()
  writer.KeepOriginalImageUIDOn()
  # The names' order is not that of the slices.
  path = folder / f'im{(7 * z) % 11:02d}.dcm'
  writer.SetFileName(str(path))
  with itk_errors('writing'):
    writer.Execute(image)
  return path


def write_series(folder, **tags):
  """Writes slices whose tags are functions of z."""
  for z in range(COUNT):
    write_slice(folder, z, **{key: value(z) for key, value in tags.items()})


@pytest.fixture
def series(tmp_path):
  folder = tmp_path / 'series'
  folder.mkdir()
  write_series(folder)
  return folder


def test_positions_decide_not_thickness_names_or_numbers(series):
  (series / 'notes.txt').write_text('passed over')
  (series / '._im00.dcm').write_bytes(b'Mac OS X' * 32)
  before = locale.setlocale(locale.LC_ALL)
  found = volumes.read(series)
  assert locale.setlocale(locale.LC_ALL) == before
  np.testing.assert_allclose(found.spacing, (STEP, 0.8, 0.6))
  np.testing.assert_allclose(found.origin, (12, -9, -7))
  expected = np.stack([plane(z) for z in range(COUNT)])
  np.testing.assert_array_equal(found.hu, expected)
  # Columns that run to the front: the normal points to the feet.
  write_series(series, t0020_0037=lambda z: '1\\0\\0\\0\\-1\\0')
  found = volumes.read(series)
  np.testing.assert_array_equal(found.hu, expected[:, ::-1])
  np.testing.assert_allclose(found.spacing, (STEP, 0.8, 0.6))


def test_each_slice_has_its_own_rescale(series):
  path = write_slice(series, 2, t0028_1052='-1000')
  odd = np.arange(1, 49, 2, np.int16)  # As stored, at the end of the file.
  content = path.read_bytes()[: -2 * odd.size] + odd.tobytes()
  slope = b'\x28\x00\x53\x10\x02\x00\x00\x00'  # The writer takes no fraction.
  assert slope + b'1 ' in content
  path.write_bytes(content.replace(slope + b'1 ', slope + b'.5'))
  found = volumes.read(series).hu
  np.testing.assert_array_equal(found[2], 0.5 * odd.reshape(PLANE) - 1000)
  np.testing.assert_array_equal(found[1], plane(1))


def rename_tag(tag):
  """Tags are renamed in the file: the writer would make them up."""

  def spoil(folder):
    path = folder / 'im07.dcm'
    content = path.read_bytes()
    assert content.count(tag) == 1
    path.write_bytes(content.replace(tag, tag[:2] + b'\x31' + tag[3:]))

  return spoil


def other_slice(z, **tags):
  return lambda folder: write_slice(folder, z, **tags)


def replace(name, change):
  """Returns what puts other bytes into a file, made of those of im03.dcm."""
  return lambda folder: (folder / name).write_bytes(
    change((folder / 'im03.dcm').read_bytes())
  )


def tilt(folder):
  """Slices of an oblique series."""
  c, s = np.cos(0.2), np.sin(0.2)
  write_series(
    folder,
    t0020_0037=lambda z: f'1\\0\\0\\0\\{c:.9f}\\{s:.9f}',
    t0020_0032=lambda z: f'0\\{-s * z * STEP:.6f}\\{c * z * STEP:.6f}',
  )


def shift(folder):
  """As the slices of a tilted gantry."""
  places = lambda z: f'-7\\{-9 + 0.6 * z}\\{12 + STEP * z}'
  write_series(folder, t0020_0032=places)


def hide(folder):
  (folder / 'portal').mkdir()
  for path in folder.glob('*.dcm'):
    path.rename(folder / 'portal' / path.name)


@pytest.mark.parametrize(
  ('spoil', 'words'),
  [
    (
      lambda f: (f / 'im03.dcm').unlink(),  # Slice 2.
      r'1 slice missing: 5\.000 mm between im07\.dcm and im10\.dcm',
    ),
    (replace('copy.dcm', bytes), r'copy\.dcm and im03|im03\.dcm and copy'),
    (other_slice(4, t0020_0032='-7\\-9\\22.5'), r'unequal steps: 3\.000 mm'),
    (
      other_slice(4, t0020_000e='9.9', t0008_103e='scout'),
      r'2 series: .*9 \(scout, 1 fil',
    ),
    (shift, r'shifted .* by up to 2\.40 mm'),
    (tilt, r'oblique: an axis is 11\.5 degrees'),
    (
      other_slice(3, t0028_0030='0.9\\0.6'),
      r'm10\.dcm: its orientation or pix',
    ),
    (lambda f: [p.unlink() for p in f.glob('im*[1-9]*')], 'one slice only'),
    (other_slice(0, t0008_0060='MR'), 'its modality is MR'),
    (replace('im03.dcm', lambda content: content[:-30]), r'im03\.dcm'),
    (lambda f: (f / 'x.dcm').symlink_to(f / 'gone'), r'x\.dcm: a link to '),
    (replace('im03.dcm', lambda _: b'nothing'), r'im03\.dcm: no DICOM file'),
    (hide, 'no DICOM files in it, but the folders portal'),
    (rename_tag(b'\x28\x00\x30\x00'), r'im07\.dcm: no PixelSpacing'),
    (rename_tag(b'\x20\x00\x32\x00'), r'im07\.dcm: no ImagePositionPatient'),
    (rename_tag(b'\x28\x00\x52\x10'), r'im07\.dcm: no rescale intercept'),
  ],
)
def test_what_is_no_whole_series_is_named(spoil, words, series):
  spoil(series)
  with pytest.raises(VolumeError, match=words) as error:
    volumes.read(series)
  assert str(series) in str(error.value)


def test_elements_longer_than_the_file_are_named_before_gdcm_sees_them(series):
  """Whatever byte is wrong, what is declared never exceeds what is there."""
  path, rng = series / 'im07.dcm', np.random.default_rng(0)
  content, refused = path.read_bytes(), 0
  dicom.check(path)
  for at in rng.integers(132, len(content) - 48, 75):
    changed = bytearray(content)
    changed[at] = 255
    path.write_bytes(changed)
    try:
      volumes.read(series)
    except VolumeError:
      refused += 1
  assert 25 < refused < 75
  at = content.index(b'\x28\x00\x30\x00') + 4  # PixelSpacing, implicit.
  path.write_bytes(content[:at] + struct.pack('<I', 4000) + content[at + 4 :])
  with pytest.raises(VolumeError, match='0028,0030 has 4000 bytes'):
    dicom.check(path)


# Resampling against SimpleITK.
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


@pytest.mark.parametrize('mode', NAMES)
def test_the_whole_volume_and_a_region_are_simpleitks(mode):
  spacing = (2.5, 0.7, 0.9)  # z, y, x
  array = np.random.default_rng(1).normal(0, 300, (40, 45, 50))
  array = array.astype(np.float32)
  full = resample.shape(array.shape, spacing)
  assert full == (127, 40, 57)  # 100, 31.5 and 45 mm.
  seen = []

  def read(at):
    seen.append(array[at].size)
    return array[at]

  for start, stop in (((0, 0, 0), full), ((50, 18, 20), (53, 22, 26))):
    seen.clear()
    found = resample.region(read, array.shape, spacing, start, stop, mode)
    expected = by_simpleitk(array, spacing, start, stop, mode)
    np.testing.assert_allclose(found, expected, atol=0.02)
  assert sum(seen) < array.size * (0.01 if mode != 'bspline' else 0.5)


def test_a_real_volume_and_its_mask_are_read_and_resampled(real_data):
  volume = volumes.read(real_data / 'ct/example_ct.nii.gz')
  path = real_data / 'ct/example_seg_fast_force_split.nii.gz'
  organs = volumes.read_mask(path, volume)
  size, spacing = organs.shape, volume.spacing
  assert size == volume.hu.shape and len(np.unique(organs)) > 10
  assert resample.shape(size, spacing) == (425, 384, 463)
  box = (200, 120, 150), (230, 180, 220)
  found = resample.region(volume.hu.__getitem__, size, spacing, *box, 'linear')
  expected = by_simpleitk(volume.hu, spacing, *box, 'linear')
  np.testing.assert_allclose(found, expected, atol=0.05)
  assert expected.std() > 30


def test_one_slice_of_a_mask_stays_a_mask():
  mask = np.array([[[0, 7], [7, 0]]], np.uint8)
  args = mask.__getitem__, mask.shape, (0.79, 1.58, 1.58), (0, 0, 0), (1, 4, 4)
  found = resample.region(*args, 'nearest')
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found[0], np.kron(mask[0], np.ones((2, 2))))


def test_window_is_its_formula():
  hu = np.array([-2000.0, -135.0, -134.0, 40.0, 215.0, 3000.0])
  expected = [0, 0, 1 / 350, 0.5, 1, 1]
  np.testing.assert_allclose(resample.window(hu), expected, atol=1e-7)
  assert resample.window(hu).dtype == np.float32


# Nodes.
SPACING = (3.0, 1.0, 0.8)
GRID = (12, 60, 70)


def ball(centre, radius):
  """A ball; centre in mm from the corner of the volume, (z, y, x)."""
  at = [(np.arange(n) + 0.5) * s for n, s in zip(GRID, SPACING, strict=True)]
  z, y, x = np.meshgrid(*at, indexing='ij')
  away = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
  return away < radius**2


def test_nodes_are_connected_parts_of_one_value():
  mask = np.zeros(GRID, np.int32)
  mask[ball((18, 20, 20), 5)] = 2
  mask[ball((18, 20, 29), 4)] = 4  # Touches the first.
  mask[ball((18, 45, 40), 6)] = 4
  mask[3, 50, 60] = 4  # A speck.
  numbered = nodes.parts(mask)
  found, specks = nodes.find(numbered, SPACING)
  assert specks == 1
  assert [len(np.unique(mask[numbered == n.index])) for n in found] == [1] * 3
  expected = [4 / 3 * np.pi * r**3 for r in (5, 6, 4)]
  np.testing.assert_allclose([n.volume for n in found], expected, rtol=0.08)
  np.testing.assert_allclose([n.extent for n in found], [10, 12, 8], atol=1)
  assert nodes.parts(mask, 2).max() == 1
  corner = np.zeros(GRID, np.int32)
  corner[4, 4, 4] = corner[5, 5, 5] = 1
  assert nodes.parts(corner).max() == 1


def test_nodes_cut_by_an_end_are_marked():
  mask = ball((0, 30, 20), 6) | ball((36, 30, 40), 6) | ball((18, 10, 10), 6)
  found, _ = nodes.find(nodes.parts(mask), SPACING)
  assert sorted(n.is_cut for n in found) == [False, True, True]
  middle = next(n for n in found if not n.is_cut)
  np.testing.assert_allclose(
    np.array(middle.corner) * resample.SPACING, 10, atol=1
  )
  assert middle.room in (24, 26)  # 10 mm to either border.


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
def test_the_largest_slice_lies_through_the_middle_without_neighbours(mode):
  centre, radius = (17, 31, 25), 7
  mask = ball(centre, radius).astype(np.int32)
  mask[ball((17, 31, 40), 5)] = 2
  z = np.arange(GRID[0], dtype=np.float32)[:, None, None]
  y = np.arange(GRID[1], dtype=np.float32)[:, None]
  hu = np.broadcast_to(100 * z + y, GRID).copy()
  volume = Volume(pathlib.Path('v.nii'), hu, SPACING, (0.0, 0.0, 0.0))
  numbered = nodes.parts(mask)
  (node, _), _ = nodes.find(numbered, SPACING)
  side = 40
  (piece,) = nodes.cut(volume, numbered, node, side, mode=mode, every=False)
  assert piece.hu.shape == piece.inside.shape == (side, side)
  assert abs(piece.z - centre[0]) <= 3.0
  area = piece.inside.sum() * resample.SPACING**2
  assert area == pytest.approx(np.pi * radius**2, rel=0.1)
  for places in np.nonzero(piece.inside):
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


# The table.
CLASSES = ('benign', 'metastatic')
GOOD = (
  'p1,a.nii,b.nii,benign,1.0',
  'p1,a.nii,b.nii,metastatic,2',
  'p2,c.nii,d.nii,metastatic,1',
  'p2,c.nii,d.nii,benign,3',
)


def write_table(folder, *lines):
  for name in 'abcd':
    (folder / f'{name}.nii').touch()
  path = folder / 'nodes.csv'
  header = 'patient_id,image_path,mask_path,label,mask_value'
  path.write_text('\n'.join([header, *lines]))
  return path


def test_rows_of_the_table_do_not_depend_on_their_order(tmp_path):
  rows = table.read(write_table(tmp_path, *GOOD), CLASSES)
  assert [(r.patient, r.value, r.label) for r in rows] == [
    ('p1', 1, 'benign'),
    ('p1', 2, 'metastatic'),
    ('p2', 1, 'metastatic'),
    ('p2', 3, 'benign'),
  ]
  path = write_table(tmp_path, *GOOD[::-1])
  assert table.read(path, CLASSES) == rows
  (tmp_path / 'sub').mkdir()
  path = path.rename(tmp_path / 'sub/nodes.csv')
  with pytest.raises(VolumeError, match='no file'):
    table.read(path, CLASSES)
  assert table.read(path, CLASSES, tmp_path) == rows


def test_patients_that_are_spelled_apart_are_warned_of(tmp_path):
  path = write_table(tmp_path, *GOOD[:2], GOOD[2].replace('p2', 'P01'))
  with pytest.warns(UserWarning, match='P01 and p1 look like one patient'):
    assert len(table.read(path, CLASSES)) == 3


def test_all_problems_of_the_table_are_listed_at_once(tmp_path):
  (tmp_path / 'gone.nii').symlink_to('moved.nii')
  path = write_table(
    tmp_path,
    'p1,a.nii,b.nii,benign,1',
    'p1,a.nii,b.nii,benign,1',
    'p1,a.nii,b.nii,benign,',
    f'p2,gone.nii,{"a" * 999}.nii,metastatic,1',
    'p2,c.nii,d.nii,malignant,1',
    ',c.nii,d.nii,benign,0',
    'p3,c.nii,d.nii,,x',
    'p4,a.nii,c.nii,benign,',
  )
  with pytest.raises(VolumeError) as error:
    table.read(path, CLASSES)
  for words in (
    f'{path}: 10 problem(s)',
    f'row 5: {tmp_path / "gone.nii"}: a link to moved.nii, which',
    f'row 5: no file {tmp_path / ("a" * 999)}.nii',
    "row 6: label 'malignant', which is neither of benign, metastatic:"
    ' correct it, or name both with --classes',
    'row 7: empty patient_id',
    "row 7: mask_value '0'",
    'row 8: empty label',
    "row 8: mask_value 'x'",
    f'{tmp_path / "b.nii"}, value 1: 2 rows',
    f'{tmp_path / "b.nii"}: rows with and without mask_value. Give',
    f'{tmp_path / "a.nii"}: patients p1, p4 have the same image',
  ):
    assert words in str(error.value), words
  with pytest.raises(VolumeError, match='no rows'):
    table.read(write_table(tmp_path), CLASSES)
