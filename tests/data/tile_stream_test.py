from concurrent.futures import ThreadPoolExecutor
import dataclasses
import pathlib
import threading
import time

import numpy as np
import openslide
import pytest

from data import pipeline
from data.phantom import tiff
from data.pipeline import slide_batches
from data.slides import Slide, SlideError
from data.tiling import read_tile_bgrx, tile_grid

WSI = pathlib.Path(__file__).parents[3] / 'shared/data/wsi'
needs_wsi = pytest.mark.skipif(
  not WSI.is_dir(), reason=f'no real slides at {WSI}'
)
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def read_tile(slide, grid, i):
  out = np.empty((grid.tile_size, grid.tile_size, 4), np.uint8)
  return read_tile_bgrx(slide, grid, i, out)[..., 2::-1]


@pytest.fixture(scope='module')
def slide(tmp_path_factory):
  rng = np.random.default_rng(0)
  image = (
    rng.integers(0, 256, (20, 28, 3), np.uint8).repeat(16, 0).repeat(16, 1)
  )
  path = tmp_path_factory.mktemp('slides') / 'a.tiff'
  tiff.write(path, image, mpp=0.5, levels=1)
  with Slide(path) as slide:
    yield slide


@pytest.fixture(scope='module')
def grid(slide):
  grid = tile_grid(slide, tile_size=64, min_tissue=0)
  assert len(grid.coords) == 35
  return grid


def tiles_of(stream):
  """Returns the tiles of weight 1, joined."""
  return np.concatenate([tiles[weight > 0] for tiles, weight in stream])


