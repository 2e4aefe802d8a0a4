"""Convolutions that CPUs compute fast, too: as matrix products.

XLA has slow programs on CPUs for maps smaller than their kernel, for the
gradient to the input where the result is smaller, and for kernels of 1x1.
Figures are in BUILD_NOTES.md.
"""

from collections.abc import Sequence
from typing import Any

import chex
import jax
from jax import lax
import jax.numpy as jnp


def convolution(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **options: Any,
) -> jax.Array:
  """As `lax.conv_general_dilated`, for `nn.Conv` to call.

  Args:
    x: maps, [T, H, W, F].
    kernel: [a, b, F, G].
    strides: of both axes.
    padding: before and after, of both axes; by name for kernels of 1x1 only.
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
  if jax.default_backend() == 'cpu' and _small(x, kernel, strides, padding):
    return by_product(x, kernel, strides, padding, options['precision'])
  return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def pointwise_by_product(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **options: Any,
) -> jax.Array:
  """As `convolution`, and on CPUs a product where the kernel is 1x1.

  For networks that are not trained here: gradients would round otherwise, and
  small trainings hang on that (see BUILD_NOTES.md).
  """
  unpadded = isinstance(padding, str) or not any(map(any, padding))
  if jax.default_backend() == 'cpu' and kernel.shape[:2] == (1, 1) and unpadded:
    x = x[:, :: strides[0], :: strides[1]]
    return jnp.matmul(x, kernel[0, 0], precision=options['precision'])
  return convolution(x, kernel, strides, padding, **options)


def by_product(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  precision: lax.PrecisionLike = None,
) -> jax.Array:
  """Convolves by one product of all windows, side by side, with the kernel."""
  height, width, _, out = kernel.shape
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  h, w = _result(x.shape[1:3], kernel, strides)
  windows = [
    x[
      :,
      a : a + (h - 1) * strides[0] + 1 : strides[0],
      b : b + (w - 1) * strides[1] + 1 : strides[1],
    ]
    for a in range(height)
    for b in range(width)
  ]
  return jnp.matmul(
    jnp.concatenate(windows, -1), kernel.reshape(-1, out), precision=precision
  )


def _result(
  size: Sequence[int], kernel: jax.Array, strides: Sequence[int]
) -> list[int]:
  """Returns height and width of the result for padded maps of a size."""
  return [
    (n - k) // s + 1
    for n, k, s in zip(size, kernel.shape[:2], strides, strict=True)
  ]


def _small(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
) -> bool:
  """Whether maps, or the result, are smaller than the kernel."""
  size = [n + sum(p) for n, p in zip(x.shape[1:3], padding, strict=True)]
  sides = (*x.shape[1:3], *_result(size, kernel, strides))
  return min(sides) < max(kernel.shape[:2])
