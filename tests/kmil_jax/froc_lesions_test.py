"""What FROC takes for a lesion, in micrometres."""

import numpy as np
import pytest
from scipy import ndimage

from kmil_jax import froc

PIXEL = 0.243 * 32  # um per pixel of level 5.


def disc(shape, middle, diameter_um):
  y, x = np.mgrid[: shape[0], : shape[1]]
  away = np.hypot(y - middle[0], x - middle[1])
  return away * PIXEL <= diameter_um / 2


# A lesion of 1 mm in the middle of row 100, and a cluster of 100 um.
MASK = disc((300, 400), (100, 100), 1000) | disc((300, 400), (100, 300), 100)


def test_a_lesion_counts_and_a_cluster_of_cells_does_not():
  truth = froc.lesions(MASK)
  assert truth.label.shape == MASK.shape
  lesion, cells = truth.label[100, [100, 300]]
  assert {lesion, cells} == {1, 2}
  assert not truth.cells[lesion - 1] and truth.cells[cells - 1]


def test_lesions_reach_half_of_75_um_beyond_the_mask():
  truth = froc.lesions(MASK)
  grown = truth.label == truth.label[100, 100]
  radius = np.sqrt(grown.sum() / np.pi) * PIXEL
  assert radius == pytest.approx(500 + 37.5, abs=PIXEL)


@pytest.mark.parametrize('gap, count', [(9, 1), (11, 2)])
def test_lesions_closer_than_75_um_are_one(gap, count):
  """75 um are 9.6 pixels; a gap of g pixels is g + 1 from middle to middle."""
  mask = np.zeros((80, 200), bool)
  mask[20:60, 20:80] = True
  mask[20:60, 80 + gap - 1 : 180] = True
  assert len(froc.lesions(mask).cells) == count


@pytest.mark.parametrize('diameter, cells', [(190, True), (212, False)])
def test_isolated_cells_measure_275_um_with_their_surroundings(diameter, cells):
  truth = froc.lesions(disc((80, 80), (40, 40), diameter))
  assert truth.cells.tolist() == [cells]


def test_pixels_that_meet_at_a_corner_are_one_lesion():
  """A pixel of level 8 is 62 um wide: nothing else is within 37.5 um."""
  mask = np.zeros((9, 9), bool)
  mask[3, 3] = mask[4, 4] = mask[7, 4] = True
  truth = froc.lesions(mask, level=8)
  np.testing.assert_array_equal(truth.label > 0, mask)
  assert truth.label[3, 3] == truth.label[4, 4] != truth.label[7, 4]


def test_holes_belong_to_the_lesion_around_them():
  ring = disc((200, 200), (100, 100), 1000)
  ring &= ~disc((200, 200), (100, 100), 600)
  truth = froc.lesions(ring)
  assert truth.label[100, 100] == 1 and len(truth.cells) == 1


def test_lesions_equal_those_of_the_whole_mask():
  """Only what is near tumour is looked at."""
  rng = np.random.default_rng(0)
  for _ in range(20):
    mask = np.zeros((90, 120), bool)
    for _ in range(rng.integers(1, 5)):
      y, x = rng.integers(0, 85), rng.integers(0, 115)
      mask[y : y + rng.integers(1, 40), x : x + rng.integers(1, 40)] = True
    near = ndimage.distance_transform_edt(~mask) < 37.5 / PIXEL
    whole, count = ndimage.label(
      ndimage.binary_fill_holes(near), np.ones((3, 3))
    )
    truth = froc.lesions(mask)
    assert len(truth.cells) == count
    pairs = np.unique(np.stack([whole, truth.label]).reshape(2, -1), axis=1)
    # One to one, the outside with itself.
    assert pairs.shape[1] == len(np.unique(whole)) == len(np.unique(pairs[1]))
    assert (pairs[:, 0] == 0).all()


def test_the_axis_of_a_disc_is_its_diameter_and_of_a_bar_its_length():
  grown = disc((100, 100), (50, 50), 60 * PIXEL)
  assert froc._major_axis(grown) == pytest.approx(60, abs=0.5)
  bar = np.ones((1, 120), bool)  # 4 sqrt(l^2 / 12) of a line.
  assert froc._major_axis(bar) == pytest.approx(4 * 120 / 12**0.5, abs=0.1)
  assert froc._major_axis(np.ones((1, 1), bool)) == 0
