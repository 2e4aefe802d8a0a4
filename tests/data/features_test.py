import os
import pathlib
import subprocess
import sys
import time

import h5py
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from data import features
from data.features import ATTRIBUTES, FeatureError

TOOLS = pathlib.Path(__file__).parents[3] / 'shared/data/feature_files'
ATTRS = dict.fromkeys(ATTRIBUTES, 1) | {'encoder': 'resnet50', 'mpp': 0.5}
COORDS = np.array([[0, 0], [256, 0], [0, 256]])
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


@hypothesis.settings(
  max_examples=40,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data())
def test_what_is_written_is_read(tmp_path, data):
  dtype = data.draw(st.sampled_from([np.float16, np.float32]))
  count, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9))
  values = st.floats(
    allow_nan=False, allow_infinity=False, width=np.dtype(dtype).itemsize * 8
  )
  rows = data.draw(hnp.arrays(dtype, (count, width), elements=values))
  positions = st.integers(0, 2**31 - 1)
  coords = data.draw(hnp.arrays(np.int64, (count, 2), elements=positions))
  path = tmp_path / 'a.h5'
  features.write(path, rows, coords, ATTRS)
  got = features.read(path)
  assert got.features.dtype == np.float32 and got.coords.dtype == np.int32
  np.testing.assert_array_equal(got.features, rows.astype(np.float32))
  np.testing.assert_array_equal(got.coords, coords)
  assert got.attributes == ATTRS
  header = features.header(path)
  assert (header.length, header.width) == (count, width)
  with h5py.File(path) as file:  # Where readers of CLAM and TRIDENT look.
    assert file['features'].dtype == dtype
    assert file['coords'].attrs['patch_size_level0'] == 1


@pytest.mark.skipif(not TOOLS.is_dir(), reason=f'no feature files at {TOOLS}')
def test_the_files_of_three_tools_say_the_same():
  clam, trident, stamp = (
    features.read(next(TOOLS.glob(pattern)), level0_mpp=0.499)
    for pattern in (
      'clam/feats/h5_files/*.h5',
      'trident/*/features_*/*.h5',
      'stamp/*/*.h5',
    )
  )
  header = features.header(clam.path)
  assert clam.features.shape == (header.length, header.width) == (49, 27)
  np.testing.assert_array_equal(trident.features, clam.features)
  # STAMP rounds to float16.
  np.testing.assert_allclose(stamp.features, clam.features, rtol=1e-3)
  for other in (trident, stamp):
    np.testing.assert_array_equal(other.coords, clam.coords)
  assert clam.coords[:2].tolist() == [[50, 1089], [306, 833]]
  assert trident.attributes['encoder'] == 'rgbstats'
  assert trident.attributes['patch_size_level0'] == 256
  assert features.read(stamp.path).coords is None  # It has no level-0 um/px.


def test_micrometres_are_divided_by_the_files_own_scale(tmp_path):
  path = tmp_path / 'a.h5'
  with h5py.File(path, 'w') as file:
    file['feats'] = ROWS.astype(np.float16)[None]
    file['coords'] = (COORDS * 0.2527).astype(np.float32)
    file.attrs.update(unit='um', level0_mpp=0.2527)
  got = features.read(path, level0_mpp=9.0)
  np.testing.assert_array_equal(got.coords, COORDS)
  np.testing.assert_array_equal(got.features, ROWS)
  header = features.header(path)
  assert (header.length, header.width) == (3, 4)


@pytest.mark.parametrize(
  'attributes,placed',
  [
    ({}, False),  # Pixels of which level?
    ({'unit': np.bytes_('um')}, True),
    ({'tile_size_um': 256.0}, True),
    ({'patch_size_level0': 224}, True),  # No file of STAMP's.
  ],
)
def test_places_of_stamp_are_never_guessed(tmp_path, attributes, placed):
  path = tmp_path / 'a.h5'
  with h5py.File(path, 'w') as file:
    file['feats'], file['coords'] = ROWS, COORDS.astype(np.float32)
    file.attrs.update(attributes)
  got = features.read(path, level0_mpp=1.0)
  assert (got.coords is not None) == placed
  if placed:
    np.testing.assert_array_equal(got.coords, COORDS)


def test_a_file_without_coordinates_is_read(tmp_path):
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    file['features'] = ROWS
  assert features.read(tmp_path / 'a.h5').coords is None


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_non_finite_rows_are_counted(tmp_path, bad):
  rows = np.zeros((9, 4), np.float32)
  rows[[3, 7], [0, 2]] = bad
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    file['features'] = rows
  for act in (
    lambda: features.read(tmp_path / 'a.h5'),
    lambda: features.write(tmp_path / 'a.h5', rows, np.zeros((9, 2)), ATTRS),
  ):
    with pytest.raises(FeatureError, match=r'a\.h5: .* 2 of 9 rows.* row 3'):
      act()


