"""Streamed bags equal a NumPy reference, in the order of the plan."""

import h5py
import numpy as np
import pytest

from data import features, host_tensorflow, pipeline
from kmil_jax.tasks import bags as plan

WIDTH = 3
LENGTHS = np.array([1, 9, 30, 8, 100, 17, 25])
ATTRS = dict.fromkeys(features.ATTRIBUTES, 1) | {'encoder': 'resnet50'}


@pytest.fixture(scope='module')
def bags(tmp_path_factory):
  """Paths and features of seven bags."""
  folder = tmp_path_factory.mktemp('features')
  rng = np.random.default_rng(0)
  rows = [rng.normal(size=(n, WIDTH)).astype(np.float32) for n in LENGTHS]
  for i, x in enumerate(rows):
    coords = np.zeros((len(x), 2), int)
    features.write(folder / f'{i}.h5', x, coords, ATTRS)
  return [folder / f'{i}.h5' for i in range(len(rows))], rows


def reader(paths):
  return lambda i: features.read(paths[i]).features


def padded(rows, length, index):
  batch = np.zeros((len(index), length, WIDTH), np.float32)
  for b, bag in enumerate(index):
    if bag >= 0:
      batch[b, : len(rows[bag])] = rows[bag]
  return batch


@pytest.mark.parametrize(('batch', 'threads'), [(1, 4), (3, 2), (8, 1)])
def test_batches_are_those_of_the_plan(bags, batch, threads):
  paths, rows = bags
  buckets = plan.bucket_lengths(LENGTHS)
  bucket, index = plan.plan_epoch(
    LENGTHS, buckets, visit=LENGTHS > 1, batch=batch, seed=1, epoch=2
  )
  got = list(
    pipeline.bag_batches(
      reader(paths), WIDTH, buckets, bucket, index, threads=threads
    )
  )
  assert len(got) == len(bucket)
  for x, b, i in zip(got, bucket, index, strict=True):
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, padded(rows, buckets[b], i))


def test_real_files_of_three_layouts_stream(real_data):
  folder = real_data / 'feature_files'
  paths = [
    next((folder / 'clam/feats/h5_files').glob('*.h5')),
    next((folder / 'trident').glob('*/features_*/*.h5')),
    next((folder / 'stamp').glob('*/*.h5')),
  ]
  header = features.header(paths[0])
  count, width = header.length, header.width
  clam, trident, stamp = pipeline.bag_batches(
    reader(paths), width, (64,), np.zeros(3, np.int32), np.arange(3)[:, None]
  )
  assert clam.shape == (1, 64, width)
  assert clam[0, :count].any(1).all() and not clam[0, count:].any()
  np.testing.assert_array_equal(trident, clam)
  np.testing.assert_allclose(stamp, clam, rtol=1e-3)


def test_a_broken_file_stops_the_stream_by_name(bags, tmp_path):
  paths, rows = bags
  broken = tmp_path / 'broken.h5'
  broken.write_bytes(paths[2].read_bytes()[:700])
  paths = [*paths[:2], broken, *paths[3:]]
  bucket, index = np.zeros(4, np.int32), np.array([[0], [1], [2], [3]])
  stream = pipeline.bag_batches(reader(paths), WIDTH, (32,), bucket, index)
  with pytest.raises(features.FeatureError, match=r'broken\.h5: not a comp'):
    for step, x in enumerate(stream):
      assert step < 2  # What precedes it is sound.
      np.testing.assert_array_equal(x, padded(rows, 32, index[step]))


@pytest.mark.parametrize('fault', ['missing', 'NaN'])
def test_other_faults_name_their_file_too(tmp_path, fault):
  path = tmp_path / 'slide.7.h5'
  if fault == 'NaN':
    with h5py.File(path, 'w') as f:
      f['features'] = np.full((4, WIDTH), np.nan, np.float32)
  stream = pipeline.bag_batches(
    reader([path]),
    WIDTH,
    (8,),
    np.zeros(1, np.int32),
    np.zeros((1, 1), np.int32),
  )
  with pytest.raises(features.FeatureError, match=r'slide\.7\.h5'):
    list(stream)


def test_no_thread_tunes_a_dataset(bags, monkeypatch):
  """Whoever lets go of its iterator would wait for that thread to wake."""
  given = []
  dataset = host_tensorflow.tf.data.Dataset
  real = dataset.with_options
  monkeypatch.setattr(
    dataset, 'with_options', lambda *args: given.append(args[1]) or real(*args)
  )
  bucket, index = np.zeros(2, np.int32), np.array([[0], [1]])
  stream = pipeline.bag_batches(reader(bags[0]), WIDTH, (32,), bucket, index)
  assert len(list(stream)) == 2
  assert [options.autotune.enabled for options in given] == [False]
