"""A transposed convolution that doubles the side of its map."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models.torch_dense import uniform


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