@pytest.mark.parametrize(
  'datasets, message',
  [
    ({}, 'nothing'),
    ({'coords': COORDS}, 'coords; is it'),
    ({'features': ROWS[:0]}, r'\[0, 4\]'),
    ({'features': ROWS[:, :0]}, r'\[3, 0\]'),
    ({'features': ROWS[0]}, r'float32 \[4\]'),
    ({'features': np.stack([ROWS, ROWS])}, r'\[2, 3, 4\]'),
    ({'features': ROWS.astype(int)}, 'int64'),
    ({'features': ROWS, 'coords': COORDS * np.nan}, 'not all finite'),
    ({'features': ROWS, 'coords': COORDS + 1e12}, 'not all finite'),
    ({'features': ROWS, 'coords/x': COORDS}, 'not numbers'),
    ({'features': ROWS, 'coords': COORDS[:2]}, r'\[2, 2\] for 3 rows'),
    ({'features': ROWS, 'coords': COORDS[:, :1]}, r'\[3, 1\] for 3 rows'),
  ],
)
def test_unusable_files_are_named(tmp_path, datasets, message):
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    for name, values in datasets.items():
      file[name] = values
  with pytest.raises(FeatureError, match=rf'a\.h5: .*{message}'):
    features.read(tmp_path / 'a.h5')


def test_an_absent_file_is_named(tmp_path):
  for act in (features.read, features.header):
    with pytest.raises(FeatureError, match=r'a\.h5: no such file'):
      act(tmp_path / 'a.h5')


@pytest.mark.parametrize('part', [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, part):
  path = tmp_path / 'a.h5'
  features.write(path, np.ones((500, 64), np.float32), np.ones((500, 2)), ATTRS)
  whole = path.read_bytes()
  path.write_bytes(whole[: int(part * len(whole))])
  with pytest.raises(FeatureError, match=r'a\.h5: not a complete HDF5 file'):
    features.read(path)


@pytest.mark.parametrize(
  'error,said',
  [
    (MemoryError('of 9 GiB'), r'a\.h5: does not fit in memory \(of 9 GiB\)'),
    (OSError(5, 'Input/output error'), r'a\.h5: cannot be read .*its disk'),
  ],
)
def test_what_is_no_fault_of_the_file_is_not_blamed_on_it(
  tmp_path, monkeypatch, error, said
):
  path = tmp_path / 'a.h5'
  features.write(path, ROWS, COORDS, ATTRS)

  def fail(*_):
    raise error

  monkeypatch.setattr(h5py.Dataset, '__getitem__', fail)
  with pytest.raises(FeatureError, match=said) as told:
    features.read(path)
  assert 'delete' not in str(told.value)


@pytest.mark.parametrize(
  'rows, coords, attributes, message',
  [
    (ROWS, COORDS, {'encoder': 'x'}, 'missing: patch_size, '),
    (ROWS.astype(np.float64), COORDS, ATTRS, 'float64'),
    (ROWS[0], COORDS, ATTRS, r'\[4\]'),
    (ROWS, COORDS[1:], ATTRS, r'\[2, 2\] for 3 rows'),
  ],
)
def test_nothing_is_written_for_bad_input(
  tmp_path, rows, coords, attributes, message
):
  with pytest.raises(FeatureError, match=message):
    features.write(tmp_path / 'a.h5', rows, coords, attributes)
  assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
  path = tmp_path / 'a.h5'
  features.write(path, ROWS, COORDS, ATTRS)
  with pytest.raises(TypeError):
    features.write(path, ROWS + 1, COORDS, ATTRS | {'bad': object()})
  assert list(tmp_path.iterdir()) == [path]
  np.testing.assert_array_equal(features.read(path).features, ROWS)


def test_a_file_is_replaced_not_overwritten(tmp_path):
  features.write(tmp_path / 'a.h5', ROWS, COORDS, ATTRS)
  os.link(tmp_path / 'a.h5', tmp_path / 'old.h5')
  features.write(tmp_path / 'a.h5', ROWS + 1, COORDS, ATTRS)
  got = [features.read(tmp_path / n).features for n in ('old.h5', 'a.h5')]
  np.testing.assert_array_equal(got, [ROWS, ROWS + 1])


_WRITE_FOREVER = """
import sys
import numpy as np
from data import features
attributes = dict.fromkeys(features.ATTRIBUTES, 1)
while True:
  rows = np.ones((4000, 64), np.float32)
  features.write(sys.argv[1], rows, rows[:, :2], attributes)
"""


def test_a_killed_writer_leaves_a_complete_file_or_none(tmp_path):
  path = tmp_path / 'a.h5'
  for delay in (0.0, 0.013, 0.031):
    path.unlink(missing_ok=True)
    writer = subprocess.Popen([sys.executable, '-c', _WRITE_FOREVER, path])
    while not path.exists() and writer.poll() is None:
      time.sleep(0.001)
    time.sleep(delay)
    assert writer.poll() is None  # It is killed while it writes.
    writer.kill()
    writer.wait()
    assert features.read(path).features.sum() == 256000
  assert list(tmp_path.glob('*.h5')) == [path]