@pytest.mark.parametrize('batch, threads', [(1, 1), (8, 2), (35, 3), (64, 2)])
def test_batches_hold_every_tile_once_in_order(slide, grid, batch, threads):
  stream = list(slide_batches(slide, grid, batch=batch, threads=threads))
  assert len(stream) == -(-35 // batch)
  for tiles, weight in stream:
    assert tiles.shape == (batch, 64, 64, 3) and tiles.dtype == np.float32
    assert weight.shape == (batch,) and weight.dtype == np.float32
  weights = np.concatenate([weight for _, weight in stream])
  np.testing.assert_array_equal(weights, np.arange(len(weights)) < 35)
  expected = np.stack([read_tile(slide, grid, i) for i in range(35)])
  np.testing.assert_allclose(
    tiles_of(stream), (expected / 255 - MEAN) / STD, atol=1e-5
  )
  padding = stream[-1][0][weights[-batch:] == 0]
  assert len(padding) == -35 % batch
  np.testing.assert_allclose(
    padding, np.broadcast_to(-MEAN / STD, padding.shape), rtol=1e-5
  )


def test_resampled_tiles_are_streamed_as_they_are_read(slide):
  grid = tile_grid(slide, tile_size=64, mpp=0.8, min_tissue=0)
  tiles = tiles_of(slide_batches(slide, grid, batch=4, threads=2))
  expected = [read_tile(slide, grid, i) for i in range(len(grid.coords))]
  np.testing.assert_array_equal(np.rint((tiles * STD + MEAN) * 255), expected)


def test_augmentation_depends_on_seed_and_tile_alone(slide, grid):
  def augmented(seed, batch=8, threads=2):
    stream = slide_batches(
      slide, grid, batch=batch, threads=threads, augment_seed=seed
    )
    return tiles_of(stream)

  first = augmented(1)
  np.testing.assert_allclose(augmented(1, 5, 1), first, atol=1e-5)
  other = augmented(2)
  assert (np.abs(other - first).mean((1, 2, 3)) > 0.05).sum() > 30
  plain = tiles_of(slide_batches(slide, grid, batch=8, threads=2))
  assert (np.abs(plain - first).mean((1, 2, 3)) > 0.02).sum() > 30
  shown = first * STD + MEAN
  assert shown.min() > -1e-4 and shown.max() < 1 + 1e-4


def test_augmentation_is_a_flip_and_a_change_of_colour(slide, grid):
  plain = tiles_of(slide_batches(slide, grid, batch=35, threads=2)) * STD + MEAN
  stream = slide_batches(slide, grid, batch=35, threads=2, augment_seed=0)
  flips, gains = [], []
  for before, after in zip(plain, tiles_of(stream) * STD + MEAN, strict=True):
    views = [before, before[::-1], before[:, ::-1], before[::-1, ::-1]]
    grey = [(view @ pipeline._LUMA).ravel() for view in views]
    seen = (after @ pipeline._LUMA).ravel()
    match = [np.corrcoef(seen, view)[0, 1] for view in grey]
    flips.append(int(np.argmax(match)))
    assert max(match) > 0.97  # Less than 1 where colours are clipped.
    gains.append(seen.mean() / grey[0].mean())
  assert set(flips) == {0, 1, 2, 3}
  assert 0.75 < min(gains) < 0.9 and 1.05 < max(gains) < 1.25


def test_an_error_reaches_the_consumer_as_it_is(slide, grid, monkeypatch):
  real = pipeline.read_tile_bgrx

  def read(slide, grid, i, out):
    if i == 20:
      raise SlideError('a.tiff: tile 20 is damaged.')
    return real(slide, grid, i, out)

  monkeypatch.setattr(pipeline, 'read_tile_bgrx', read)
  stream = slide_batches(slide, grid, batch=8, threads=2)
  assert [len(next(stream)[0]) for _ in range(2)] == [8, 8]
  with pytest.raises(SlideError, match=r'^a\.tiff: tile 20 is damaged\.$'):
    next(stream)


@needs_wsi
def test_an_unreadable_slide_gives_no_batch_at_all():
  with Slide(WSI / 'openslide-fixtures/unreadable.svs') as slide:
    grid = tile_grid(slide, tile_size=8, min_tissue=0)
    with pytest.raises(SlideError, match=r'^unreadable\.svs: .*cannot be read'):
      next(slide_batches(slide, grid, batch=2, threads=2))


def test_a_consumer_that_stops_early_leaves_no_reader(slide, grid):
  def readers():
    return [t for t in threading.enumerate() if 'tile-reader' in t.name]

  stream = slide_batches(slide, grid, batch=1, threads=2)
  next(stream)
  assert readers()
  stream.close()
  del stream
  deadline = time.monotonic() + 10
  while readers() and time.monotonic() < deadline:
    time.sleep(0.02)
  assert not readers()


def test_tiles_are_read_while_the_consumer_works(slide, grid, monkeypatch):
  real = pipeline.read_tile_bgrx
  allowed, done = threading.Semaphore(1), []

  def read(slide, grid, i, out):
    allowed.acquire()
    done.append(i)
    return real(slide, grid, i, out)

  monkeypatch.setattr(pipeline, 'read_tile_bgrx', read)
  stream = slide_batches(slide, grid, batch=1, threads=1)
  next(stream)
  allowed.release(2)
  deadline = time.monotonic() + 10  # No further batch is asked for meanwhile.
  while len(done) < 3 and time.monotonic() < deadline:
    time.sleep(0.01)
  ahead = list(done)
  allowed.release(len(grid.coords))  # Or the reader would wait for ever.
  assert ahead == [0, 1, 2]
  assert len(list(stream)) == len(grid.coords) - 1


@needs_wsi
def test_reading_reaches_nine_tenths_of_a_bare_loop(monkeypatch):
  path, threads = WSI / 'CMU-1-Small-Region.svs', 2
  with Slide(path) as slide:
    grid = tile_grid(slide, min_tissue=0)
  grid = dataclasses.replace(grid, coords=np.tile(grid.coords, (2, 1)))

  def seconds(run):
    clocks = time.perf_counter, time.process_time
    start = [clock() for clock in clocks]
    run()
    return [
      clock() - before for clock, before in zip(clocks, start, strict=True)
    ]

  def bare():
    with openslide.OpenSlide(path) as handle:
      with ThreadPoolExecutor(threads) as pool:
        for corner in grid.coords.tolist():
          pool.submit(handle.read_region, corner, 0, (256, 256))

  monkeypatch.setattr(pipeline, '_normalise', lambda *read: read[:2])

  def streamed():
    with Slide(path) as slide:
      for _ in slide_batches(slide, grid, batch=32, threads=threads):
        pass

  # Processor time is steady on a busy machine; time on the clock, which also
  # shows threads that wait for each other, is not, and gets several chances.
  worst = []
  for _ in range(8):
    pairs = np.array([(seconds(bare), seconds(streamed)) for _ in range(5)])
    clock, processor = np.divide(*np.median(pairs, 0))
    worst.append(min(clock, processor))
    if worst[-1] >= 0.9:
      return
  pytest.fail(f'reading runs at {np.round(worst, 2)} of a bare loop')
