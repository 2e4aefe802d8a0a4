"""Scores of slides: what is read, a killed job, detections, files."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import openslide
from PIL import Image
import pytest

from data.phantom import tiff
from data.slides import Slide, SlideError
from experiments.slide_scores import cohort, detections, reading, scoring
from experiments.slide_scores.scoring import ScoreError, score_slide

WIDTH, HEIGHT = 1300, 900
ROOT = pathlib.Path(__file__).parents[2]


def everywhere(slide, stride):
  """Tissue in a third of all places, at the borders too, and no row of 5."""
  shape = round(slide.height / stride), round(slide.width / stride)
  mask = np.random.default_rng(0).random(shape) < 1 / 3
  mask[[0, -1], 3] = mask[2, [0, -1]] = True
  mask[5] = False
  return mask


def score(patches):
  """A number that no other patch of noise has."""
  weight = np.random.default_rng(1).random(patches.shape[1:], np.float32)
  return (patches * weight).mean((1, 2, 3))


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  image = np.random.default_rng(0).integers(
    0, 256, (HEIGHT, WIDTH, 3), np.uint8
  )
  path = tmp_path_factory.mktemp('slides') / 'noise.tiff'
  tiff.write(path, image, mpp=0.25, levels=3)
  return path


@pytest.fixture(scope='module')
def expected(path):
  """Scores of OpenSlide's own reads, one patch at a time."""
  with Slide(path) as slide, openslide.OpenSlide(path) as reference:
    mask = everywhere(slide, 64)
    scores = np.zeros(mask.shape, np.float32)
    for row, column in np.argwhere(mask).tolist():
      x = min(max(column * 64 + 32 - 128, 0), WIDTH - 256)
      y = min(max(row * 64 + 32 - 128, 0), HEIGHT - 256)
      patch = reference.read_region((x, y), 0, (256, 256))
      patch = np.asarray(patch)[None, ..., :3]
      scores[row, column] = score(patch)[0]
  return scores


def test_the_map_is_of_the_patches_around_the_middles(path, expected, tmp_path):
  """Near the border, of patches moved inwards."""
  sizes = []

  def counted(patches):
    sizes.append(patches.shape)
    return score(patches)

  scores = score_slide(path, counted, tmp_path, batch=16, tissue=everywhere)
  assert scores.dtype == np.float32
  assert scores[0].any() and scores[-1].any() and scores[:, 0].any()
  np.testing.assert_array_equal(scores, expected)
  assert set(sizes) == {(16, 256, 256, 3)}


@pytest.mark.parametrize('cell, size', [(512, 256), (100, 256), (512, 64)])
def test_windows_are_openslides_and_no_pixel_is_read_twice(
  path, monkeypatch, cell, size
):
  monkeypatch.setattr(reading, 'CELL', cell)
  reads = np.zeros((HEIGHT, WIDTH), int)
  real = Slide.read

  def counted(slide, x, y, level, width, height):
    assert level == 0
    reads[y : y + height, x : x + width] += 1
    return real(slide, x, y, level, width, height)

  rng = np.random.default_rng(2)
  places = rng.integers(0, (WIDTH - size + 1, HEIGHT - size + 1), (60, 2))
  places = places[np.lexsort(places.T)]
  with Slide(path) as slide:
    expected = [real(slide, x, y, 0, size, size) for x, y in places.tolist()]
    monkeypatch.setattr(Slide, 'read', counted)
    batches = reading.read(slide, places, size=size, batch=7)
    windows = [batch.copy() for batch in batches]
  assert reads.max() == 1
  assert len(windows) == 9
  windows = np.concatenate(windows)
  np.testing.assert_array_equal(windows[:60], expected)
  assert not windows[60:].any()


def test_glass_between_tissue_is_not_read(path, monkeypatch):
  reads = []
  real = Slide.read
  monkeypatch.setattr(
    Slide, 'read', lambda slide, *at: (reads.append(at), real(slide, *at))[1]
  )
  with Slide(path) as slide:
    list(reading.read(slide, np.array([[0, 0], [0, 600]]), size=64, batch=1))
  assert sorted(reads) == [(0, 0, 0, 512, 512), (0, 512, 0, 512, 388)]


class Stopped(Exception):
  pass


