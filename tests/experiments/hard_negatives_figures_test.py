"""Grad-CAM over squares of tiles whose own last map has one cell."""

from types import SimpleNamespace

from colour_network import Colours
import numpy as np

from data import labelled_tiles
from experiments import hard_negatives_figures as figures
from kmil_jax.types import PatchRecipe


def seeing(red):
  """A network whose logit of the second class is the red, or the blue."""
  hidden = np.zeros((3, 16), np.float32)
  hidden[0 if red else 2, 0] = 1
  fc = np.zeros((16, 2), np.float32)
  fc[0, 1] = 1
  params = {
    'hidden': {'kernel': hidden, 'bias': np.zeros(16, np.float32)},
    'fc': {'kernel': fc, 'bias': np.zeros(2, np.float32)},
  }
  recipe = PatchRecipe(mean=(0.0,) * 3, std=(1.0,) * 3)
  return SimpleNamespace(
    model=Colours(num_classes=2), variables={'params': params}, recipe=recipe
  )


def test_squares_show_where_the_positive_is():
  rng = np.random.default_rng(0)
  label = np.arange(40) % 4 == 0
  pixels = np.where(label[:, None], (240, 0, 0), (0, 0, 240))[:, None, None]
  pixels = pixels + rng.integers(0, 10, (40, 4, 4, 3))
  tiles = labelled_tiles.from_arrays(
    pixels.astype(np.uint8), label, ['p'] * 40, ('neg', 'pos')
  )
  drawing = figures.grad_cam_of_squares(
    SimpleNamespace(test=tiles), seeing(red=False), seeing(red=True), 1
  )
  lines = np.array(drawing.axes).reshape(3, -1)
  for _, weak, strong in lines.T:
    (frame,) = strong.patches
    column, row = np.round(np.array(frame.get_xy()) / 4 + 0.125).astype(int)
    shown = strong.images[0].get_array()
    found = strong.images[1].get_array()
    inside = np.s_[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
    assert shown[inside][..., 0].min() > 200  # The frame is around the red.
    assert found[inside].mean() > 2 * found.mean()
    other = weak.images[1].get_array()
    assert other[inside].mean() < other.mean()
