"""Convolutions of maps smaller than their kernel that CPUs compute fast, too.

XLA has no fast program for them on CPUs, nor for the gradient to the input
where the result is smaller than the kernel: a 3x3 convolution of 32 maps of
2 x 2 x 512 takes a second there, as one matrix product 8 ms.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp


def convolution(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **options: Any,
) -> jax.Array:
  """As `lax.conv_general_dilated`, for `nn.Conv` to call.

  Args:
    x: maps, [T, H, W, F].
    kernel: [a, b, F, G].
    strides: of both axes.
    padding: before and after, of both axes.
    **options: dimension numbers, precision, and what must be 1: dilations and
      groups.

  Returns:
    [T, h, w, G].
  """
  usual = lax.conv_general_dilated
  if jax.default_backend() != 'cpu' or not _small(x, kernel, strides, padding):
    return usual(x, kernel, strides, padding, **options)
  return by_product(x, kernel, strides, padding, options['precision'])


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
  if max(kernel.shape[:2]) == 1:
    return False
  size = [n + sum(p) for n, p in zip(x.shape[1:3], padding, strict=True)]
  sides = (*x.shape[1:3], *_result(size, kernel, strides))
  return min(sides) < max(kernel.shape[:2])
