"""Bags and labelled tiles in batches that are read ahead."""

from collections.abc import Callable, Iterator
import os

import numpy as np

from data.host_tensorflow import tf
from data.labelled_tiles import LabelledTiles, TileError

_THREADS = min(os.cpu_count() or 1, 16)  # Each holds a batch.
_PREFETCH = 2
_MOST = 2**32  # Bytes of bags that are read at a time.
Batch = dict[str, np.ndarray]


def bag_batches(
  read: Callable[[int], np.ndarray],
  width: int,
  buckets: tuple[int, ...],
  bucket: np.ndarray,
  index: np.ndarray,
) -> Iterator[np.ndarray]:
  """Reads the bags of a plan ahead of their use.

  Args:
    read: returns the features [N, D] of a bag of the cohort; from any thread.
    width: D.
    buckets: the padded lengths.
    bucket: bucket of every step, [S].
    index: bags of every step, [S, B]; -1 marks a filler.

  Yields:
    float32 [B, N, D] for each step, N the length of its bucket; zeros follow a
    bag's last instance and fill a filler.

  Raises:
    data.features.FeatureError: if `read` does.
  """

  def load(bucket, index):
    batch = np.zeros((len(index), buckets[bucket], width), np.float32)
    for row, bag in zip(batch, index, strict=True):
      if bag >= 0:
        features = read(bag)
        row[: len(features)] = features
    return batch

  largest = max(1, 4 * index.shape[1] * buckets[-1] * width)  # Bytes of a step.
  threads = max(1, min(_THREADS, _MOST // largest))
  steps, shape = (bucket, index), (index.shape[1], None, width)
  return _read_ahead(load, steps, np.float32, shape, threads=threads)


def _read_ahead(
  read: Callable[..., np.ndarray],
  steps: tuple[np.ndarray, ...],
  dtype: np.dtype,
  shape: tuple[int | None, ...],
  threads: int = _THREADS,
) -> Iterator[np.ndarray]:
  """Yields what is read for every step, in order, a few steps ahead.

  What `read` raises is raised as it is; TensorFlow would keep its text only.

  Args:
    read: makes an array of a row of each of `steps`.
    steps: arrays of S rows.
    dtype: of what is read.
    shape: of it; None where steps differ.
    threads: steps read at a time.
  """
  faults = []

  def watched(*row):
    try:
      return read(*row)
    except Exception as error:
      faults.append(error)
      raise

  def step(*row):
    return tf.ensure_shape(tf.numpy_function(watched, row, dtype), shape)

  dataset = tf.data.Dataset.from_tensor_slices(steps)
  dataset = dataset.map(step, num_parallel_calls=threads, deterministic=True)
  # Nothing here asks for tuning, and whoever lets go of an iterator waits for
  # the thread that tunes, which may sleep for most of a minute.
  options = tf.data.Options()
  options.autotune.enabled = False
  dataset = dataset.prefetch(_PREFETCH).with_options(options)
  try:
    yield from dataset.as_numpy_iterator()
  except tf.errors.OpError:
    if faults:
      raise faults[0] from None
    raise


def tile_batches(
  tiles: LabelledTiles,
  *,
  batch: int,
  epoch: int | None = None,
  seed: int = 0,
  balanced: bool = False,
) -> Iterator[Batch]:
  """Yields one epoch to train on, or all tiles in order to evaluate.

  In an epoch, the order is a function of seed and epoch. All batches are full:
  the last one is completed with tiles from the beginning of the epoch's order,
  or, to evaluate, with black tiles of label 0, weight 0 and index -1.

  Args:
    tiles: n tiles of size S.
    batch: tiles per batch, T.
    epoch: number of the epoch; None to evaluate: all tiles in order.
    seed: of the order.
    balanced: draws n tiles with replacement, the class first and evenly, then
      a tile of it; otherwise every tile is shown once.

  Yields:
    image, [T, S, S, C] as read; label, int32 [T]; weight, float32 [T], 1 for a
    tile; index, int32 [T], rows of `tiles`.

  Raises:
    TileError: if there are no tiles to train on, a class of a balanced set has
      none, or some cannot be read.
  """
  if epoch is None:
    order = np.arange(-(-len(tiles) // batch) * batch)
    order[len(tiles) :] = -1
  else:
    order = epoch_order(tiles, batch, epoch, seed, balanced=balanced)
  pixels = tiles.pixels

  def load(rows: np.ndarray) -> np.ndarray:
    real = rows[rows >= 0]
    images = tiles.load(real) if pixels is None else pixels[real]
    black = np.zeros((len(rows) - len(real), *images.shape[1:]), images.dtype)
    return np.concatenate([images, black]) if len(black) else images

  index = order.astype(np.int32).reshape(-1, batch)
  shape = batch, tiles.size, tiles.size, tiles.channels
  images = _read_ahead(load, (index,), tiles.dtype, shape)
  for rows, image in zip(index, images, strict=True):
    yield {
      'image': image,
      'label': np.where(rows < 0, 0, tiles.label[rows]).astype(np.int32),
      'weight': (rows >= 0).astype(np.float32),
      'index': rows,
    }


def epoch_order(
  tiles: LabelledTiles, batch: int, epoch: int, seed: int, *, balanced: bool
) -> np.ndarray:
  """Returns the rows that an epoch shows, int [a multiple of `batch`].

  Args and raises as `tile_batches`.
  """
  if not len(tiles):
    raise TileError('found no tile to train on')
  rng = np.random.default_rng([seed, epoch])
  if balanced:
    count = np.bincount(tiles.label, minlength=len(tiles.classes))
    if not count.all():
      name = tiles.classes[count.argmin()]
      raise TileError(f'class {name}: no tile to draw a balanced epoch from')
    by_class = np.argsort(tiles.label, kind='stable')
    first = count.cumsum() - count
    drawn = rng.integers(len(count), size=len(tiles))
    place = rng.random(len(tiles)) * count[drawn]
    order = by_class[first[drawn] + place.astype(int)]
  else:
    order = rng.permutation(len(tiles))
  return np.resize(order, -(-len(order) // batch) * batch)
