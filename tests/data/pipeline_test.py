"""Batches of tiles, slides and bags: order, completeness, draws, read-ahead."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from samples import picture

from data import labelled_tiles, pipeline, tiff, tiling
from data.features import FeatureError
from data.labelled_tiles import TileError, from_arrays
from data.slides import Slide, SlideError
from data.tiling import read_tile, read_tiles, tile_grid
from kmil_jax.tasks import bags as plan


def planted(n=23, size=8, positives=5):
  label = (np.arange(n) < positives).astype(int)
  ids = [f'tile {i}' for i in range(n)]
  images = picture(0, (n, size, size, 3))
  return from_arrays(images, label, ['a'] * n, ('no', 'yes'), ids=ids)


def epoch(tiles, batch=4, epoch=0, **kwargs):
  """One epoch, or all tiles in order, its batches joined."""
  steps = list(pipeline.tile_batches(tiles, batch=batch, epoch=epoch, **kwargs))
  for step in steps:
    assert {len(column) for column in step.values()} == {batch}
    assert step['image'].dtype == tiles.dtype
    assert step['weight'].dtype == np.float32
    assert step['label'].dtype == step['index'].dtype == np.int32
  return {k: np.concatenate([step[k] for step in steps]) for k in steps[0]}


def test_every_tile_once_and_the_last_batch_from_the_beginning():
  tiles = planted()
  seen = epoch(tiles)
  index = seen['index']
  assert len(index) == 24 and sorted(index[:23]) == list(range(23))
  assert index[23] == index[0]
  np.testing.assert_array_equal(seen['label'], tiles.label[index])
  np.testing.assert_array_equal(seen['weight'], 1)
  np.testing.assert_array_equal(seen['image'], tiles.pixels[index])
  # More than the set holds is filled by going round.
  many = epoch(tiles.take([0, 1, 2]), batch=8)['index']
  np.testing.assert_array_equal(many[:3], many[3:6])
  np.testing.assert_array_equal(many[:2], many[6:])


def test_order_is_a_function_of_seed_and_epoch():
  one, again = (epoch(planted(), epoch=3) for _ in range(2))
  for name in one:
    np.testing.assert_array_equal(one[name], again[name])
  for other in ({'epoch': 4}, {'epoch': 3, 'seed': 1}):
    moved = epoch(planted(), **other)
    assert (moved['index'] != one['index']).mean() > 0.5


def test_balanced_draws_are_even_over_classes_and_tiles():
  tiles = planted(2000, 1, positives=100)
  counts = np.zeros(2000)
  for e in range(20):
    order = pipeline.epoch_order(tiles, 10, e, 0, balanced=True)
    assert len(order) == 2000
    counts += np.bincount(order, minlength=2000)
  # 20,000 draws of each class, with a standard deviation of 100.
  assert abs(counts[:100].sum() - 20_000) < 400
  assert abs(counts[:100].std() - np.sqrt(200)) < 4
  assert abs(counts[100:].std() - np.sqrt(20_000 / 1900)) < 0.3
  again = pipeline.epoch_order(tiles, 10, 19, 0, balanced=True)
  np.testing.assert_array_equal(order, again)
  with pytest.raises(TileError, match='class yes: no tile'):
    epoch(planted(positives=0), balanced=True)
  with pytest.raises(TileError, match='no tile to train on'):
    epoch(planted().take([]))


def test_ordered_batches_end_with_fillers():
  tiles = planted()
  seen = epoch(tiles, batch=8, epoch=None)
  np.testing.assert_array_equal(seen['index'], [*range(23), -1])
  np.testing.assert_array_equal(seen['weight'], [1] * 23 + [0])
  np.testing.assert_array_equal(seen['label'], [*tiles.label, 0])
  black = np.zeros((1, 8, 8, 3))
  expected = np.concatenate([tiles.pixels, black])
  np.testing.assert_array_equal(seen['image'], expected)
  none = pipeline.tile_batches(tiles.take([]), batch=8)
  assert list(none) == []


def test_a_set_too_large_for_memory_gives_the_same(monkeypatch):
  small = epoch(planted())
  monkeypatch.setattr(labelled_tiles, 'IN_MEMORY', 0)
  large = planted()
  assert large.pixels is None
  for name, column in epoch(large).items():
    np.testing.assert_array_equal(column, small[name])


def test_floats_pass_as_they_are():
  images = np.random.default_rng(0).random((2, 5, 5, 1), np.float32)
  tiles = from_arrays(images, [0, 1], ['a'] * 2, ('no', 'yes'))
  seen = epoch(tiles, batch=2, epoch=None)
  np.testing.assert_array_equal(seen['image'], images)


def test_a_fault_of_a_tile_reaches_the_consumer_as_it_is(monkeypatch):
  def read(i):
    raise TileError(f'tile {i}: torn')

  torn = dataclasses.replace(planted(), read=read)
  with pytest.raises(TileError, match='23 problem'):
    epoch(torn)
  monkeypatch.setattr(labelled_tiles, 'IN_MEMORY', 0)
  with pytest.raises(TileError, match=r'^tiles .*: 4 prob.*\n  tile \d+: torn'):
    epoch(dataclasses.replace(torn))


@pytest.fixture(scope='module')
def slide(tmp_path_factory):
  path = tmp_path_factory.mktemp('slides') / 'a.tiff'
  image = picture(0, (20, 28, 3)).repeat(16, 0).repeat(16, 1)
  tiff.write(path, image, mpp=0.5, levels=1)
  with Slide(path) as slide:
    yield slide


@pytest.fixture(scope='module')
def grid(slide):
  grid = tile_grid(slide, tile_size=64, min_tissue=0)
  assert len(grid.coords) == 35
  return grid


@pytest.mark.parametrize(
  'count, threads, mpp', [(1, 1, 0.5), (7, 2, 0.5), (64, 3, 0.5), (4, 2, 0.8)]
)
def test_every_tile_of_a_slide_comes_once_in_order(slide, count, threads, mpp):
  grid = tile_grid(slide, tile_size=64, mpp=mpp, min_tissue=0)
  n = len(grid.coords)
  tiles = list(read_tiles(slide, grid, count=count, threads=threads))
  assert {tile.dtype for tile in tiles} == {np.dtype(np.uint8)}
  expected = [read_tile(slide, grid, i) for i in range(n)]
  np.testing.assert_array_equal(tiles, expected)


def test_a_fault_of_a_slide_reaches_the_consumer_as_it_is(
  slide, grid, monkeypatch
):
  real = tiling.read_tile

  def read(slide, grid, i):
    if i == 20:
      raise SlideError('a.tiff: tile 20 is damaged.')
    return real(slide, grid, i)

  monkeypatch.setattr(tiling, 'read_tile', read)
  stream = read_tiles(slide, grid, count=8, threads=2)
  assert [next(stream).shape for _ in range(20)] == [(64, 64, 3)] * 20
  with pytest.raises(SlideError, match=r'^a\.tiff: tile 20 is damaged\.$'):
    next(stream)


def wait_for(condition):
  deadline = time.monotonic() + 10
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.01)


def test_a_consumer_that_stops_early_leaves_no_reader(slide, grid):
  def readers():
    return [t for t in threading.enumerate() if t.name.startswith('ahead')]

  stream = read_tiles(slide, grid, count=2, threads=2)
  next(stream)
  assert readers()
  stream.close()
  wait_for(lambda: not readers())
  assert not readers()


def test_tiles_are_read_while_the_consumer_works(slide, grid, monkeypatch):
  real = tiling.read_tile
  allowed, done = threading.Semaphore(1), []

  def read(slide, grid, i):
    allowed.acquire()
    done.append(i)
    return real(slide, grid, i)

  monkeypatch.setattr(tiling, 'read_tile', read)
  stream = read_tiles(slide, grid, count=2, threads=1)
  next(stream)
  allowed.release(2)
  wait_for(lambda: len(done) == 3)  # No tile is asked for meanwhile.
  ahead = list(done)
  allowed.release(len(grid.coords))  # Or the reader would wait for ever.
  assert ahead == [0, 1, 2]
  assert len(list(stream)) == len(grid.coords) - 1


LENGTHS = np.array([1, 9, 30, 8, 100, 17, 25])
BAGS = [np.random.default_rng(n).normal(size=(n, 3)) for n in LENGTHS]


def padded(length, index):
  batch = np.zeros((len(index), length, 3), np.float32)
  for row, bag in zip(batch, index, strict=True):
    if bag >= 0:
      row[: len(BAGS[bag])] = BAGS[bag]
  return batch


@pytest.mark.parametrize('batch', [1, 3, 8])
def test_batches_of_bags_are_those_of_the_plan(batch):
  buckets = plan.bucket_lengths(LENGTHS)
  bucket, index = plan.plan_epoch(
    LENGTHS, buckets, visit=LENGTHS > 1, batch=batch, seed=1, epoch=2
  )
  stream = pipeline.bag_batches(BAGS.__getitem__, 3, buckets, bucket, index)
  for x, b, i in zip(stream, bucket, index, strict=True):
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, padded(buckets[b], i))


def test_a_broken_bag_stops_the_stream_by_name():
  def read(bag):
    if bag == 2:
      raise FeatureError('broken.h5: not a complete HDF5 file')
    return BAGS[bag]

  bucket, index = np.zeros(4, np.int32), np.array([[0], [1], [2], [3]])
  stream = pipeline.bag_batches(read, 3, (32,), bucket, index)
  for step in range(2):  # What precedes it is sound.
    np.testing.assert_array_equal(next(stream), padded(32, index[step]))
  with pytest.raises(FeatureError, match=r'^broken\.h5: not a complete'):
    next(stream)
