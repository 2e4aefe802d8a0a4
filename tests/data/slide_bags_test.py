"""A packed cohort gives back what its feature files hold."""

from concurrent import futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import pytest
from samples import ATTRIBUTES, write_features, write_rows
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from data import features, inspection, labels as label_files, packed
from data.features import FeatureError
from data.slide_bags import slide_bags_dataset_builder as slide_bags

ROOT = pathlib.Path(__file__).parents[2]
WIDTH = 24


def write_cohort(root, dtypes):
  """Writes slides of 1, 8, 15, ... instances; the CSV is not in their order."""
  rng = np.random.default_rng(0)
  rows = []
  for i, dtype in enumerate(dtypes):
    slide, length = f's.{i:02d}', 1 + 7 * i
    bag = rng.normal(size=(length, WIDTH)).astype(dtype)
    place = rng.integers(0, 10**6, (length, 2))
    path = root / 'features' / f'{slide}.h5'
    features.write(path, bag, place, ATTRIBUTES | {'row': i})
    rows.insert(0, [f'case_{i // 2}', slide, 'ba'[i % 2]])
  write_rows(root / 'labels.csv', [label_files.COLUMNS, *rows])
  return root


def config_of(root):
  return slide_bags.SlideBagsConfig(
    name='mine',
    csv_path=str(root / 'labels.csv'),
    features_dir=str(root / 'features'),
  )


def pack(root, out, file_format='array_record', num_shards=None):
  made = slide_bags.Builder(
    data_dir=out, config=config_of(root), file_format=file_format
  )
  shards = tfds.download.DownloadConfig(num_shards=num_shards)
  made.download_and_prepare(download_config=shards)
  return made


def ids(root):
  return label_files.read(root / 'labels.csv').slide.tolist()


def assert_same(one, other):
  assert one.features.dtype == other.features.dtype == np.float32
  for name in ('features', 'coords', 'attributes'):
    np.testing.assert_equal(getattr(one, name), getattr(other, name))


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
  """Files of CLAM's and of STAMP's kind, with and without coordinates."""
  root = tmp_path_factory.mktemp('cohort')
  write_cohort(root, [np.float16, np.float32, np.float32, np.float16])
  write_features(
    root / 'features/s.01.h5',
    {'unit': 'um', 'level0_mpp': np.float32(0.25)},
    feats=np.ones((1, 3, WIDTH), np.float16),
    coords=np.arange(6.0).reshape(3, 2) * 0.25,
  )
  write_features(
    root / 'features/s.02.h5',
    {'levels': [1.0, 4.0], 'name': np.bytes_('ö'.encode())},
    features=np.zeros((5, WIDTH), np.float32),
  )
  return root


@pytest.fixture(scope='module')
def dataset(cohort, tmp_path_factory):
  return pathlib.Path(pack(cohort, tmp_path_factory.mktemp('packed')).data_dir)


def test_every_slide_comes_back_as_from_its_file(cohort, dataset):
  files, found = packed.find(cohort / 'features'), packed.find(dataset)
  assert isinstance(files, packed.Folder) and isinstance(found, packed.Packed)
  for slide in ids(cohort):
    assert slide in files and slide in found
    assert_same(files.read(slide), found.read(slide))
    assert files.header(slide) == found.header(slide)
    assert files.digest(slide) == found.digest(slide)
  assert len({files.digest(slide) for slide in ids(cohort)}) == 4
  assert found.read('s.02').coords is None
  assert found.read('s.02').attributes == {'levels': [1.0, 4.0], 'name': 'ö'}
  assert found.read('s.01').coords.tolist() == [[0, 1], [2, 3], [4, 5]]
  assert 's.04' not in files and 's.04' not in found
  slides = ids(cohort) * 25
  with futures.ThreadPoolExecutor(8) as pool:
    for slide, bag in zip(slides, pool.map(found.read, slides), strict=True):
      assert_same(files.read(slide), bag)


def test_cohorts_of_files_and_of_packed_bags_take_no_jax_and_no_tensorflow(
  cohort, dataset
):
  """In a process of its own: in this one others may have imported them."""
  code = (
    'import sys, data\n'
    "assert not {'numpy', 'h5py'} & set(sys.modules)\n"
    'count = lambda path: len(data.read_cohort(sys.argv[1], path).bags)\n'
    'assert count(sys.argv[2]) == 4\n'
    "assert not {'absl', 'torch'} & set(sys.modules)\n"
    'assert count(sys.argv[3]) == 4\n'
    "assert not {'jax', 'tensorflow'} & set(sys.modules)"
  )
  places = cohort / 'labels.csv', cohort / 'features', dataset
  command = [sys.executable, '-c', code, *places]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_tensorflow_reads_the_same_in_order_even_when_sorted_on_disk(
  cohort, tmp_path, monkeypatch
):
  """TFDS sorts in memory up to 1 GB, above it by ranges of keys on disk."""
  monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 0)
  made = pack(cohort, tmp_path, file_format='tfrecord', num_shards=3)
  bags = tfds.load('slide_bags/mine', split=packed.SPLIT, data_dir=tmp_path)
  files, names = packed.Folder(cohort / 'features'), ['a', 'b']
  assert made.info.features['label'].names == names
  for slide, bag in zip(ids(cohort), bags.as_numpy_iterator(), strict=True):
    assert bag['slide_id'].decode() == slide
    assert bag['case_id'].decode() == f'case_{int(slide[-1]) // 2}'
    assert names[bag['label']] == 'ba'[int(slide[-1]) % 2]
    file = files.read(slide)
    np.testing.assert_array_equal(bag['features'], file.features)
    coords = [] if file.coords is None else file.coords.tolist()
    assert bag['coords'].tolist() == coords
  with pytest.raises(FeatureError, match=r'tfrecord.*array_record'):
    packed.find(made.data_dir)


