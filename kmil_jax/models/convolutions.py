"""Convolutions and max pooling of maps: XLA's own, and on CPUs faster ones."""

from collections.abc import Sequence
from typing import Any

import chex
from flax import linen as nn
import jax
from jax import lax

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
    kernel: [a, b, F, G].
    strides: of both axes.
    padding: before and after, of both axes; by name for kernels of 1x1 only.
    pointwise: whether unpadded kernels of 1x1 are products on CPUs, too. For
      networks that are not trained here: gradients would round otherwise, and
      small trainings hang on that (see BUILD_NOTES.md).
    **options: as `nn.Conv` gives them: dimension numbers NHWC and HWIO,
      precision, no dilation, one group.

  Returns:
    [T, h, w, G].

  Raises:
    AssertionError: for dilations and groups, and for a named padding of a
      kernel that is not 1x1.
  """
  chex.assert_equal(options['feature_group_count'], 1)
  for side in ('lhs', 'rhs'):
    chex.assert_equal(tuple(options[f'{side}_dilation']), (1, 1))
  if isinstance(padding, str):
    chex.assert_shape(kernel, (1, 1, None, None))
    padding = ((0, 0), (0, 0))
  of_xla = lambda x, kernel: lax.conv_general_dilated(
    x, kernel, strides, padding, **options
  )
  by_product = lambda x, kernel: cpu.convolve_by_product(
    x, kernel, strides, padding, options['precision']
  )
  unpadded = not any(map(any, padding))
  if cpu.is_small(x, kernel, strides, padding) or (
    pointwise and unpadded and kernel.shape[:2] == (1, 1)
  ):
    return cpu.choose(by_product, of_xla, x, kernel)
  return of_xla(x, kernel)


def depthwise(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: cpu.Padding,
  **options: Any,
) -> jax.Array:
  """As `lax.conv_general_dilated` of each channel, for `nn.Conv` to call.

  Args:
    x: maps, [T, H, W, F].
    kernel: [a, b, 1, F].
    strides: of both axes.
    padding: before and after, of both axes.
    **options: as those of `convolution`, but of F groups.

  Returns:
    [T, h, w, F].
  """
  chex.assert_equal(options['feature_group_count'], x.shape[-1])
  return cpu.choose(
    lambda x, kernel: cpu.depthwise_by_slices(x, kernel, strides, padding),
    lambda x, kernel: lax.conv_general_dilated(
      x, kernel, strides, padding, **options
    ),
    x,
    kernel,
  )


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
