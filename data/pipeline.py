"""Bags and labelled tiles in batches that are read ahead."""

from collections.abc import Callable, Iterator, Sequence
import functools

import numpy as np

from data.augment import NONE, Policy
from data.augment_ops import apply
from data.host_tensorflow import tf
from data.labelled_tiles import LabelledTiles, TileError

_THREADS = 2
_PREFETCH = 2
_JITTER = 0.2  # Largest relative change of brightness, contrast, saturation.
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601.
Batch = dict[str, np.ndarray]


def bag_batches(
  read: Callable[[int], np.ndarray],
  width: int,
  buckets: tuple[int, ...],
  bucket: np.ndarray,
  index: np.ndarray,
  *,
  threads: int = _THREADS,
) -> Iterator[np.ndarray]:
  """Reads the bags of a plan ahead of their use.

  Args:
    read: returns the features [N, D] of a bag of the cohort; from any thread.
    width: D.
    buckets: the padded lengths.
    bucket: bucket of every step, [S].
    index: bags of every step, [S, B]; -1 marks a filler.
    threads: files read at a time.

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

  steps, shape = (bucket, index), (index.shape[1], None, width)
  return _read_ahead(load, steps, np.float32, shape, threads=threads)


def _read_ahead(
  read: Callable[..., np.ndarray],
  steps: tuple[np.ndarray, ...],
  dtype: np.dtype,
  shape: tuple[int | None, ...],
  finish: Callable[..., tf.Tensor] = lambda read_in, *row: read_in,
  threads: int = _THREADS,
) -> Iterator[np.ndarray]:
  """Yields what is read for every step, in order, a few steps ahead.

  What `read` raises is raised as it is; TensorFlow would keep its text only.

  Args:
    read: makes an array of a row of each of `steps`.
    steps: arrays of S rows.
    dtype: of what is read.
    shape: of it; None where steps differ.
    finish: makes a TensorFlow program of it and what it was read by.
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
    read_in = tf.numpy_function(watched, row, dtype)
    return finish(tf.ensure_shape(read_in, shape), *row)

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
  mean: Sequence[float],
  std: Sequence[float],
  input_size: int | None = None,
  epoch: int | None = None,
  seed: int = 0,
  policy: Policy = NONE,
  balanced: bool = False,
) -> Iterator[Batch]:
  """Yields one epoch to train on, or all tiles in order to evaluate.

  In an epoch, order and augmentation are functions of seed and epoch; what is
  done to a tile depends on its id and on how often the epoch showed it before,
  not on the batch it is in. All batches are full: the last one is completed
  with tiles from the beginning of the epoch's order, or, to evaluate, with
  black tiles of label 0, weight 0 and index -1.

  Args:
    tiles: n tiles of size S.
    batch: tiles per batch, T.
    mean: of every channel, in the units of 0..1 for uint8 tiles.
    std: likewise.
    input_size: side of the images, pixels; S by default. Tiles are made smaller
      before and larger after they are augmented, which is the lesser work.
    epoch: number of the epoch; None to evaluate: all tiles in order.
    seed: of order and augmentation.
    policy: the augmentation; none by default.
    balanced: draws n tiles with replacement, the class first and evenly, then
      a tile of it; otherwise every tile is shown once.

  Yields:
    image, float32 [T, input_size, input_size, C]; label, int32 [T]; weight,
    float32 [T], 1 for a tile; index, int32 [T], rows of `tiles`.

  Raises:
    TileError: if there are no tiles to train on, a class of a balanced set has
      none, or some cannot be read.
  """
  if epoch is None:
    order = np.arange(-(-len(tiles) // batch) * batch)
    order[len(tiles) :] = -1
    key = np.zeros(len(order), np.uint64)
  else:
    order = epoch_order(tiles, batch, epoch, seed, balanced=balanced)
    key = _keys(tiles.key[order], _earlier(order), seed, epoch)
  for name, values in (('mean', mean), ('std', std)):
    if len(values) != tiles.channels:
      raise ValueError(
        f'found {name} {tuple(values)} for tiles of {tiles.channels} channel(s)'
      )
  pixels = tiles.pixels

  def load(rows: np.ndarray, _: np.ndarray) -> np.ndarray:
    real = rows[rows >= 0]
    images = tiles.load(real) if pixels is None else pixels[real]
    black = np.zeros((len(rows) - len(real), *images.shape[1:]), images.dtype)
    return np.concatenate([images, black]) if len(black) else images

  size = input_size or tiles.size
  prepare = _prepare_tiles(policy, size, tuple(mean), tuple(std))

  index = order.astype(np.int32).reshape(-1, batch)
  images = _read_ahead(
    load,
    (index, key.reshape(-1, batch)),
    tiles.dtype,
    (batch, tiles.size, tiles.size, tiles.channels),
    lambda image, _, key: prepare(image, key),
  )
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


def _earlier(order: np.ndarray) -> np.ndarray:
  """Returns how often each entry occurs before itself, [n]."""
  by_row = np.argsort(order, kind='stable')
  first = np.searchsorted(order[by_row], order[by_row])
  earlier = np.empty_like(order)
  earlier[by_row] = np.arange(len(order)) - first
  return earlier


def _keys(
  tile: np.ndarray, earlier: np.ndarray, seed: int, epoch: int
) -> np.ndarray:
  """Returns well mixed keys, uint64 [n]."""
  base = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)
  key = _mix(tile ^ base[0])
  return _mix(key + earlier.astype(np.uint64) * base[1])


def _mix(x: np.ndarray) -> np.ndarray:
  """The finaliser of SplitMix64, a bijection of 64 bits."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@functools.cache  # Traced once, not in every epoch.
def _prepare_tiles(
  policy: Policy,
  size: int,
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
  """Returns what makes network input of tiles as read."""

  @tf.function
  def prepare(image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    image = _from_0_to_1(image)
    if size < image.shape[1]:
      image = tf.image.resize(image, (size, size), antialias=True)
    image = normalised(apply(image, key, policy))
    if size > image.shape[1]:
      image = tf.image.resize(image, (size, size))
    return image

  @tf.function(jit_compile=True)  # One pass over the pixels, not two.
  def normalised(image: tf.Tensor) -> tf.Tensor:
    return (image - mean) / std

  return prepare


@tf.function(jit_compile=True)
def _from_0_to_1(image: tf.Tensor) -> tf.Tensor:
  return tf.cast(image, tf.float32) / (255 if image.dtype == tf.uint8 else 1)


@tf.function(jit_compile=True)  # One pass over the pixels, not one per step.
def flip_and_jitter(
  tiles: tf.Tensor, index: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
  """Returns tiles flipped and changed in colour, each by its own draw.

  Brightness, contrast about the mean grey of the tile, and saturation are
  multiplied by factors drawn evenly from 0.8 to 1.2, in this order; either axis
  is flipped with probability 1/2.

  Args:
    tiles: uint8 [B, S, S, 3].
    index: int32 [B]; with the seed, it determines the draw of a tile.
    seed: int64 [].
  """
  tiles = tf.cast(tiles, tf.float32) / 255
  draw = tf.map_fn(
    lambda i: tf.random.stateless_uniform([5], [seed, i], alg='philox'),
    tf.cast(index, tf.int64),
    fn_output_signature=tf.float32,
  )[:, :, None, None, None]
  tiles = tf.where(draw[:, 0] < 0.5, tiles[:, ::-1], tiles)
  tiles = tf.where(draw[:, 1] < 0.5, tiles[:, :, ::-1], tiles)
  brightness, contrast, saturation = tf.unstack(
    1 + _JITTER * (2 * draw[:, 2:] - 1), axis=1
  )
  tiles = tiles * brightness
  mean = tf.reduce_mean(_grey(tiles), [1, 2], keepdims=True)
  tiles = mean + contrast * (tiles - mean)
  grey = _grey(tiles)
  tiles = grey + saturation * (tiles - grey)
  tiles = tf.round(255 * tf.clip_by_value(tiles, 0, 1))
  return tf.cast(tiles, tf.uint8)


def _grey(tiles: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(tiles * _LUMA, -1, keepdims=True)
