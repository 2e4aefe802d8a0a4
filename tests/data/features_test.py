"""Feature files of several tools: what is read, found, written and refused.

HDF5's own library, which reads the files, can crash or hang on files whose
internal tables were changed on purpose; what is tested here are contents that
accidents and formats produce: any bytes, any part of a file, zeros in a file,
shapes without contents.
"""

import tracemalloc

import h5py
import hypothesis
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest
from samples import ATTRIBUTES, one_folder, write_features
import torch

from data import features, files, inspection, packed
from data.features import FeatureError, Folder, spacing, unified

COORDS = np.array([[0, 0], [256, 0], [0, 256]])
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
STAMP = {
  'extractor': 'ctranspath',
  'tile_size_px': 224,
  'tile_size_um': 256.0,
  'unit': 'um',
}
few = hypothesis.settings(one_folder, max_examples=20)


@few
@given(data=st.data())
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
  features.write(path, rows, coords, ATTRIBUTES)
  found = features.read(path)
  assert found.features.dtype == np.float32 and found.coords.dtype == np.int32
  np.testing.assert_array_equal(found.features, rows.astype(np.float32))
  np.testing.assert_array_equal(found.coords, coords)
  assert found.attributes == ATTRIBUTES
  header = features.header(path)
  assert (header.length, header.width) == (count, width)
  with h5py.File(path) as file:  # Where readers of CLAM and TRIDENT look.
    assert file['features'].dtype == dtype
    assert file['coords'].attrs['patch_size_level0'] == 1


def test_the_files_of_three_tools_hold_the_same(real_data):
  clam, tensor, trident, stamp = (
    features.read(
      next((real_data / 'feature_files').glob(pattern)), level0_mpp=0.499
    )
    for pattern in (
      'clam/feats/h5_files/*.h5',
      'clam/feats/pt_files/*.pt',
      'trident/*/features_*/*.h5',
      'stamp/*/*.h5',
    )
  )
  assert clam.features.shape == (49, 27)
  for one in (clam, tensor):
    header = features.header(one.path)
    assert (header.length, header.width) == (49, 27)
  for other in (tensor, trident):
    np.testing.assert_array_equal(other.features, clam.features)
  # STAMP rounds to float16.
  np.testing.assert_allclose(stamp.features, clam.features, rtol=1e-3)
  for other in (trident, stamp):
    np.testing.assert_array_equal(other.coords, clam.coords)
  assert clam.coords[:2].tolist() == [[50, 1089], [306, 833]]
  assert tensor.coords is None and tensor.features.dtype == np.float32
  assert trident.attributes['encoder'] == 'rgbstats'
  assert trident.attributes['patch_size_level0'] == 256
  assert features.read(stamp.path).coords is None  # It has no level-0 um/px.


@pytest.mark.parametrize(
  'attributes, mpp, pixels',
  [
    ({}, 1.0, None),  # Pixels of which level?
    ({'unit': np.bytes_('um')}, 1.0, 1.0),
    ({'unit': 'um'}, None, None),  # Of what scale?
    ({'unit': 'um', 'level0_mpp': 0.25}, 9.0, 4.0),  # The file's own.
    ({'tile_size_um': 256.0}, 0.5, 2.0),
    ({'patch_size_level0': 224}, 0.5, 1.0),  # No file of STAMP's.
  ],
)
def test_places_of_stamp_are_never_guessed(tmp_path, attributes, mpp, pixels):
  path = tmp_path / 'a.h5'
  rows = ROWS.astype(np.float16)[None]
  write_features(path, attributes, feats=rows, coords=COORDS.astype('f4'))
  found = features.read(path, level0_mpp=mpp)
  np.testing.assert_array_equal(found.features, ROWS)
  assert (found.coords is None) == (pixels is None)
  if pixels:
    assert 'unit' not in found.attributes  # They are pixels now.
    np.testing.assert_array_equal(found.coords, COORDS * pixels)


