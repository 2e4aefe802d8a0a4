"""Lets a network look at windows that are cut out of an image on the device."""

from collections.abc import Callable
from typing import Any

import chex
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from kmil_jax import heatmap, losses, parallel
from kmil_jax.types import PatchRecipe

# (variables, uint8 windows [T, S, S, C]) -> probability of tumour [T]
Classify = Callable[[Any, jax.Array], jax.Array]


def classifier(model: nn.Module, recipe: PatchRecipe) -> Classify:
  """Returns a trained network of two classes as a function of raw windows.

  Windows are prepared as tiles were in training: from 0..255 to 0..1, resized
  (bilinear, antialiased where they shrink) and normalised.

  Args:
    model: of `models.CLASSIFIERS`; the second class is tumour.
    recipe: what it was trained with.
  """

  def classify(variables: Any, windows: jax.Array) -> jax.Array:
    x = windows.astype(jnp.float32) / 255
    side = recipe.input_size or x.shape[1]
    if side != x.shape[1]:
      x = jax.image.resize(x, (len(x), side, side, x.shape[3]), 'bilinear')
    x = (x - jnp.array(recipe.mean)) / jnp.array(recipe.std)
    logits = model.apply(variables, x, train=False).logits
    return losses.tile_probabilities(logits)[:, 1]

  return classify


class Image:
  """An image on every local device, as `Cutter` reads it.

  Args:
    pixels: uint8 [H, W, 3].

  Raises:
    ValueError: if the image has more than 1 GiB: offsets have 32 bits.
  """

  def __init__(self, pixels: np.ndarray):
    chex.assert_shape(pixels, (None, None, 3))
    chex.assert_type(pixels, np.uint8)
    self.shape = pixels.shape[:2]
    size = 1 << (pixels.size - 1).bit_length()
    if size > 1 << 30:
      raise ValueError(
        f'an image of {self.shape[0]} x {self.shape[1]} pixels does not fit:'
        ' cut it, or choose larger pixels'
      )
    flat = np.zeros(size, np.uint8)
    flat[: pixels.size] = pixels.ravel()
    width = np.int32(self.shape[1])
    self.pixels, self.width = parallel.replicate((flat, width))


class Cutter:
  """A network that looks at windows of images that lie on the device.

  An image is sent to the device once and every window is cut out there. It
  lies there as one row of bytes, filled up to a power of two, whose width is
  an argument: images of any shape within a factor of two share a program.

  Args:
    classify: probabilities of windows; pure.
    variables: its first argument.
    window: side of the windows, in pixels.
    batch: windows per call; a multiple of the devices.
  """

  def __init__(
    self,
    classify: Classify,
    variables: Any,
    *,
    window: int,
    batch: int | None = None,
  ):
    self.window = window
    self.batch = batch or default_batch()
    self.classify = classify
    self.variables = parallel.replicate(variables)

    def step(state, corners):
      variables, pixels, width = state
      return classify(variables, _cut(pixels, width, corners, window))

    self._step = parallel.pmap_local(step)

  def __call__(self, image: Image, corners: np.ndarray) -> np.ndarray:
    """Returns the probability of tumour in each window, float32 [n].

    Args:
      image: on the device.
      corners: row and column of the first pixel, int [n, 2]; inside the image.
    """
    state = (self.variables, image.pixels, image.width)
    prob = np.empty(len(corners), np.float32)
    for start in range(0, len(corners), self.batch):
      part = corners[start : start + self.batch].astype(np.int32)
      fillers = np.zeros((self.batch - len(part), 2), np.int32)
      found = self._step(state, np.concatenate([part, fillers]))
      prob[start : start + len(part)] = found[: len(part)]
    return prob


def scan(
  image: Image,
  primary: Cutter,
  secondary: Cutter | None = None,
  *,
  stride: int = heatmap.STRIDE,
  look: np.ndarray | None = None,
) -> heatmap.Windows:
  """Evaluates every window of an image once.

  The primary network sees all windows that are to be looked at, the secondary
  network those alone that the primary takes for tumour.

  Args:
    image: on the device.
    primary: first network.
    secondary: second network, of the same window; None for one step.
    stride: from one window to the next, in pixels.
    look: which windows to look at, bool [h, w], see `heatmap.on_tissue`; by
      default all.

  Returns:
    What they say, [h, w] of `heatmap.grid`.
  """
  shape = heatmap.grid(image.shape, primary.window, stride)
  if look is None:
    look = np.ones(shape, bool)
  chex.assert_shape(look, shape)
  places = np.argwhere(look)
  first = np.full(shape, np.nan, np.float32)
  first[look] = primary(image, places * stride)
  if secondary is None:
    return heatmap.Windows(primary=first, secondary=None)
  second = np.full(shape, np.nan, np.float32)
  fires = first >= heatmap.FIRES
  second[fires] = secondary(image, np.argwhere(fires) * stride)
  return heatmap.Windows(primary=first, secondary=second)


def _cut(
  pixels: jax.Array, width: jax.Array, corners: jax.Array, window: int
) -> jax.Array:
  """Cuts windows [T, S, S, 3] out of an image's flat `pixels`."""
  rows = corners[:, :1] + jnp.arange(window)
  starts = 3 * (rows * width + corners[:, 1:])
  row = lambda start: lax.dynamic_slice(pixels, (start,), (3 * window,))
  cut = jax.vmap(row)(starts.ravel())
  return cut.reshape(len(corners), window, window, 3)


def default_batch() -> int:
  """Windows per call: 64 per CPU device, else 1024."""
  per_device = 64 if parallel.platform() == 'cpu' else 1024
  return per_device * parallel.num_local_devices()
