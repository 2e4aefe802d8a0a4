"""Scores of slides: what is read, maps, detections, files."""

import numpy as np
import openslide
import pytest

from data import tiff
from data.slides import Slide, SlideError
from experiments.run.results import ResultsError
from experiments.studies import slide_scores
from experiments.studies.slide_scores import ScoreError

WIDTH, HEIGHT = 1300, 900


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


@pytest.fixture
def slide(path, monkeypatch):
  monkeypatch.setattr(slide_scores, 'tissue_map', everywhere)
  with Slide(path) as slide:
    yield slide


def scored(slide, folder, by=score, **changes):
  about = {'stride': 64, 'patch': 256, 'batch': 16} | changes
  return slide_scores.score(slide, by, folder / 'noise.npz', **about)


def test_the_map_is_of_the_patches_around_the_middles(slide, tmp_path):
  """Near the border, of patches moved inwards; as OpenSlide reads each."""
  sizes = []

  def counted(patches):
    sizes.append(patches.shape)
    return score(patches)

  scores = scored(slide, tmp_path, counted)
  assert scores.dtype == np.float32
  assert scores[0].any() and scores[-1].any() and scores[:, 0].any()
  assert set(sizes) == {(16, 256, 256, 3)}
  mask = everywhere(slide, 64)
  assert not scores[~mask].any()
  with openslide.OpenSlide(slide.path) as reference:
    for row, column in np.argwhere(mask).tolist():
      x = min(max(column * 64 + 32 - 128, 0), WIDTH - 256)
      y = min(max(row * 64 + 32 - 128, 0), HEIGHT - 256)
      patch = reference.read_region((x, y), 0, (256, 256))
      assert scores[row, column] == score(np.asarray(patch)[None, ..., :3])


@pytest.mark.parametrize('cell, size', [(512, 256), (100, 256), (512, 64)])
def test_windows_are_openslides_and_no_pixel_is_read_twice(
  path, monkeypatch, cell, size
):
  monkeypatch.setattr(slide_scores, 'CELL', cell)
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
    windows = [*slide_scores.windows(slide, places, size=size, batch=7)]
    assert reads.max() == 1
    assert len(windows) == 9
    windows = np.concatenate(windows)
    np.testing.assert_array_equal(windows[:60], expected)
    assert not windows[60:].any()
    reads[:] = 0  # Glass between tissue is not read.
    places = np.array([[0, 0], [0, 600]])
    list(slide_scores.windows(slide, places, size=64, batch=1))
    assert not reads[:, cell:].any()


def test_a_map_that_is_there_is_read(slide, tmp_path):
  first = scored(slide, tmp_path)
  np.testing.assert_array_equal(scored(slide, tmp_path, None), first)
  with pytest.raises(ScoreError, match=r'made with another model\. Remove it'):
    scored(slide, tmp_path, model='b')
  (tmp_path / 'noise.npz').write_bytes(b'PK')
  with pytest.raises(ResultsError, match=r'noise\.npz is damaged'):
    scored(slide, tmp_path)


def test_what_has_no_scores_is_named(slide, tmp_path, monkeypatch):
  with pytest.raises(ScoreError, match='not finite'):
    scored(slide, tmp_path, lambda p: np.full(len(p), np.nan))
  with pytest.raises(SlideError, match='no patch of 901'):
    scored(slide, tmp_path, patch=901)
  nothing = lambda slide, stride: np.zeros((14, 20), bool)
  monkeypatch.setattr(slide_scores, 'tissue_map', nothing)
  with pytest.raises(SlideError, match='no tissue'):
    scored(slide, tmp_path)
  assert not list(tmp_path.iterdir())


def literal(scores, radius, stop):
  """One peak after the other, on a map [x, y] as NCRF keeps it."""
  left, found = scores.T.copy(), []
  while left.max() > stop:
    x, y = np.unravel_index(left.argmax(), left.shape)
    found.append((left[x, y], (x + 0.5) * 64, (y + 0.5) * 64))
    left[max(x - radius, 0) : x + radius, max(y - radius, 0) : y + radius] = 0
  return found


@pytest.mark.parametrize('digits', [0, 1, 8])
@pytest.mark.parametrize('radius', [1, 6])
def test_detections_are_those_of_the_loop(digits, radius):
  rng = np.random.default_rng(digits)
  scores = rng.uniform(0, 3, (30, 45)).round(digits)
  for stop in (0.0, 0.5, 2.0, 3.0):
    found = slide_scores.detections(scores, radius=radius, stop=stop, stride=64)
    np.testing.assert_array_equal(
      found, np.reshape(literal(scores, radius, stop), (-1, 3))
    )


def test_a_slides_score_is_the_mean_of_what_reaches_the_threshold():
  by = slide_scores.slide_score
  assert by(np.array([[2.0, 2.01], [2.5, 0]]), 2.01) == 2.255
  assert by(np.array([[2.0, 0.0]]), 2.01) == 0


def test_a_maps_tiff_is_a_pyramid_of_its_values(tmp_path):
  y, x = np.mgrid[:300, :520]
  scores = (x / 520 + y / 300).astype(np.float32) * 1.5
  slide_scores.write_tiff(tmp_path / 'map.tiff', scores, mpp=16.0, most=3.0)
  with openslide.OpenSlide(tmp_path / 'map.tiff') as slide:
    assert slide.level_dimensions == ((520, 300), (260, 150))
    assert float(slide.properties['openslide.mpp-x']) == pytest.approx(16)
    pixels = np.asarray(slide.read_region((0, 0), 0, (520, 300)))
  np.testing.assert_allclose(pixels[..., 0] / 255 * 3, scores, atol=0.04)