@pytest.mark.parametrize('dtype', ['<f8', '>f8', '>f4', '>f2', '<f2'])
def test_any_width_and_byte_order_become_float32(tmp_path, dtype):
  path = write_features(tmp_path / 'a.h5', features=ROWS.astype(dtype))
  found = features.read(path).features
  assert found.dtype == np.dtype('=f4')
  np.testing.assert_array_equal(found, ROWS)
  held = 'float16' if 'f2' in dtype else 'float32'
  assert features.header(path).dtype == held


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_non_finite_rows_are_counted(tmp_path, bad):
  rows = np.zeros((9, 4), np.float32)
  rows[[3, 7], [0, 2]] = bad
  path = write_features(tmp_path / 'a.h5', features=rows)
  for act in (
    lambda: features.read(path),
    lambda: features.write(path, rows, np.zeros((9, 2)), ATTRIBUTES),
  ):
    with pytest.raises(FeatureError, match=r'a\.h5: .* 2 of 9 rows.* row 3'):
      act()


@pytest.mark.parametrize(
  'datasets, words',
  [
    ({}, 'nothing'),
    ({'coords': COORDS}, 'coords. Is it'),
    ({'features/x': ROWS}, 'has neither'),
    ({'features': h5py.SoftLink('/x')}, 'features is a link to /x'),
    ({'features': h5py.Empty('f4')}, r'float32 \[\]'),
    ({'features': ROWS[:0]}, r'\[0, 4\]'),
    ({'features': ROWS[:, :0]}, r'\[3, 0\]'),
    ({'features': ROWS[0]}, r'float32 \[4\]'),
    ({'features': np.stack([ROWS, ROWS])}, r'\[2, 3, 4\]'),
    ({'features': ROWS.astype(int)}, 'int64'),
    ({'features': ROWS + np.float64(1e300)}, 'infinity in 3 of 3 rows'),
    ({'features': h5py.ExternalLink('absent.h5', '/x')}, 'link to absent.h5'),
    (
      {'feats': ROWS, 'coords': h5py.ExternalLink('b', '/x')},
      'coords is a link',
    ),
    ({'features': np.zeros((3, 2), 'S1')}, r'\|S1'),
    ({'features': np.zeros((3, 2), [('a', 'f4')])}, 'Use float16'),
    ({'features': ROWS, 'coords': COORDS * np.nan}, 'not all finite'),
    ({'features': ROWS, 'coords': COORDS + 1e12}, 'not all finite'),
    ({'features': ROWS, 'coords': h5py.Empty('i4')}, 'not numbers'),
    ({'features': ROWS, 'coords/x': COORDS}, 'not numbers'),
    ({'features': ROWS, 'coords': COORDS[:2]}, r'\[2, 2\] for 3 rows'),
    ({'features': ROWS, 'coords': COORDS[:, :1]}, r'\[3, 1\] for 3 rows'),
    ({'features': ROWS, 'coords': np.stack([COORDS] * 2)}, r'\[2, 3, 2\]'),
  ],
)
def test_unusable_files_are_named(tmp_path, datasets, words):
  path = write_features(tmp_path / 'a.h5', **datasets)
  with pytest.raises(FeatureError, match=rf'a\.h5: .*{words}'):
    features.read(path)


@pytest.mark.parametrize(
  'where, error, words',
  [
    ('h5py.Dataset.__getitem__', MemoryError('of 9 GiB'), 'memory .of 9 GiB'),
    ('zipfile.ZipFile.read', OSError(5, 'buf = 0x7f'), 'output error.* disk'),
  ],
)
def test_what_is_no_fault_of_the_file_is_not_blamed_on_it(
  tmp_path, monkeypatch, where, error, words
):
  path = write_features(tmp_path / 'a.h5', features=ROWS)
  if not where.startswith('h5py'):
    path = path.with_suffix('.pt')
    torch.save(torch.ones(2, 3), path)

  def fail(*_):
    raise error

  monkeypatch.setattr(where, fail)
  with pytest.raises(FeatureError, match=rf'a\.(h5|pt): .*{words}') as raised:
    features.read(path)
  assert 'again' not in str(raised.value)
  assert 'Save the features' not in str(raised.value)


@pytest.mark.parametrize(
  'rows, coords, attributes, words',
  [
    (ROWS, COORDS, {'encoder': 'x'}, 'missing: patch_size, '),
    (ROWS.astype(np.float64), COORDS, ATTRIBUTES, 'float64'),
    (ROWS[0], COORDS, ATTRIBUTES, r'\[4\]'),
    (ROWS, COORDS[1:], ATTRIBUTES, r'\[2, 2\] for 3 rows'),
  ],
)
def test_nothing_is_written_for_bad_input(
  tmp_path, rows, coords, attributes, words
):
  with pytest.raises(FeatureError, match=words):
    features.write(tmp_path / 'a.h5', rows, coords, attributes)
  assert not list(tmp_path.iterdir())


