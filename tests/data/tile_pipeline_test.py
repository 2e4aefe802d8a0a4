"""Batches of tiles: order, completeness, draws that hang on seed and epoch."""

import dataclasses

import numpy as np
import pytest

from data import augment, labelled_tiles, pipeline
from data.host_tensorflow import tf
from data.labelled_tiles import TileError, from_arrays

# Few changes, which are compiled in little time.
SOME = augment.Policy(
  dihedral=1.0, rotation=(1.0, 180.0), brightness_contrast=(1.0, 0.2)
)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def planted(n=23, size=8, positives=5):
  images = np.random.default_rng(0).integers(
    0, 256, (n, size, size, 3), np.uint8
  )
  label = (np.arange(n) < positives).astype(int)
  ids = [f'tile {i}' for i in range(n)]
  return from_arrays(images, label, ['a'] * n, ('no', 'yes'), ids=ids)


def epoch(tiles, batch=4, epoch=0, seed=0, policy=augment.NONE, **kwargs):
  """One epoch, its batches joined."""
  stream = pipeline.tile_batches(
    tiles,
    batch=batch,
    epoch=epoch,
    seed=seed,
    policy=policy,
    mean=MEAN,
    std=STD,
    **kwargs,
  )
  return joined(list(stream), batch)


def joined(found, batch):
  for step in found:
    assert {len(column) for column in step.values()} == {batch}
    assert step['image'].dtype == step['weight'].dtype == np.float32
    assert step['label'].dtype == step['index'].dtype == np.int32
  return {k: np.concatenate([step[k] for step in found]) for k in found[0]}


def test_every_tile_once_and_the_last_batch_from_the_beginning():
  tiles = planted()
  seen = epoch(tiles)
  index = seen['index']
  assert len(index) == 24 and sorted(index[:23]) == list(range(23))
  assert index[23] == index[0]
  np.testing.assert_array_equal(seen['label'], tiles.label[index])
  np.testing.assert_array_equal(seen['weight'], 1)
  expected = (tiles.pixels[index] / 255 - MEAN) / STD
  np.testing.assert_allclose(seen['image'], expected, atol=1e-5)
  # More than the set holds is filled by going round.
  many = epoch(tiles.take([0, 1, 2]), batch=8)['index']
  np.testing.assert_array_equal(many[:3], many[3:6])
  np.testing.assert_array_equal(many[:2], many[6:])


def test_order_and_pictures_are_functions_of_seed_and_epoch():
  tiles, policy = planted(), SOME
  one, again = (epoch(tiles, epoch=3, policy=policy) for _ in range(2))
  for name in one:
    np.testing.assert_array_equal(one[name], again[name])
  for other in ({'epoch': 4}, {'epoch': 3, 'seed': 1}):
    moved = epoch(tiles, policy=policy, **other)
    assert (moved['index'] != one['index']).mean() > 0.5
    a, b = (s['image'][np.argsort(s['index'][:23])] for s in (one, moved))
    assert (np.abs(a - b).max((1, 2, 3)) > 0.1).all()


def test_a_tile_is_augmented_alike_in_any_batch_and_any_set():
  tiles, policy = planted(), SOME
  one, few = epoch(tiles, policy=policy), epoch(tiles, 7, policy=policy)
  first = {i: image for i, image in zip(*pair(one), strict=True)}
  for i, image in zip(*pair(few), strict=True):
    np.testing.assert_allclose(image, first[i], atol=1e-4)
  rows = np.array([20, 3, 11])
  subset = pair(epoch(tiles.take(rows), policy=policy))
  for i, image in zip(*subset, strict=True):
    np.testing.assert_allclose(image, first[rows[i]], atol=1e-4)


def pair(seen):
  """Rows and pictures of the first time each tile is shown."""
  rows, at = np.unique(seen['index'], return_index=True)
  return rows, seen['image'][at]


def test_a_tile_shown_twice_is_augmented_twice():
  seen = epoch(planted(1), batch=4, policy=SOME)
  assert len({image.tobytes() for image in seen['image']}) == 4


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
  found = joined(
    list(pipeline.tile_batches(tiles, batch=8, mean=MEAN, std=STD)), 8
  )
  np.testing.assert_array_equal(found['index'], [*range(23), -1])
  np.testing.assert_array_equal(found['weight'], [1] * 23 + [0])
  np.testing.assert_array_equal(found['label'], [*tiles.label, 0])
  expected = (tiles.pixels / 255 - MEAN) / STD
  np.testing.assert_allclose(found['image'][:23], expected, atol=1e-5)
  black = -np.array(MEAN) / STD
  np.testing.assert_allclose(
    found['image'][23], np.broadcast_to(black, (8, 8, 3)), rtol=1e-5
  )
  none = pipeline.tile_batches(tiles.take([]), batch=8, mean=MEAN, std=STD)
  assert list(none) == []


@pytest.mark.parametrize('policy', [augment.NONE, SOME])
def test_a_set_too_large_for_memory_gives_the_same(policy, monkeypatch):
  small = epoch(planted(), policy=policy)
  monkeypatch.setattr(labelled_tiles, 'IN_MEMORY', 0)
  large = planted()
  assert large.pixels is None
  for name, column in epoch(large, policy=policy).items():
    np.testing.assert_array_equal(column, small[name])


def test_floats_pass_as_they_are():
  images = np.random.default_rng(0).normal(size=(4, 5, 5, 1))
  tiles = from_arrays(
    images.astype(np.float32), [0, 1, 0, 1], ['a'] * 4, ('no', 'yes')
  )
  (step,) = pipeline.tile_batches(tiles, batch=4, mean=[1], std=[2])
  np.testing.assert_allclose(step['image'], (images - 1) / 2, atol=1e-6)
  with pytest.raises(
    ValueError, match=r'mean \(0.5, 0.4, 0.3\) for tiles of 1'
  ):
    epoch(tiles)


@pytest.mark.parametrize('size', [4, 16])
def test_tiles_are_resized(size):
  tiles = planted(4)
  seen = epoch(tiles, input_size=size)
  pixels = tiles.pixels[seen['index']] / 255
  images = seen['image'] * STD + MEAN
  assert images.shape == (4, size, size, 3)
  np.testing.assert_allclose(
    images,
    tf.image.resize(pixels, (size, size), antialias=size < 8).numpy(),
    atol=1e-5,
  )


def test_a_fault_reaches_the_consumer_as_it_is(monkeypatch):
  tiles = planted()

  def read(i):
    raise TileError(f'{tiles.id[i]}: torn')

  torn = dataclasses.replace(tiles, read=read)
  with pytest.raises(TileError, match='23 problem'):
    epoch(torn)
  monkeypatch.setattr(labelled_tiles, 'IN_MEMORY', 0)
  with pytest.raises(TileError, match=r'^tiles .*: 4 prob.*\n  tile \d+: torn'):
    epoch(dataclasses.replace(torn))
