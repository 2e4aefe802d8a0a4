"""DICOM series: positions decide, and what is no whole series is refused."""

import locale

import numpy as np
import pytest
import SimpleITK as sitk

from data.ct import VolumeError, itk_errors, volumes

STEP, COUNT, SIZE = 2.5, 5, (6, 4)  # mm, slices, rows and columns


def plane(z):
  """HU of slice z."""
  return 2 * np.arange(np.prod(SIZE), dtype=np.int16).reshape(SIZE) + 100 * z


def stored(path):
  """Values of a slice as they are in its file, at the end of it."""
  content = path.read_bytes()[-2 * int(np.prod(SIZE)) :]
  return np.frombuffer(content, '<i2').reshape(SIZE)


def write_slice(folder, z, **tags):
  """Writes slice z of a series; `tags` overrides, None removes one."""
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
    if value is not None:
      image.SetMetaData(tag, value)
  # The writer derives both from the image.
  row = np.array([float(v) for v in values['0028|0030'].split('\\')])
  image.SetSpacing([row[1], row[0], 1.0])
  image.SetOrigin([float(v) for v in values['0020|0032'].split('\\')])
  axes = np.array([float(v) for v in values['0020|0037'].split('\\')])
  axes = axes.reshape(2, 3)
  image.SetDirection(np.stack([*axes, np.cross(*axes)], 1).ravel().tolist())
  writer = sitk.ImageFileWriter()
  writer.KeepOriginalImageUIDOn()
  # The names' order is not that of the slices.
  path = folder / f'im{(7 * z) % 11:02d}.dcm'
  writer.SetFileName(str(path))
  with itk_errors('writing'):
    writer.Execute(image)
  return path


@pytest.fixture
def folder(tmp_path):
  """A series whose thickness tag is wrong."""
  folder = tmp_path / 'series'
  folder.mkdir()
  for z in range(COUNT):
    write_slice(folder, z)
  return folder


def remove(folder, *names):
  for name in names:
    (folder / name).unlink()


def test_positions_decide_not_thickness_names_or_numbers(folder):
  reader = sitk.ImageFileReader()
  reader.SetFileName(str(folder / 'im00.dcm'))
  with itk_errors('writing'):
    reader.ReadImageInformation()
  assert float(reader.GetMetaData('0018|0050')) == 5.0  # It is there.
  (folder / 'notes.txt').write_text('passed over')
  volume = volumes.read(folder)
  np.testing.assert_allclose(volume.spacing, (STEP, 0.8, 0.6))
  np.testing.assert_allclose(volume.origin, (12, -9, -7))
  expected = np.stack([plane(z) for z in range(COUNT)])
  np.testing.assert_array_equal(volume.hu, expected)


def test_reading_leaves_the_locale_as_it_was(folder):
  before = locale.setlocale(locale.LC_ALL)
  volumes.read(folder)
  assert locale.setlocale(locale.LC_ALL) == before


def test_each_slice_has_its_own_rescale(folder):
  path = write_slice(folder, 2, t0028_1052='-1000')
  odd = np.arange(1, 2 * np.prod(SIZE), 2, np.int16)
  content = path.read_bytes()[: -2 * odd.size] + odd.tobytes()
  slope = b'\x28\x00\x53\x10\x02\x00\x00\x00'  # The writer takes no fraction.
  assert slope + b'1 ' in content
  path.write_bytes(content.replace(slope + b'1 ', slope + b'.5'))
  found = volumes.read(folder).hu
  np.testing.assert_array_equal(found[2], 0.5 * stored(path) - 1000)
  assert found[2, 0, 0] == -999.5
  other = folder / 'im07.dcm'  # Slice 1.
  np.testing.assert_array_equal(found[1], stored(other) - 1024.0)
  assert (stored(other) != plane(1)).all()


def test_a_series_from_head_to_feet_is_turned(folder):
  """Columns that run to the front: the normal points to the feet."""
  for z in range(COUNT):
    write_slice(folder, z, t0020_0037='1\\0\\0\\0\\-1\\0')
  found = volumes.read(folder)
  expected = np.stack([plane(z)[::-1] for z in range(COUNT)])
  np.testing.assert_array_equal(found.hu, expected)
  np.testing.assert_allclose(found.spacing, (STEP, 0.8, 0.6))


