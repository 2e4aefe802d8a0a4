"""A packed cohort gives back what its feature files hold."""

from concurrent import futures
import csv
import json
import pathlib
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from data import features, labels as label_files, packed
from data.slide_bags import slide_bags_dataset_builder as slide_bags

ROOT = pathlib.Path(__file__).parents[2]
ATTRIBUTES = dict.fromkeys(features.ATTRIBUTES, 1) | {'encoder': 'planted'}
WIDTH = 24
LEVELS = {'levels': [1.0, 4.0], 'name': 'ö'}


def write_cohort(root, dtypes, widths=None):
  """Writes slides of 1, 8, 15, ... instances; the CSV is not in their order."""
  rng = np.random.default_rng(0)
  rows = []
  for i, dtype in enumerate(dtypes):
    slide, length = f's.{i:02d}', 1 + 7 * i
    bag = rng.normal(size=(length, widths[i] if widths else WIDTH))
    place = rng.integers(0, 10**6, (length, 2))
    path = root / 'features' / f'{slide}.h5'
    features.write(path, bag.astype(dtype), place, ATTRIBUTES | {'row': i})
    rows.insert(0, [f'case_{i // 2}', slide, 'ba'[i % 2]])
  with (root / 'labels.csv').open('w', newline='') as f:
    csv.writer(f).writerows([label_files.COLUMNS, *rows])
  return root


def config_of(root):
  return slide_bags.SlideBagsConfig(
    name='mine',
    csv_path=str(root / 'labels.csv'),
    features_dir=str(root / 'features'),
  )


def builder(root, out, file_format='array_record'):
  return slide_bags.Builder(
    data_dir=out, config=config_of(root), file_format=file_format
  )


def pack(root, out, **kwargs):
  made = builder(root, out, **kwargs)
  made.download_and_prepare()
  return pathlib.Path(made.data_dir)


def ids(root):
  return label_files.read(root / 'labels.csv').slide.tolist()


def assert_same(one, other):
  np.testing.assert_array_equal(one.features, other.features)
  assert one.features.dtype == other.features.dtype == np.float32
  assert (one.coords is None) == (other.coords is None)
  if one.coords is not None:
    np.testing.assert_array_equal(one.coords, other.coords)
    assert one.coords.dtype == other.coords.dtype
  assert one.attributes == other.attributes


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
  """Files of CLAM's and of STAMP's kind, with and without coordinates."""
  root = tmp_path_factory.mktemp('cohort')
  write_cohort(root, [np.float16, np.float32, np.float32, np.float16])
  with h5py.File(root / 'features' / 's.01.h5', 'w') as file:
    file['feats'] = np.ones((1, 3, WIDTH), np.float16)
    file['coords'] = np.arange(6.0).reshape(3, 2) * 0.25
    file.attrs.update({'unit': 'um', 'level0_mpp': np.float32(0.25)})
  with h5py.File(root / 'features' / 's.02.h5', 'w') as file:
    file['features'] = np.zeros((5, WIDTH), np.float32)
    file.attrs['levels'] = [1.0, 4.0]
    file.attrs['name'] = np.bytes_('ö'.encode())
  return root


@pytest.fixture(scope='module')
def dataset(cohort, tmp_path_factory):
  return pack(cohort, tmp_path_factory.mktemp('packed'))


def test_every_slide_comes_back_as_from_its_file(cohort, dataset):
  files, found = packed.find(cohort / 'features'), packed.find(dataset)
  assert isinstance(files, packed.Folder) and isinstance(found, packed.Packed)
  for slide in ids(cohort):
    assert slide in files and slide in found
    if slide != 's.02':  # JSON has no arrays and no bytes.
      assert_same(files.read(slide), found.read(slide))
      assert files.header(slide) == found.header(slide)
    assert files.digest(slide) == found.digest(slide)
  assert len({files.digest(slide) for slide in ids(cohort)}) == 4
  bare, header = found.read('s.02'), found.header('s.02')
  assert bare.coords is None
  assert bare.attributes == header.attributes == LEVELS
  assert (header.length, header.width) == bare.features.shape == (5, WIDTH)
  assert found.read('s.01').coords.tolist() == [[0, 1], [2, 3], [4, 5]]
  assert 's.04' not in files and 's.04' not in found


