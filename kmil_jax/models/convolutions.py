"""Convolutions and max pooling of maps: XLA's own, and on CPUs faster ones."""

from collections.abc import Sequence
from typing import Any

import chex
from flax import linen as nn
import jax
from jax import lax
import numpy as np

from kmil_jax.models import cpu


def convolution(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | cpu.Padding,
  *,
  pointwise: bool = False,
  **options: Any,
) -> jax.Array:
  """As `lax.conv_general_dilated`, for `nn.Conv` to call.

  Args:
    x: maps, [T, H, W, F].
    kernel: [a, b, F, G], or [a, b, 1, F] to convolve each channel by itself.
    strides: of both axes.
    padding: before and after, of both axes; by name for kernels of 1x1 only.
    pointwise: whether unpadded kernels of 1x1 are products on CPUs, too. For
      networks that are not trained here: gradients would round otherwise, and
      small trainings hang on that (see BUILD_NOTES.md).
    **options: as `nn.Conv` gives them: dimension numbers NHWC and HWIO,
      precision, no dilation, one group or F.

  Returns:
    [T, h, w, G].

  Raises:
    AssertionError: for dilations, groups of several channels, and a named
      padding of a kernel that is not 1x1.
  """
  groups = options['feature_group_count']
  if groups > 1:
    chex.assert_equal((x.shape[-1], kernel.shape[-1]), (groups, groups))
  for side in ('lhs', 'rhs'):
    chex.assert_equal(tuple(options[f'{side}_dilation']), (1, 1))
  if isinstance(padding, str):
    chex.assert_shape(kernel, (1, 1, None, None))
    padding = ((0, 0), (0, 0))
  of_xla = lambda x, kernel: lax.conv_general_dilated(
    x, kernel, strides, padding, **options
  )
  by_slices = lambda x, kernel: cpu.convolve(
    x, kernel, strides, padding, options['precision']
  )
  product = pointwise and kernel.shape[:2] == (1, 1) and not np.any(padding)
  if groups > 1 or product or cpu.is_small(x, kernel, strides, padding):
    return cpu.choose(by_slices, of_xla, x, kernel)
  return of_xla(x, kernel)


def max_pool(
  x: jax.Array, size: int, stride: int, padding: cpu.Padding = ((0, 0), (0, 0))
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
  return cpu.choose(
    lambda x: cpu.max_pool_by_slices(x, size, stride, padding),
    lambda x: nn.max_pool(x, (size, size), (stride, stride), padding),
    x,
  )