def _gap(folder):
  remove(folder, 'im03.dcm')  # Slice 2.


def _double(folder):
  path = write_slice(folder, 1)
  other = path.with_name('copy.dcm')
  other.write_bytes(path.read_bytes())


def _unequal(folder):
  write_slice(folder, 4, t0020_0032=f'-7\\-9\\{12 + STEP * 4.2}')


def _two_series(folder):
  write_slice(folder, 4, t0020_000e='9.9', t0008_103e='scout')


def _tilted_gantry(folder):
  for z in range(COUNT):
    write_slice(folder, z, t0020_0032=f'-7\\{-9 + 0.6 * z}\\{12 + STEP * z}')


def _oblique(folder):
  c, s = np.cos(0.2), np.sin(0.2)
  for z in range(COUNT):
    write_slice(
      folder,
      z,
      t0020_0037=f'1\\0\\0\\0\\{c:.9f}\\{s:.9f}',
      t0020_0032=f'0\\{-s * z * STEP:.6f}\\{c * z * STEP:.6f}',
    )


def _other_spacing(folder):
  write_slice(folder, 3, t0028_0030='0.9\\0.6')


def _one_slice(folder):
  for path in sorted(folder.iterdir())[1:]:
    path.unlink()


def _magnetic_resonance(folder):
  for z in range(COUNT):
    write_slice(folder, z, t0008_0060='MR')


def _truncated(folder):
  path = folder / 'im03.dcm'
  path.write_bytes(path.read_bytes()[:-30])


def _no_dicom(folder):
  (folder / 'im03.dcm').write_bytes(b'nothing')


def _folder_of_folders(folder):
  files = list(folder.iterdir())
  (folder / 'portal').mkdir()
  for path in files:
    path.rename(folder / 'portal' / path.name)


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (_gap, r'1 slice missing: 5\.000 mm between im07\.dcm and im10\.dcm'),
    (_double, r'copy\.dcm and im07\.dcm|im07\.dcm and copy\.dcm'),
    (_unequal, r'unequal steps: 3\.000 mm'),
    (_two_series, r'2 series: .*9\.9 \(scout, 1 files\)'),
    (_tilted_gantry, r'shifted .* by up to 2\.40 mm'),
    (_oblique, r'oblique: an axis is 11\.5 degrees'),
    (_other_spacing, r'im10\.dcm: its orientation or pixel spacing'),
    (_one_slice, 'one slice only'),
    (_magnetic_resonance, 'its modality is MR'),
    (_truncated, r'im03\.dcm'),
    (_no_dicom, r'im03\.dcm: no DICOM file'),
    (_folder_of_folders, 'no DICOM files in it; it holds the folders portal'),
  ],
)
def test_what_is_no_whole_series_is_named(spoil, message, folder):
  spoil(folder)
  with pytest.raises(VolumeError, match=message) as error:
    volumes.read(folder)
  assert str(folder) in str(error.value)


def test_a_mask_on_a_series(folder, tmp_path):
  volume = volumes.read(folder)
  mask = np.zeros(volume.hu.shape, np.uint8)
  mask[1:3, 2:4, 1:3] = 1
  path = tmp_path / 'mask.nii.gz'
  volumes.write(path, mask, volume)
  np.testing.assert_array_equal(volumes.read_mask(path, volume), mask)
  with pytest.raises(VolumeError, match='a folder; masks are read from NIfTI'):
    volumes.read_mask(folder, volume)


@pytest.mark.parametrize(
  ('tag', 'name'),
  [
    (b'\x28\x00\x30\x00', 'PixelSpacing'),
    (b'\x20\x00\x32\x00', 'ImagePositionPatient'),
    (b'\x28\x00\x52\x10', 'rescale intercept'),
  ],
)
def test_missing_tags_are_named(tag, name, folder):
  """Tags are renamed in the file: the writer would make them up."""
  path = folder / 'im07.dcm'
  content = path.read_bytes()
  assert content.count(tag) == 1
  path.write_bytes(content.replace(tag, tag[:2] + b'\x31' + tag[3:]))
  with pytest.raises(VolumeError, match=name) as error:
    volumes.read(folder)
  assert 'im07.dcm' in str(error.value)
