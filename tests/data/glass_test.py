"""Glass is told from tissue whether or not an image holds any."""

import numpy as np

from data import glass


def noisy(shape, colour, seed=0):
  rng = np.random.default_rng(seed)
  image = np.full((*shape, 3), colour, float) + rng.normal(0, 4, (*shape, 3))
  return image.clip(0, 255).astype(np.uint8)


def test_an_image_of_tissue_alone_has_no_glass():
  assert not glass.glass(noisy((60, 60), (225, 170, 215)), 1.0).any()
  assert glass.glass(noisy((60, 60), (238, 236, 240)), 1.0).all()


def test_glass_ends_where_tissue_begins():
  for light in (244, 215):  # Of a bright and of a dim lamp.
    image = noisy((80, 100), light)
    image[:, 40:] = noisy((80, 60), (200, 120, 180))
    found = glass.glass(image, 1.0)
    assert found[:, :34].all() and not found[:, 46:].any()


def test_slits_between_cells_are_no_glass_and_lumens_are():
  for mpp in (1.0, 0.5):
    image = noisy((200, 200), (200, 120, 180))
    slit, lumen = round(3 / mpp), round(30 / mpp)
    image[:, 20 : 20 + slit] = 245
    image[50 : 50 + lumen, 60 : 60 + lumen] = 245
    found = glass.glass(image, mpp)
    assert not found[:, :50].any()
    middle = 60 + lumen // 2
    assert found[50 + lumen // 2, middle]
