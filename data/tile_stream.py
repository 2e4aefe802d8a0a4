"""Streams the tiles of a slide to an encoder, read ahead in threads."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
import itertools

import numpy as np

from data.host_tensorflow import as_numpy, tf
from data.imagenet import MEAN, STD
from data.slides import Slide
from data.tiling import Grid, read_tile_bgrx

_AHEAD = 2  # Batches read while one is handed over.
_CHUNKS = 4  # Tasks per thread and batch: few, so that tasks cost little.
_JITTER = 0.2  # Largest relative change of brightness, contrast, saturation.
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601.


def read_batches(
  slide: Slide, grid: Grid, *, batch: int, threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the tiles of a grid as read, in order, a few batches ahead.

  Fresh memory costs a tenth of the reading, so batches are read into the same
  few buffers in turn: copy what is kept.

  Args:
    slide: an open slide.
    grid: its tiles.
    batch: tiles per batch, B; the last batch is padded with black tiles.
    threads: how many threads read.

  Yields:
    tiles, uint8 [B, S, S, 4], whose channels are blue, green, red and padding,
    valid until the next batch is asked for, and the index of each in the grid,
    int32 [B], -1 for padding.

  Raises:
    SlideError: if a tile cannot be read; no later batch is yielded.
  """
  pool = ThreadPoolExecutor(threads, thread_name_prefix='tile-reader')
  pending = deque()
  rows_per_task = -(-batch // (threads * _CHUNKS))
  size = grid.tile_size
  buffers = itertools.cycle(
    np.empty((_AHEAD + 1, batch, size, size, 4), np.uint8)
  )

  def fill(tiles: np.ndarray, first: int, stop: int):
    for row, i in enumerate(range(first, stop)):
      read_tile_bgrx(slide, grid, i, tiles[row])

  def start(first: int) -> tuple[np.ndarray, np.ndarray, list[Future]]:
    stop = min(first + batch, len(grid.coords))
    tiles = next(buffers)
    tiles[stop - first :] = 0
    index = np.arange(first, first + batch, dtype=np.int32)
    index[stop - first :] = -1
    tasks = [
      pool.submit(fill, tiles[i - first :], i, min(i + rows_per_task, stop))
      for i in range(first, stop, rows_per_task)
    ]
    return tiles, index, tasks

  def finish() -> tuple[np.ndarray, np.ndarray]:
    tiles, index, tasks = pending.popleft()
    for task in tasks:
      task.result()
    return tiles, index

  try:
    for first in range(0, len(grid.coords), batch):
      pending.append(start(first))
      if len(pending) > _AHEAD:
        yield finish()
    while pending:
      yield finish()
  finally:
    pool.shutdown(cancel_futures=True)


def batches(
  slide: Slide,
  grid: Grid,
  *,
  batch: int,
  threads: int,
  augment_seed: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the tiles of a grid, ready for an encoder, in the order of the grid.

  Reading goes on while the caller works on a batch.

  Args:
    slide: an open slide.
    grid: its tiles.
    batch: tiles per batch, B.
    threads: how many threads read.
    augment_seed: if given, each tile is flipped and its colours are changed at
      random, as a function of this seed and its index in the grid alone.

  Yields:
    tiles, float32 [B, S, S, 3], normalised as ImageNet's images are, and
    weight, float32 [B], 1 for a tile and 0 for the padding of the last batch.

  Raises:
    SlideError: if a tile cannot be read.
  """
  failures = []

  def produce():
    try:
      for tiles, index in read_batches(
        slide, grid, batch=batch, threads=threads
      ):
        yield tiles.copy(), index
    except Exception as error:  # TensorFlow would keep its text only.
      failures.append(error)
      raise

  size = grid.tile_size
  seed = None if augment_seed is None else tf.constant(augment_seed, tf.int64)
  dataset = (
    tf.data.Dataset.from_generator(
      produce,
      output_signature=(
        tf.TensorSpec((batch, size, size, 4), tf.uint8),
        tf.TensorSpec((batch,), tf.int32),
      ),
    )
    .map(lambda tiles, index: _prepare(tiles, index, seed))
    .prefetch(2)
  )
  try:
    yield from as_numpy(dataset)
  except tf.errors.OpError:
    if failures:
      raise failures[0] from None
    raise


@tf.function(jit_compile=True)  # One pass over the pixels, not one per step.
def _prepare(tiles: tf.Tensor, index: tf.Tensor, seed: tf.Tensor | None):
  tiles = tf.cast(tiles[..., 2::-1], tf.float32) / 255
  if seed is not None:
    tiles = augment(tiles, index, seed)
  return (tiles - MEAN) / STD, tf.cast(index >= 0, tf.float32)


def augment(tiles: tf.Tensor, index: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Returns tiles flipped and changed in colour, each by its own draw.

  Brightness, contrast about the mean grey of the tile, and saturation are
  multiplied by factors drawn evenly from 0.8 to 1.2, in this order; either axis
  is flipped with probability 1/2.

  Args:
    tiles: float32 [B, S, S, 3] in 0..1.
    index: int32 [B]; with the seed, it determines the draw of a tile.
    seed: int64 [].
  """
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
  return tf.clip_by_value(tiles, 0, 1)


def _grey(tiles: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(tiles * _LUMA, -1, keepdims=True)