def test_no_tensorflow_is_needed(cohort, dataset):
  """In a process of its own: in this one others may have imported it."""
  code = (
    'import sys; from data import packed\n'
    'found = packed.find(sys.argv[1])\n'
    'sums = [found.read(s).features.sum(dtype=float) for s in sys.argv[2:]]\n'
    'print(sum(sums))\n'
    "print([m for m in ('tensorflow', 'jax') if m in sys.modules])"
  )
  out = subprocess.run(
    [sys.executable, '-c', code, str(dataset), *ids(cohort)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  ).stdout.split()
  files = packed.Folder(cohort / 'features')
  total = sum(files.read(s).features.sum(dtype=float) for s in ids(cohort))
  assert out == [str(total), '[]']


def test_order_is_that_of_the_ids_even_when_sorted_on_disk(
  tmp_path, monkeypatch
):
  """TFDS sorts in memory up to 1 GB, above it by ranges of keys on disk."""
  write_cohort(tmp_path, [np.float32] * 9)
  monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 0)
  buckets = set()
  add = shuffle._Bucket.add

  def note(bucket, key, data):
    buckets.add(bucket)
    add(bucket, key, data)

  monkeypatch.setattr(shuffle._Bucket, 'add', note)
  made = builder(tmp_path, tmp_path / 'packed')
  made.download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=3)
  )
  assert len(buckets) == 9  # No range of keys holds more than its share.
  assert made.info.splits[packed.SPLIT].num_shards == 3
  source = made.as_data_source(packed.SPLIT)
  found = [example['slide_id'].decode() for example in source]
  assert found == ids(tmp_path) == sorted(found)
  reader = packed.Packed(made.data_dir)
  files = packed.Folder(tmp_path / 'features')
  for slide in reversed(found):
    assert_same(files.read(slide), reader.read(slide))


@pytest.mark.parametrize(
  'dtypes, stored',
  [
    ([np.float16, np.float16], np.float16),
    ([np.float16, np.float32], np.float32),
  ],
)
def test_features_keep_the_smallest_type_that_holds_all(
  dtypes, stored, tmp_path
):
  made = builder(write_cohort(tmp_path, dtypes), tmp_path / 'packed')
  made.download_and_prepare()
  example = made.as_data_source(packed.SPLIT)[0]
  assert example['features'].dtype == stored
  names = made.info.features['label'].names
  assert names == ['a', 'b'] and names[example['label']] == 'b'
  assert example['case_id'] == b'case_0'
  assert json.loads(example['attributes'])['encoder'] == 'planted'


def test_tensorflow_reads_the_same_in_the_same_order(cohort, tmp_path):
  folder = pack(cohort, tmp_path, file_format='tfrecord')
  bags = tfds.load('slide_bags/mine', split=packed.SPLIT, data_dir=tmp_path)
  files = packed.Folder(cohort / 'features')
  found = []
  for bag in bags.as_numpy_iterator():
    found.append(bag['slide_id'].decode())
    file = files.read(found[-1])
    np.testing.assert_array_equal(bag['features'], file.features)
    coords = [] if file.coords is None else file.coords.tolist()
    assert bag['coords'].tolist() == coords
  assert found == ids(cohort)
  with pytest.raises(features.FeatureError, match=r'tfrecord.*array_record'):
    packed.find(folder)


def test_threads_read_at_the_same_time(cohort, dataset):
  found = packed.Packed(dataset)
  slides = ids(cohort) * 25
  with futures.ThreadPoolExecutor(8) as pool:
    bags = list(pool.map(found.read, slides))
  first = {slide: found.read(slide) for slide in set(slides)}
  for slide, bag in zip(slides, bags, strict=True):
    assert_same(bag, first[slide])


def test_all_faults_are_named_at_once(tmp_path):
  write_cohort(tmp_path, [np.float32] * 4, widths=[8, 8, 8, 9])
  (tmp_path / 'features' / 's.00.h5').unlink()
  (tmp_path / 'features' / 's.02.h5').write_bytes(b'no HDF5')
  with pytest.raises(features.FeatureError) as error:
    builder(tmp_path, tmp_path / 'packed')
  lines = str(error.value).splitlines()
  assert len(lines) == 3
  assert 's.00.h5: no such file' in lines[0]
  assert 's.02.h5: not a complete HDF5 file' in lines[1]
  assert 'features of [8, 9] dimensions are mixed' in lines[2]


def test_bad_features_leave_no_dataset(tmp_path):
  write_cohort(tmp_path, [np.float32] * 2)
  with h5py.File(tmp_path / 'features' / 's.01.h5', 'r+') as file:
    file['features'][3, 1] = np.nan
  made = builder(tmp_path, tmp_path / 'packed')
  with pytest.raises(features.FeatureError, match=r's\.01\.h5: NaN'):
    made.download_and_prepare()
  assert not pathlib.Path(made.data_dir).exists()


def test_what_json_lacks_is_refused(tmp_path):
  write_cohort(tmp_path, [np.float32])
  with h5py.File(tmp_path / 'features' / 's.00.h5', 'r+') as file:
    file.attrs['raw'] = h5py.Empty('f')
  with pytest.raises(features.FeatureError, match=r's\.00.*Empty'):
    builder(tmp_path, tmp_path / 'packed')


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
  with pytest.raises(features.FeatureError, match='no slide other'):
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
  with pytest.raises(features.FeatureError, match=r'1\.0\.0: the record of s'):
    for slide in ('s.00', 's.01', 's.02', 's.03'):
      found.read(slide)
  (copy / 'metadata.json').write_text('{}')
  with pytest.raises(features.FeatureError, match=r'not one of experiments'):
    packed.find(copy)
  with pytest.raises(ValueError, match='pass a SlideBagsConfig'):
    slide_bags.Builder(data_dir=tmp_path)
