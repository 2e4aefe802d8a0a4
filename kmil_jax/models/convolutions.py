"""Layers of maps, with XLA's own convolutions and, on CPUs, faster ones."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from kmil_jax.models import cpu
from kmil_jax.models.batch_norm import BatchNorm
from kmil_jax.models.network import uniform

# He et al., "Delving deep into rectifiers", ICCV 2015, eq. 14.
KAIMING = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


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
    padding: before and after, of both axes, or a name that XLA knows.
    pointwise: whether unpadded kernels of 1x1 are products on CPUs, too. For
      networks that are not trained here: gradients would round otherwise, and
      small trainings hang on that (see BUILD_NOTES.md).
    **options: as `nn.Conv` gives them: dimension numbers NHWC and HWIO,
      precision, no dilation, one group or F.

  Returns:
    [T, h, w, G].

  Raises:
    AssertionError: for dilations, and groups of several channels.
  """
  groups = options['feature_group_count']
  if groups > 1:
    chex.assert_equal((x.shape[-1], kernel.shape[-1]), (groups, groups))
  for side in ('lhs', 'rhs'):
    chex.assert_equal(tuple(options[f'{side}_dilation']), (1, 1))
  if isinstance(padding, str):
    sides = x.shape[1:3], kernel.shape[:2]
    padding = lax.padtype_to_pads(*sides, strides, padding)
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


def conv_norm(
  x: jax.Array,
  channels: int,
  size: int = 1,
  stride: float = 1,
  *,
  name: str = 'conv',
  train: bool,
  dtype: jnp.dtype,
  groups: int = 1,
  padding: str | int | None = None,
  kernel_init: nn.initializers.Initializer = KAIMING,
  convolve: Callable[..., jax.Array] | None = convolution,
  norm: type[nn.Module] = BatchNorm,
  **options: Any,
) -> jax.Array:
  """A convolution without bias and a norm, inside a module's `__call__`.

  They become the caller's, the norm by the convolution's name with 'bn' for
  'conv'.

  Args:
    x: maps, [T, S, S, F].
    channels: of the result.
    size: side of the kernel.
    stride: of both axes; 1/2 for an `Upsample` in the place of a convolution.
    name: of the convolution.
    train: normalise with, and update, the statistics of this batch.
    dtype: type of the computation.
    groups: F to convolve each channel by itself.
    padding: of the maps, as of `nn.Conv`; by default size // 2 on all sides,
      which keeps their size.
    kernel_init: start of the kernel.
    convolve: in the place of `lax.conv_general_dilated`.
    norm: class of the norm.
    **options: of the norm.

  Returns:
    [T, ceil(S / stride), .., channels].
  """
  if stride < 1:
    conv = Upsample(channels, dtype, name=name)
  else:
    conv = nn.Conv(
      channels,
      (size, size),
      stride,
      padding=size // 2 if padding is None else padding,
      feature_group_count=groups,
      use_bias=False,
      dtype=dtype,
      kernel_init=kernel_init,
      conv_general_dilated=convolve,
      name=name,
    )
  bn = norm(dtype=dtype, name=name.replace('conv', 'bn'), **options)
  return bn(conv(x), use_running_average=not train)


class Upsample(nn.Module):
  """`torch.nn.ConvTranspose2d(F, features, 2, 2, bias=False)`.

    y[2 i + a, 2 j + b] = kernel[a, b] x[i, j]

  Its windows do not overlap: one matrix product does it. The kernel is
  [2, 2, features, F], so that it goes to and from torch's [F, features, 2, 2]
  as that of any convolution; it starts as torch's.

  Attributes:
    features: channels out, G.
    dtype: type of the computation; the kernel is float32.
  """

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [T, H, W, F] to [T, 2 H, 2 W, G]."""
    rows, height, width, inputs = x.shape
    kernel = self.param(
      # Torch takes the fan-in of a transposed kernel from its second axis.
      'kernel', uniform(4 * self.features), (2, 2, self.features, inputs)
    )  # fmt: skip
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    y = jnp.einsum('thwf,abgf->thawbg', x, kernel)
    return y.reshape(rows, 2 * height, 2 * width, self.features)
