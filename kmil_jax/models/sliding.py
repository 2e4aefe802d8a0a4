"""Max pooling and 3x3 depthwise convolutions that CPUs compute fast, too.

XLA has slow programs for both on CPUs: there, shifted slices of the map are
compared, or multiplied and added, one by one. Accelerators get XLA's own.
"""

import functools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

# Before and after each of the two spatial axes.
Padding = tuple[tuple[int, int], tuple[int, int]]


def max_pool(
  x: jax.Array, size: int, stride: int, padding: Padding = ((0, 0), (0, 0))
) -> jax.Array:
  """Returns the largest value in windows of `size` x `size`.

  Args:
    x: maps, [T, H, W, F].
    size: side of the windows.
    stride: from one window to the next.
    padding: with values that are below all others.

  Returns:
    Maps, [T, h, w, F]. Where two values of a window are equally large, CPUs
    share the gradient among them, accelerators give it to the first.
  """
  if jax.default_backend() != 'cpu':
    return nn.max_pool(x, (size, size), (stride, stride), padding)
  return max_pool_by_slices(x, size, stride, padding)


def max_pool_by_slices(
  x: jax.Array, size: int, stride: int, padding: Padding
) -> jax.Array:
  """As `max_pool`: of the largest of every row, the largest."""
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
  for axis in (1, 2):
    end = (x.shape[axis] - size) // stride * stride + 1
    x = functools.reduce(
      jnp.maximum,
      [
        lax.slice_in_dim(x, first, first + end, stride, axis)
        for first in range(size)
      ],
    )
  return x


def ceil_padding(x: jax.Array, size: int, stride: int) -> Padding:
  """Returns what completes the last window of each axis (ceiling mode)."""
  height, width = ((0, -(n - size) % stride) for n in x.shape[1:3])
  return height, width


def depthwise_by_slices(
  x: jax.Array, kernel: jax.Array, stride: int
) -> jax.Array:
  """Convolves each channel of maps with its own 3x3 kernel, padded by 1.

  y[t, i, j, f] = sum_ab kernel[a, b, 0, f] x[t, s i + a - 1, s j + b - 1, f]

  Args:
    x: maps, [T, H, W, F].
    kernel: [3, 3, 1, F].
    stride: s.

  Returns:
    Maps, [T, ceil(H / s), ceil(W / s), F].
  """
  tiles, height, width, channels = x.shape
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  ends = [(n - 1) // stride * stride + 1 for n in (height, width)]
  y = jnp.zeros((), x.dtype)
  for a in range(3):
    for b in range(3):
      shifted = lax.slice(
        x,
        (0, a, b, 0),
        (tiles, a + ends[0], b + ends[1], channels),
        (1, stride, stride, 1),
      )
      y += shifted * kernel[a, b, 0]
  return y


class DepthwiseConv(nn.Module):
  """A 3x3 convolution of each channel by itself, padded by 1, no bias.

  The parameter `kernel` [3, 3, 1, F] is that of `flax.linen.Conv` with
  `feature_group_count=F`.

  Attributes:
    stride: spatial stride.
    dtype: type of the computation; the parameter stays float32.
    kernel_init: start of the kernel.
  """

  stride: int
  dtype: jnp.dtype
  kernel_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [T, H, W, F] to [T, ceil(H / stride), ceil(W / stride), F]."""
    channels = x.shape[-1]
    kernel = self.param('kernel', self.kernel_init, (3, 3, 1, channels))
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    if jax.default_backend() == 'cpu':
      return depthwise_by_slices(x, kernel, self.stride)
    return lax.conv_general_dilated(
      x,
      kernel,
      (self.stride, self.stride),
      ((1, 1), (1, 1)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=channels,
    )