# Folders.
@pytest.mark.parametrize(
  'inner, files',
  [
    (  # What CLAM's patching and extraction leave.
      'feats/h5_files',
      {
        'patches/{}.h5': {'coords': COORDS},
        'feats/h5_files/{}.h5': {'features': ROWS},
        'feats/pt_files/{}.pt': {},  # No tensors here.
      },
    ),
    (
      '20x_256px/features_uni_v1',  # TRIDENT's.
      {
        '20x_256px/patches/{}_patches.h5': {'coords': COORDS},
        '20x_256px/features_uni_v1/{}.h5': {'features': ROWS},
        '20x_256px/slide_features_titan/{}.h5': {'features': ROWS[0]},
      },
    ),
    ('ctranspath-1234', {'ctranspath-1234/{}.h5': {'feats': ROWS}}),  # STAMP's.
  ],
)
def test_any_folder_above_will_do(tmp_path, inner, files):
  ids = ['007', 'TCGA-3C.01Z']
  for name, datasets in files.items():
    for slide in ids:
      write_features(tmp_path / name.format(slide), **datasets)
  place = tmp_path / inner
  while place != tmp_path.parent:
    folder = packed.find(place)
    assert folder.path == tmp_path / inner
    assert folder.ids() == ids
    place = place.parent
  assert 'TCGA-3C.01Z' in folder and '7' not in folder
  assert 'TCGA-3C' not in folder and '007.h5' not in folder
  np.testing.assert_array_equal(folder.read('007').features, ROWS)


def test_several_folders_are_named_and_none_is_chosen(tmp_path):
  first, second = tmp_path / 'features_conch', tmp_path / 'features_uni'
  for folder in (first, second):
    write_features(folder / '007.h5', features=ROWS)
  with pytest.raises(FeatureError) as error:
    packed.find(tmp_path)
  assert f'\n  {first}\n  {second}' in str(error.value)
  assert '--features_dir' in str(error.value)
  assert packed.find(second).path == second