@pytest.mark.parametrize('calls', [0, 1, 4])
def test_a_job_goes_on_with_the_same_batches(
  path, expected, tmp_path, monkeypatch, calls
):
  monkeypatch.setattr(scoring, '_SAVE', 0.0)
  seen = []

  def stopping(patches):
    if len(seen) == calls:
      raise Stopped
    seen.append(patches.copy())
    return score(patches)

  arguments = {'batch': 16, 'tissue': everywhere}
  with pytest.raises(Stopped):
    score_slide(path, stopping, tmp_path, **arguments)
  progress = []

  def going_on(patches):
    seen.append(patches.copy())
    return score(patches)

  scores = score_slide(
    path,
    going_on,
    tmp_path,
    progress=lambda *at: progress.append(at),
    **arguments,
  )
  np.testing.assert_array_equal(scores, expected)
  places = np.count_nonzero(expected)
  assert len(seen) == -(-places // 16)  # None was scored twice.
  assert progress[0] == (min(16 * (calls + 1), places), places)
  assert progress[-1] == (places, places)
  assert [p.name for p in tmp_path.iterdir()] == ['noise.npz']


_WORKER = """
import sys, time
sys.path[:0] = [{root!r}, {here!r}]
import slide_scores_test as test
test.scoring._SAVE = 0.0
def slow(patches):
  time.sleep(0.05)
  return test.score(patches)
test.score_slide({path!r}, slow, {folder!r}, batch=4, tissue=test.everywhere)
"""


def test_a_killed_job_leaves_what_it_scored(path, expected, tmp_path):
  part = tmp_path / 'noise.part.npz'
  code = _WORKER.format(
    root=str(ROOT),
    here=str(pathlib.Path(__file__).parent),
    path=str(path),
    folder=str(tmp_path),
  )
  worker = subprocess.Popen([sys.executable, '-c', code])
  try:
    while not part.exists():
      assert worker.poll() is None, 'it ended without saving'
      time.sleep(0.02)
  finally:
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
  assert part.exists() and not (tmp_path / 'noise.npz').exists()
  counts = itertools.count()
  scores = score_slide(
    path,
    lambda patches: (next(counts), score(patches))[1],
    tmp_path,
    batch=4,
    tissue=everywhere,
  )
  np.testing.assert_array_equal(scores, expected)
  assert next(counts) < -(-np.count_nonzero(expected) // 4)


def test_a_map_that_is_there_is_read(path, tmp_path):
  first = score_slide(path, score, tmp_path, tissue=everywhere)
  again = score_slide(path, None, tmp_path, tissue=everywhere)
  np.testing.assert_array_equal(again, first)
  with pytest.raises(ScoreError, match=r'model:  there, b now.*remove it'):
    score_slide(path, score, tmp_path, tissue=everywhere, model='b')
  with pytest.raises(ScoreError, match=r'tissue: .* there'):
    score_slide(path, score, tmp_path, tissue=lambda s, k: ~everywhere(s, k))
  (tmp_path / 'noise.npz').write_bytes(b'PK')
  with pytest.raises(ScoreError, match=r'noise\.npz: cannot be read'):
    score_slide(path, score, tmp_path, tissue=everywhere)


@pytest.mark.parametrize(
  'said, fault',
  [
    (lambda p: np.full(len(p), np.nan), r'the patch at \[\d+, 0\] is not'),
    (lambda p: np.zeros((len(p), 1)), r'scores \(64, 1\) of 64'),
  ],
)
def test_scores_that_are_none_are_refused(path, tmp_path, said, fault):
  with pytest.raises(ScoreError, match=fault):
    score_slide(path, said, tmp_path, tissue=everywhere)
  assert not list(tmp_path.iterdir())


def test_slides_without_a_patch_are_named(path, tmp_path):
  with pytest.raises(SlideError, match='smaller than a patch of 901'):
    score_slide(path, score, tmp_path, patch=901, tissue=everywhere)
  nothing = lambda slide, stride: np.zeros((14, 20), bool)
  with pytest.raises(SlideError, match='no tissue'):
    score_slide(path, score, tmp_path, tissue=nothing)


def test_a_cohort_is_scored_and_faults_are_collected(path, expected, tmp_path):
  bad = tmp_path / 'bad.tiff'
  bad.write_bytes(b'no slide')
  stop = float(np.quantile(expected[expected > 0], 0.7))
  run = lambda score_batch: cohort.run(
    tmp_path / 'out',
    {'bad': bad, 'a.1': path},
    score_batch,
    model='a',
    threshold=stop,
    stop=stop,
    radius=2,
    tissue=everywhere,
    outlines=lambda slide: [np.array([(100, 100), (500, 200), (300, 600)])],
  )
  scored = run(score)
  assert list(scored.faults) == ['bad'] and 'bad.tiff' in scored.faults['bad']
  assert scored.score == {
    'a.1': pytest.approx(expected[expected >= stop].mean())
  }
  found = detections.find(expected, stop=stop, radius=2)
  assert len(found) > 3
  np.testing.assert_array_equal(scored.found['a.1'], found)
  names = {
    str(p.relative_to(tmp_path / 'out')) for p in tmp_path.rglob('*/*/*.*')
  }
  assert names == {
    'maps/a.1.npz',
    'maps/a.1.png',
    'maps/a.1.tiff',
    'detections/a.1.csv',
  }
  rows = np.loadtxt(tmp_path / 'out/detections/a.1.csv', delimiter=',')
  np.testing.assert_array_equal(rows, found)
  with Image.open(tmp_path / 'out/maps/a.1.png') as image:
    assert image.width > 800
  assert run(None).score == scored.score  # From the map that is there.
