"""Labelled tiles as tf.data: read, augmented, resized, normalised, batched."""

from collections.abc import Callable, Iterator, Sequence
import functools

import numpy as np

from data.augment import NONE, Policy
from data.augment_ops import apply
from data.host_tensorflow import as_numpy, tf
from data.labelled_tiles import LabelledTiles, TileError

_THREADS = 2
_PREFETCH = 2
Batch = dict[str, np.ndarray]


def batches(
  tiles: LabelledTiles,
  *,
  batch: int,
  epoch: int,
  seed: int,
  policy: Policy,
  mean: Sequence[float],
  std: Sequence[float],
  balanced: bool = False,
  input_size: int | None = None,
) -> Iterator[Batch]:
  """Yields one epoch to train on.

  Order and augmentation are functions of seed and epoch; what is done to a tile
  depends on its id and on how often the epoch showed it before, not on the
  batch it is in. All batches are full: the last one is completed with tiles
  from the beginning of the epoch's order.

  Args:
    tiles: n tiles of size S.
    batch: tiles per batch, T.
    epoch: number of the epoch.
    seed: of order and augmentation.
    policy: the augmentation.
    mean: of every channel, in the units of 0..1 for uint8 tiles.
    std: likewise.
    balanced: draws n tiles with replacement, the class first and evenly, then
      a tile of it; otherwise every tile is shown once.
    input_size: side of the images, pixels; S by default. Tiles are made smaller
      before and larger after they are augmented, which is the lesser work.

  Yields:
    image, float32 [T, input_size, input_size, C]; label, int32 [T]; weight,
    float32 [T], all 1; index, int32 [T], rows of `tiles`.

  Raises:
    TileError: if there are no tiles, a class of a balanced set has none, or
      some cannot be read.
  """
  order = epoch_order(tiles, batch, epoch, seed, balanced=balanced)
  key = _keys(tiles.key[order], _earlier(order), seed, epoch)
  yield from _stream(
    tiles, order, key, batch, policy, input_size, tuple(mean), tuple(std)
  )


def ordered_batches(
  tiles: LabelledTiles,
  *,
  batch: int,
  mean: Sequence[float],
  std: Sequence[float],
  input_size: int | None = None,
) -> Iterator[Batch]:
  """Yields all tiles in order, as they are, to evaluate.

  Args and yields as `batches`. Black tiles of label 0, weight 0 and index -1
  complete the last batch.

  Raises:
    TileError: if some cannot be read.
  """
  order = np.arange(-(-len(tiles) // batch) * batch)
  order[len(tiles) :] = -1
  key = np.zeros(len(order), np.uint64)
  yield from _stream(
    tiles, order, key, batch, NONE, input_size, tuple(mean), tuple(std)
  )


def epoch_order(
  tiles: LabelledTiles, batch: int, epoch: int, seed: int, *, balanced: bool
) -> np.ndarray:
  """Returns the rows that an epoch shows, int [a multiple of `batch`].

  Args and raises as `batches`.
  """
  if not len(tiles):
    raise TileError('found no tile to train on')
  rng = np.random.default_rng([seed, epoch])
  if balanced:
    rows = [np.flatnonzero(tiles.label == c) for c in range(len(tiles.classes))]
    for name, found in zip(tiles.classes, rows, strict=True):
      if not len(found):
        raise TileError(f'class {name}: no tile to draw a balanced epoch from')
    drawn = rng.integers(len(rows), size=len(tiles))
    place = rng.random(len(tiles))
    order = np.empty(len(tiles), int)
    for c, found in enumerate(rows):
      here = drawn == c
      order[here] = found[(place[here] * len(found)).astype(int)]
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


def _stream(
  tiles: LabelledTiles,
  order: np.ndarray,
  key: np.ndarray,
  batch: int,
  policy: Policy,
  input_size: int | None,
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> Iterator[Batch]:
  """Yields the tiles of `order`; -1 is a filler."""
  for name, values in (('mean', mean), ('std', std)):
    if len(values) != tiles.channels:
      raise ValueError(
        f'found {name} {values} for tiles of {tiles.channels} channel(s)'
      )
  pixels = tiles.pixels
  faults = []

  def load(rows: np.ndarray) -> np.ndarray:
    real = rows[rows >= 0]
    try:
      found = tiles.load(real) if pixels is None else pixels[real]
    except Exception as e:  # TensorFlow would keep its text only.
      faults.append(e)
      raise
    black = np.zeros((len(rows) - len(real), *found.shape[1:]), found.dtype)
    return np.concatenate([found, black]) if len(black) else found

  shape = (batch, tiles.size, tiles.size, tiles.channels)
  prepare = _prepare(policy, input_size or tiles.size, mean, std)

  def make(row: Batch, key: tf.Tensor) -> Batch:
    image = tf.numpy_function(load, [row['index']], tiles.dtype)
    return row | {'image': prepare(tf.ensure_shape(image, shape), key)}

  columns = {
    'label': np.where(order < 0, 0, tiles.label[order]).astype(np.int32),
    'weight': (order >= 0).astype(np.float32),
    'index': order.astype(np.int32),
  }
  steps = {k: v.reshape(-1, batch) for k, v in columns.items()}
  dataset = (
    tf.data.Dataset.from_tensor_slices((steps, key.reshape(-1, batch)))
    .map(make, num_parallel_calls=_THREADS, deterministic=True)
    .prefetch(_PREFETCH)
  )
  try:
    yield from as_numpy(dataset)
  except tf.errors.OpError:
    if faults:
      raise faults[0] from None
    raise


@functools.cache  # Traced once, not in every epoch.
def _prepare(
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