def test_hidden_and_damaged_files_do_not_mislead(tmp_path):
  for name in ('.cache/features_x/a.h5', 'h5_files/.b.h5', 'h5_files/.c.h5.12'):
    write_features(tmp_path / name, features=ROWS)
  for name in ('h5_files/d.h5', 'pt_files/d.pt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b'\x89HDF')
  folder = packed.find(tmp_path)
  assert folder.path == tmp_path / 'h5_files' and folder.ids() == ['d']


def test_an_empty_folder_lacks_slides_and_an_absent_one_is_named(tmp_path):
  folder = Folder(tmp_path)
  assert folder.path == tmp_path
  assert folder.ids() == [] and 'a' not in folder
  for act in (folder.read, folder.header):
    with pytest.raises(FeatureError, match=r'a\.h5: no such file'):
      act('a')
  with pytest.raises(FeatureError, match='absent: no such folder of features'):
    Folder(tmp_path / 'absent')


@pytest.mark.parametrize('end', ['.hdf5', '.H5', '.HDF5', '.Pt'])
def test_other_names_of_the_formats_are_read(tmp_path, end):
  path = tmp_path / f'below/0.5{end}'
  write_features(path, features=ROWS)
  if end == '.Pt':
    torch.save(torch.from_numpy(ROWS), path)
  folder = packed.find(tmp_path)
  assert folder.ids() == ['0.5'] and folder.file('0.5') == path
  np.testing.assert_array_equal(folder.read('0.5').features, ROWS)


@pytest.mark.parametrize('name', [' é', 'e\u0301', 'é ', 'e\u0301\xa0'])
def test_names_are_those_of_the_table_however_a_disk_spells_them(
  tmp_path, name
):
  write_features(tmp_path / f'{name}.h5', features=ROWS)
  (tmp_path / 'b.h5').symlink_to(tmp_path / 'absent.h5')
  folder = Folder(tmp_path)
  assert folder.ids() == ['b', 'é'] and 'é' in folder
  np.testing.assert_array_equal(folder.read('é').features, ROWS)
  assert list(inspection.inspect(folder, ['b', 'é'])) == ['b', 'é']
  assert folder.seen['é'].fault == ''
  with pytest.raises(FeatureError, match=r'b\.h5: a link to .*absent\.h5, w'):
    folder.header('b')


def test_tensors_count_where_there_is_no_h5(tmp_path):
  torch.save(torch.ones(3, 4), tmp_path / '0.5.pt')
  folder = packed.find(tmp_path)
  assert folder.ids() == ['0.5'] and folder.read('0.5').coords is None
  before = folder.digest('0.5')
  write_features(tmp_path / '0.5.h5', features=ROWS, coords=COORDS)
  folder = packed.find(tmp_path)
  assert folder.ids() == ['0.5'] and folder.read('0.5').coords is not None
  assert folder.digest('0.5') != before


# Attributes.
def test_the_encoder_of_a_folder_holds_where_files_are_silent(tmp_path):
  stated = {'encoder': 'conch'}
  write_features(tmp_path / 'features_uni/a.h5', features=ROWS)
  long = {'mpp': np.ones(1001)}  # Is passed over: it may be without end.
  write_features(tmp_path / 'features_uni/b.h5', stated | long, features=ROWS)
  write_features(tmp_path / 'feats/c.h5', features=ROWS)
  folder = Folder(tmp_path / 'features_uni')
  assert folder.read('a').attributes == {'encoder': 'uni'}
  assert folder.header('b').attributes == folder.read('b').attributes == stated
  assert Folder(tmp_path / 'feats').header('c').attributes == {}


def test_stamps_words_become_ours_unless_the_file_has_them():
  implied = {'encoder': 'ctranspath', 'patch_size': 224, 'mpp': 1.142857}
  assert unified(STAMP) == STAMP | implied
  scaled = unified(STAMP | {'level0_mpp': 0.25})
  assert scaled['patch_size_level0'] == 1024
  ours = {'encoder': 'uni', 'mpp': 0.5, 'patch_size': 256}
  assert unified(STAMP | ours) == STAMP | ours
  for side, expected in ((255.999, 256), (255.9, 255.9)):
    found = unified({'tile_size_um': side, 'level0_mpp': 1.0})
    assert found['patch_size_level0'] == expected


@pytest.mark.parametrize('odd', ['x', b'', True, 0, -1.0, np.nan, np.zeros(3)])
def test_sizes_that_are_none_imply_nothing(odd):
  found = unified({'tile_size_um': odd, 'level0_mpp': odd, 'tile_size_px': odd})
  assert not set(found) & {'mpp', 'patch_size', 'patch_size_level0'}


def grid(step, columns, rows, origin=(0, 0)):
  x, y = np.meshgrid(np.arange(columns) * step, np.arange(rows) * step)
  return np.stack([x.ravel(), y.ravel()], 1) + origin


@pytest.mark.parametrize(
  'coords, side',
  [
    # CLAM's grids begin where each contour does.
    (np.concatenate([grid(256, 5, 4), grid(256, 3, 3, (1411, 77))]), 256),
    (grid(256, 5, 4)[[0, 1, 3, 4, 7, 9]], 256),  # With holes.
    (grid(224, 1, 3), 224),
    ([[0, 0]], None),
    ([[0, 0], [5, 7]], None),
    ([[3, 3]] * 3, None),
    ([[0, 0], [9, 16], [18, 32], [27, 48]], None),
  ],
)
def test_spacing_is_that_of_neighbours_in_each_piece_of_tissue(coords, side):
  assert spacing(np.random.default_rng(0).permutation(coords)) == side


def test_a_silent_file_gets_the_spacing_and_its_source(tmp_path):
  path, rows = tmp_path / 'a.h5', np.ones((6, 2), np.float32)
  write_features(path, features=rows, coords=grid(512, 3, 2))
  assert features.read(path).attributes == {
    'patch_size_level0': 512,
    'patch_size_level0_source': 'spacing of coords',
  }
  stated = {'patch_size_level0': 500}
  almost = grid(512, 3, 2) * (1 - 1e-9)  # Computed as micrometres over um/px.
  write_features(path, stated, features=rows, coords=almost)
  assert features.read(path).attributes == stated
  np.testing.assert_array_equal(features.read(path).coords, grid(512, 3, 2))


@pytest.mark.parametrize('mpp', [0.0, -0.25, np.nan, np.inf, 'x', 1e-300])
def test_an_impossible_scale_is_refused(tmp_path, mpp):
  path = tmp_path / 'a.h5'
  attributes = STAMP | {'level0_mpp': mpp}
  write_features(path, attributes, features=ROWS, coords=COORDS * 0.25)
  with pytest.raises(FeatureError, match=r'a\.h5: (level0_mpp is|coords are)'):
    features.read(path)


# Hostile files.
HEADER = b'\x89HDF\r\n\x1a\n'
BYTES = st.binary(max_size=300)


@few
@given(
  content=BYTES | BYTES.map(lambda b: HEADER + b), part=st.floats(0, 0.999)
)
def test_any_bytes_and_any_part_of_a_file_are_a_named_fault(
  tmp_path, content, part
):
  path = write_features(tmp_path / 'a.h5', features=ROWS, coords=COORDS)
  whole = path.read_bytes()
  for damaged in (content, whole[: int(part * len(whole))]):
    path.write_bytes(damaged)
    for act in (features.read, features.header):
      with pytest.raises(FeatureError, match=r'a\.h5: '):
        act(path)
  assert packed.find(tmp_path).ids() == ['a']


@pytest.mark.parametrize(
  'shape, options',
  [
    ((2**38, 1024), {}),
    ((2**38, 1024), {'chunks': (64, 1024)}),
    # A megabyte of zeros in a kilobyte of file is fine, a gigabyte is not.
    ((2**22, 64), {'chunks': (2**22, 64), 'compression': 'gzip'}),
    # Few rows in a piece of a gigabyte.
    ((3, 64), {'chunks': (2**22, 64), 'maxshape': (None, 64)}),
  ],
)
def test_huge_shapes_take_no_memory(tmp_path, shape, options):
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    rows = file.create_dataset('features', shape, np.float32, **options)
    if options.get('chunks') == (2**22, 64):
      rows.id.write_direct_chunk((0, 0), b'x' * 1000)
  tracemalloc.start()
  for act in (features.read, features.header):
    with pytest.raises(FeatureError, match=r'a\.h5: .* never written in full'):
      act(tmp_path / 'a.h5')
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**22


@pytest.mark.parametrize(
  'kind', ['external', 'virtual', 'linked', 'larger than memory', 'packed']
)
def test_numbers_that_lie_elsewhere_or_nowhere_are_refused(
  tmp_path, monkeypatch, kind
):
  ROWS.tofile(tmp_path / 'raw')
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    if kind == 'external':
      raw = [(str(tmp_path / 'raw'), 0, ROWS.nbytes)]
      file.create_dataset('features', ROWS.shape, 'f4', external=raw)
    elif kind == 'virtual':
      layout = h5py.VirtualLayout(ROWS.shape, 'f4')
      layout[:] = h5py.VirtualSource(tmp_path / 'b.h5', 'x', ROWS.shape)
      file.create_virtual_dataset('features', layout)
    elif kind == 'linked':
      write_features(tmp_path / 'b.h5', x=ROWS)
      file['b'] = h5py.ExternalLink(str(tmp_path / 'b.h5'), '/')
      file['features'] = h5py.SoftLink('/b/x')
    elif kind == 'packed':
      how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
      how.set_chunk(ROWS.shape)
      how.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # Of Zstandard.
      space = h5py.h5s.create_simple(ROWS.shape)
      kind_of = h5py.h5t.IEEE_F32LE
      rows = h5py.h5d.create(file.id, b'features', kind_of, space, how)
      rows.write_direct_chunk((0, 0), ROWS.tobytes())
    else:
      file['features'] = ROWS
      monkeypatch.setattr(files, 'memory', lambda: ROWS.nbytes - 1)
  words = {
    'linked': 'is a link to',
    'larger than memory': 'does not fit',
    'packed': 'a plugin of HDF5',
  }.get(kind, 'lies in other files')
  with pytest.raises(FeatureError, match=rf'a\.h5: features .*{words}'):
    features.header(tmp_path / 'a.h5')


def test_what_a_killed_writer_left_is_refused_and_compression_is_not(tmp_path):
  path = tmp_path / 'a.h5'
  with h5py.File(path, 'w') as file:
    shape = {'shape': (90, 8), 'dtype': np.float32, 'chunks': (10, 8)}
    file.create_dataset('features', **shape)[:70] = 1.0
  with pytest.raises(FeatureError, match=r'a\.h5: .* never written in full'):
    features.read(path)
  with h5py.File(path, 'w') as file:
    ones = np.ones((5000, 64), np.float32)
    file.create_dataset('features', data=ones, compression=9)
    file['coords'] = np.zeros((1, 5000, 2), int)
  assert features.read(path).features.sum() == 320_000