@pytest.mark.parametrize('dtypes, stored', [('ee', 'e'), ('ef', 'f')])
def test_features_keep_the_smallest_type_that_holds_all(
  dtypes, stored, tmp_path
):
  made = pack(write_cohort(tmp_path, dtypes), tmp_path / 'packed')
  (first, _) = made.as_data_source(packed.SPLIT)
  assert first['features'].dtype == stored


ONES = np.ones((2, WIDTH), np.float32)


@pytest.mark.parametrize(
  'attributes, bag, words',
  [
    ({}, ONES * np.nan, 's.01.h5: NaN'),
    ({}, ONES[:, :8], 'mixed: 24, 8. Other than the rest are s.01.'),
    ({'raw': h5py.Empty('f')}, ONES, 's.01.h5: an attribute cannot be packed'),
  ],
)
def test_features_that_cannot_be_packed_are_all_named_and_leave_no_dataset(
  tmp_path, monkeypatch, attributes, bag, words
):
  write_cohort(tmp_path, [np.float32] * 4)
  write_features(tmp_path / 'features/s.01.h5', attributes, features=bag)
  with pytest.raises(FeatureError) as error:
    pack(tmp_path, tmp_path / 'packed')
  assert words in str(error.value)
  (tmp_path / 'features/s.00.h5').unlink()
  (tmp_path / 'features/s.02.h5').write_bytes(b'no HDF5')
  (tmp_path / 'features/s.03.h5').unlink()
  os.mkfifo(tmp_path / 'features/s.03.h5')  # Nobody ever writes into it.
  monkeypatch.setattr(inspection, '_PATIENCE', 1)
  with pytest.raises(FeatureError) as error:
    pack(tmp_path, tmp_path / 'packed')
  first, second, *_ = str(error.value).splitlines()
  assert 'no features of 1 of 4 labelled slides: s.00' in first
  assert 's.02.h5: not a complete HDF5 file' in second
  assert 's.03.h5: damaged (reading it never ends)' in str(error.value)
  assert not list((tmp_path / 'packed').rglob('*.json'))


class StandardTest(tfds.testing.DatasetBuilderTestCase):
  """What TFDS asks of every dataset."""

  DATASET_CLASS = slide_bags.Builder
  SPLITS = {packed.SPLIT: 3}  # noqa: RUF012
  SKIP_TF1_GRAPH_MODE = True

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    write_cohort(root, [np.float32] * 3)
    (root / 'dummy').mkdir()
    cls.EXAMPLE_DIR = root / 'dummy'
    cls.BUILDER_CONFIG_NAMES_TO_TEST = [config_of(root)]

  def _make_builder(self, config=None):
    return super()._make_builder(config or self.BUILDER_CONFIG_NAMES_TO_TEST[0])


def test_readers_name_what_is_wrong(dataset, tmp_path):
  with pytest.raises(FeatureError, match='no slide other'):
    packed.Packed(dataset).read('other')
  copy = tmp_path / '1.0.0'
  copy.mkdir()
  for path in dataset.iterdir():
    content = bytearray(path.read_bytes())
    if 'array_record' in path.name:
      half = len(content) // 2
      content[half : half + 64] = bytes(64)
    (copy / path.name).write_bytes(content)
  found = packed.Packed(copy)
  with pytest.raises(FeatureError, match=r'1\.0\.0: the record of s'):
    for slide in found.ids():
      found.read(slide)
  (copy / 'metadata.json').write_text('{}')
  with pytest.raises(FeatureError, match=r'not one of experiments'):
    packed.find(copy)
  for name in ('metadata.json', 'dataset_info.json'):
    for damage in ('', '{', '\0'):
      (copy / name).write_text(damage)
      with pytest.raises(FeatureError, match=r'1\.0\.0: its index cannot be'):
        packed.find(copy)
  for name, old, new in (
    ('dataset_info.json', 'SHARD_X_OF_Y', 'SHARD_X'),
    ('metadata.json', '"digest": [', '"digest": [[], '),
    ('metadata.json', '"slide_id": [', '"slide_id": [{}, '),
  ):
    shutil.copytree(dataset, copy, dirs_exist_ok=True)
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new))
    with pytest.raises(FeatureError, match=r'1\.0\.0: its index cannot be'):
      packed.find(copy)
  shutil.copytree(dataset, copy, dirs_exist_ok=True)
  index = json.loads((copy / 'metadata.json').read_text())
  index['length'][0] += 1
  (copy / 'metadata.json').write_text(json.dumps(index))
  with pytest.raises(FeatureError, match=r'cannot be read \(its shape is'):
    packed.Packed(copy).read(index['slide_id'][0])
