"""Folders of other tools are found, and ids stay what they are."""

import zipfile

import h5py
import numpy as np
import pytest

from data import features, packed
from data.features import FeatureError, Folder

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
COORDS = np.array([[0, 0], [256, 0], [512, 0], [0, 256]])


def put(path, name='features', **attributes):
  path.parent.mkdir(parents=True, exist_ok=True)
  with h5py.File(path, 'w') as file:
    if name:
      file[name] = ROWS
    file['coords'] = COORDS
    file.attrs.update(attributes)


def clam(root):
  """What patching and extraction leave; the .pt files are no tensors here."""
  for slide in ('007', 'TCGA-3C.01Z'):
    put(root / 'patches' / f'{slide}.h5', name=None)
    put(root / 'feats' / 'h5_files' / f'{slide}.h5')
    (root / 'feats' / 'pt_files').mkdir(exist_ok=True)
    (root / 'feats' / 'pt_files' / f'{slide}.pt').write_bytes(b'')
  return root / 'feats' / 'h5_files'


def trident(root):
  job = root / '20x_256px_0px_overlap'
  for slide in ('007', 'TCGA-3C.01Z'):
    put(job / 'patches' / f'{slide}_patches.h5', name=None)
    put(job / 'features_uni_v1' / f'{slide}.h5')
    (job / 'slide_features_titan').mkdir(exist_ok=True)
    with h5py.File(job / 'slide_features_titan' / f'{slide}.h5', 'w') as file:
      file['features'] = ROWS[0]
  return job / 'features_uni_v1'


def stamp(root):
  for slide in ('007', 'TCGA-3C.01Z'):
    put(root / 'ctranspath-1234abcd' / f'{slide}.h5', name='feats', unit='um')
  (root / 'statistics').mkdir()
  return root / 'ctranspath-1234abcd'


@pytest.mark.parametrize('tool', [clam, trident, stamp])
def test_any_folder_above_will_do(tmp_path, tool):
  inner = tool(tmp_path)
  place = inner
  while place != tmp_path.parent:
    found = packed.find(place)
    assert found.path == inner
    assert found.ids() == ['007', 'TCGA-3C.01Z']
    place = place.parent
  assert 'TCGA-3C.01Z' in found and '7' not in found
  assert 'TCGA-3C' not in found and '007.h5' not in found
  np.testing.assert_array_equal(found.read('007').features, ROWS)


def test_several_folders_are_named_and_none_is_chosen(tmp_path):
  first = trident(tmp_path)
  second = first.with_name('features_conch')
  put(second / '007.h5')
  with pytest.raises(FeatureError) as error:
    packed.find(tmp_path)
  assert f'\n  {second}\n  {first}' in str(error.value)
  assert '--features_dir' in str(error.value)
  assert packed.find(second).path == second


def test_hidden_files_and_folders_do_not_count(tmp_path):
  put(tmp_path / '.cache' / 'features_x' / 'a.h5')
  put(tmp_path / 'features_y' / 'b.h5')
  put(tmp_path / 'features_y' / '.c.h5.1234')
  put(tmp_path / 'features_y' / '.d.h5')
  assert features.locate(tmp_path) == tmp_path / 'features_y'
  assert packed.find(tmp_path).ids() == ['b']


def test_an_empty_folder_lacks_slides_and_an_absent_one_is_named(tmp_path):
  assert Folder(tmp_path).path == tmp_path
  assert Folder(tmp_path).ids() == [] and 'a' not in Folder(tmp_path)
  with pytest.raises(FeatureError, match=r'a\.h5: no such file'):
    Folder(tmp_path).read('a')
  with pytest.raises(FeatureError, match='absent: no such folder of features'):
    Folder(tmp_path / 'absent')


def test_tensors_count_where_there_is_no_h5(tmp_path, real_data):
  source = real_data / 'feature_files/clam/feats/pt_files'
  (tmp_path / 'pt_files').mkdir()
  (tmp_path / 'pt_files' / '0.5.pt').symlink_to(next(source.glob('*.pt')))
  folder = packed.find(tmp_path)
  assert folder.ids() == ['0.5'] and folder.read('0.5').coords is None
  before = folder.digest('0.5')
  put(tmp_path / 'pt_files' / '0.5.h5')
  assert folder.ids() == ['0.5'] and folder.read('0.5').coords is not None
  assert folder.digest('0.5') != before


@pytest.mark.parametrize('width', [384, 2560])
def test_any_encoders_width_is_read(tmp_path, width):
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    file['features'] = np.ones((1, 3, width), np.float16)
  header = Folder(tmp_path).header('a')
  assert (header.length, header.width, header.dtype) == (3, width, 'float16')
  assert Folder(tmp_path).read('a').features.shape == (3, width)


def test_a_damaged_first_file_hides_no_named_folder(tmp_path):
  for name in ('h5_files/a.h5', 'pt_files/a.pt'):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b'\x89HDF')
  assert features.locate(tmp_path) == tmp_path / 'h5_files'
  with zipfile.ZipFile(tmp_path / 'h5_files' / 'b.pt', 'w'):
    pass
  with pytest.raises(FeatureError, match=r'b\.pt: no tensor'):
    features.header(packed.find(tmp_path).file('b'))


def test_the_encoder_of_a_folder_holds_where_files_are_silent(tmp_path):
  put(tmp_path / 'features_uni_v1' / 'a.h5')
  put(tmp_path / 'features_uni_v1' / 'b.h5', encoder='conch')
  put(tmp_path / 'feats' / 'c.h5')
  folder = Folder(tmp_path / 'features_uni_v1')
  for slide, encoder in (('a', 'uni_v1'), ('b', 'conch')):
    assert folder.header(slide).attributes['encoder'] == encoder
    assert folder.read(slide).attributes['encoder'] == encoder
  assert 'encoder' not in Folder(tmp_path / 'feats').header('c').attributes
