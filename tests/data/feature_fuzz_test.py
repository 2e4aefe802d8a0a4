"""Any bytes in the place of features, labels or splits end in a named error.

HDF5's own library, which reads the files, can crash or hang on files whose
internal tables were changed on purpose; what is tested here are contents that
accidents and formats produce: any bytes, any part of a file, zeros in a file,
shapes without contents.
"""

import csv
import io
import tracemalloc

import h5py
import hypothesis
from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from data import features, labels as label_files, packed, splits
from data.features import FeatureError
from data.labels import Manifest, ManifestError

ATTRS = dict.fromkeys(features.ATTRIBUTES, 1)
ROWS = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
HEADER = b'\x89HDF\r\n\x1a\n'
few = settings(
  max_examples=20,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


def whole_file(chunks):
  file = io.BytesIO()
  with h5py.File(file, 'w') as f:
    f.create_dataset('features', data=ROWS, chunks=chunks)
    f['coords'] = np.zeros((len(ROWS), 2), np.int32)
  return file.getvalue()


WHOLE = [whole_file(None), whole_file((5, 8))]
BYTES = st.one_of(
  st.binary(max_size=300),
  st.binary(max_size=300).map(lambda b: HEADER + b),
  st.builds(
    lambda content, part: content[: int(part * len(content))],
    st.sampled_from(WHOLE),
    st.floats(0, 0.999),
  ),
)


@few
@given(content=BYTES)
def test_any_bytes_are_a_named_fault(tmp_path, content):
  path = tmp_path / 'a.h5'
  path.write_bytes(content)
  for act in (features.read, features.header):
    with pytest.raises(FeatureError, match=r'a\.h5: '):
      act(path)
  assert packed.find(tmp_path).ids() == ['a']


@few
@given(place=st.integers(0, ROWS.nbytes - 1), value=st.integers(0, 255))
def test_a_changed_number_is_read_as_it_is_or_refused(tmp_path, place, value):
  at = WHOLE[0].index(ROWS.tobytes()) + place
  path = tmp_path / 'a.h5'
  path.write_bytes(WHOLE[0][:at] + bytes([value]) + WHOLE[0][at + 1 :])
  numbers = bytearray(ROWS.tobytes())
  numbers[place] = value
  want = np.frombuffer(numbers, np.float32).reshape(ROWS.shape)
  if np.isfinite(want).all():
    np.testing.assert_array_equal(features.read(path).features, want)
  else:
    row = place // (4 * ROWS.shape[1])
    with pytest.raises(FeatureError, match=f'in 1 of 40 rows.* row {row};'):
      features.read(path)


def declared(file, name, shape, **options):
  """A dataset that announces a shape and holds nothing."""
  file.create_dataset(name, shape, np.float32, **options)


@pytest.mark.parametrize(
  'make',
  [
    lambda f: declared(f, 'features', (2**38, 1024)),
    lambda f: declared(f, 'features', (2**38, 1024), chunks=(64, 1024)),
    lambda f: declared(f, 'features', (1, 2**30, 2**20), chunks=(1, 8, 8)),
    lambda f: f.update({'features': ROWS}) or declared(f, 'coords', (40, 2)),
    # A writer that was killed after its first chunks.
    lambda f: f.create_dataset(
      'features', (90, 8), np.float32, chunks=(10, 8)
    ).__setitem__(slice(0, 70), 1.0),
    # A megabyte of zeros in a kilobyte of file is fine, a gigabyte is not.
    lambda f: f.create_dataset(
      'features',
      (2**22, 64),
      np.float32,
      chunks=(2**22, 64),
      compression='gzip',
    ).id.write_direct_chunk((0, 0), b'x' * 1000),
  ],
)
def test_huge_shapes_take_no_memory(tmp_path, make):
  path = tmp_path / 'a.h5'
  with h5py.File(path, 'w') as file:
    make(file)
  tracemalloc.start()
  for act in (features.read, features.header):
    with pytest.raises(FeatureError, match=r'a\.h5: .* never written in full'):
      act(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**22


def test_compressed_features_are_read(tmp_path):
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    file.create_dataset(
      'features', data=np.ones((5000, 64), 'f4'), compression=9
    )
    file['coords'] = np.zeros((1, 5000, 2), int)
  assert features.read(tmp_path / 'a.h5').features.sum() == 320_000


@pytest.mark.parametrize(
  'make',
  [
    lambda f: f.update({'features': h5py.Empty('f4')}),
    lambda f: f.update({'features': ROWS, 'coords': h5py.Empty('i4')}),
    lambda f: f.update({'features': h5py.SoftLink('/features')}),
    lambda f: f.update({'features': h5py.ExternalLink('absent.h5', '/x')}),
    lambda f: f.create_group('features'),
    lambda f: f.update({'features': np.array(['a', 'b'], 'S1')}),
    lambda f: f.update({'features': np.zeros((3, 2), [('a', 'f4')])}),
    lambda f: f.update({'features': ROWS, 'coords': np.zeros((80, 1))}),
    lambda f: f.update({'features': ROWS, 'coords': np.zeros((2, 40, 2))}),
  ],
)
def test_odd_contents_are_named(tmp_path, make):
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    make(file)
  for act in (features.read, features.header):
    with pytest.raises(FeatureError, match=r'a\.h5: '):
      act(tmp_path / 'a.h5')


ids = st.one_of(
  st.sampled_from(
    ['../x', '..', '.', '/etc/passwd', 'a\0b', 'x' * 300, '\\\\x\\y', 'é' * 120]
  ),
  st.text(max_size=12),
)


@few
@given(rows=st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=4))
def test_hostile_labels_name_no_file_elsewhere(tmp_path, rows):
  path = tmp_path / 'labels.csv'
  text = io.StringIO()
  csv.writer(text).writerows([label_files.COLUMNS, *rows])
  path.write_bytes(text.getvalue().encode('utf-8', 'surrogatepass'))
  try:
    table = label_files.read(path)
  except ManifestError as error:
    assert str(error).startswith(f'{path}: ')
    return
  folder = packed.Folder(tmp_path)
  for slide in table.slide:
    assert folder.file(slide).parent == tmp_path
    assert len(folder.file(slide).name.encode()) <= 255 - 40
    assert slide not in folder


TABLE = Manifest(*(np.array([f's{i}' for i in range(9)]),) * 3)


@few
@given(
  content=st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(
      lambda t: f',train,val,test\n{t}'.encode('utf-8', 'surrogatepass')
    ),
    st.lists(st.tuples(ids, ids, ids), max_size=3).map(
      lambda rows: (
        'train,val,test\n' + '\n'.join(','.join(row) for row in rows)
      ).encode('utf-8', 'surrogatepass')
    ),
  )
)
def test_hostile_splits_are_named(tmp_path, content):
  (tmp_path / 'splits_0.csv').write_bytes(content)
  _, faults = splits.read(tmp_path, TABLE, 1)
  assert faults and all('splits_0.csv: ' in fault for fault in faults)
