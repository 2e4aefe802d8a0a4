"""What maps of scores are turned into: detections, a score, a TIFF."""

import numpy as np
import openslide
import pytest

from experiments.slide_scores import detections, pictures


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
    found = detections.find(scores, radius=radius, stop=stop)
    np.testing.assert_array_equal(
      found, np.reshape(literal(scores, radius, stop), (-1, 3))
    )


def test_peaks_closer_than_the_radius_are_one():
  scores = np.zeros((30, 40), np.float32)
  scores[10, 20], scores[10, 25], scores[10, 27] = 2.9, 2.8, 2.7
  found = detections.find(scores)
  np.testing.assert_allclose(
    found, [(2.9, 20.5 * 64, 10.5 * 64), (2.7, 27.5 * 64, 10.5 * 64)]
  )
  with pytest.raises(ValueError, match='stop=-1'):
    detections.find(scores, stop=-1)


def test_a_slides_score_is_the_mean_of_what_reaches_the_threshold():
  assert detections.slide_score(np.array([[2.0, 2.01], [2.5, 0]])) == 2.255
  assert detections.slide_score(np.array([[2.0, 0.0]])) == 0


def test_a_maps_tiff_is_a_pyramid_of_its_values(tmp_path):
  y, x = np.mgrid[:300, :520]
  scores = (x / 520 + y / 300).astype(np.float32) * 1.5
  pictures.write_tiff(tmp_path / 'map.tiff', scores, mpp=16.0)
  with openslide.OpenSlide(tmp_path / 'map.tiff') as slide:
    assert slide.level_dimensions == ((520, 300), (260, 150))
    assert float(slide.properties['openslide.mpp-x']) == pytest.approx(16)
    pixels = np.asarray(slide.read_region((0, 0), 0, (520, 300)))
  np.testing.assert_allclose(pixels[..., 0] / 255 * 3, scores, atol=0.04)
