"""A dense layer that starts as PyTorch's does, which the papers rely on."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
kernel_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def bias_init(fan_in: int) -> nn.initializers.Initializer:
  """Returns PyTorch's bias initialiser, U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class TorchDense(nn.Module):
  """`x @ kernel + bias` on [..., D], drawn as `torch.nn.Linear` draws it.

  The parameters are `kernel` [D, features] and `bias` [features], float32;
  `dtype` is what the product is computed in.
  """

  features: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fan_in = x.shape[-1]
    kernel = self.param('kernel', kernel_init, (fan_in, self.features))
    bias = self.param('bias', bias_init(fan_in), (self.features,))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    return x @ kernel + bias
