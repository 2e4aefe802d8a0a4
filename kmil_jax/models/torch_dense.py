"""A dense layer with the layout and the start of PyTorch's."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models import cpu

HIGHEST = jax.lax.Precision.HIGHEST  # See `Network`.


def uniform(fan_in: int) -> nn.initializers.Initializer:
  """Returns PyTorch's start of weights and biases, U(-b, b), b = fan_in^-0.5.

  It is what its Kaiming-uniform call with a = sqrt(5) comes to.
  """
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class TorchDense(nn.Module):
  """`torch.nn.Linear(D, features)` on [..., D]: `x @ weight.T + bias`.

  The parameters are `weight` [features, D] and, with `use_bias`, `bias`
  [features], float32. In this
  layout the gradient of the weight comes out of its product as it is stored;
  transposed, as in `flax.linen.Dense`, it makes the optimiser's step twice as
  slow on CPUs.

  Attributes:
    features: width of the result.
    dtype: type of the factors; by default that of the arguments. Their product
      is summed, and returned, in float32 or wider.
    use_bias: whether there is a bias.
    weight_init: start of the weight; by default PyTorch's.
    bias_init: start of the bias; by default PyTorch's.
  """

  features: int
  dtype: Any = None
  use_bias: bool = True
  weight_init: nn.initializers.Initializer | None = None
  bias_init: nn.initializers.Initializer | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fan_in = x.shape[-1]
    weight_init = self.weight_init or uniform(fan_in)
    weight = self.param('weight', weight_init, (self.features, fan_in))
    bias = None
    if self.use_bias:
      bias_init = self.bias_init or uniform(fan_in)
      bias = self.param('bias', bias_init, (self.features,))
    x, weight, bias = nn.dtypes.promote_dtype(x, weight, bias, dtype=self.dtype)
    y = product(x, weight)
    return y if bias is None else y + bias


class TorchWeights(nn.Module):
  """The parameters of a torch layer that other programs than its own apply.

  Attributes:
    fan_in: of their start, PyTorch's.
    shapes: by name.
  """

  fan_in: int
  shapes: Mapping[str, tuple[int, ...]]

  @nn.compact
  def __call__(self) -> list[jax.Array]:
    init = uniform(self.fan_in)
    return [self.param(name, init, s) for name, s in self.shapes.items()]


@jax.custom_vjp
def product(x: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns `x @ weight.T` of [..., D] and [F, D], in float32 or wider.

  For gradients in reverse alone; that to the weight is `cpu.transposed`'s.
  """
  return jnp.einsum(
    '...d,fd->...f',
    x,
    weight,
    precision=HIGHEST,
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  )


def _product_fwd(x, weight):
  return product(x, weight), (x, weight)


def _product_bwd(saved, grad):
  x, weight = saved
  grad = grad.astype(x.dtype)
  columns = cpu.transposed(grad.reshape(-1, grad.shape[-1]))
  return (
    jnp.matmul(grad, weight, precision=HIGHEST),
    jnp.matmul(columns, x.reshape(-1, x.shape[-1]), precision=HIGHEST),
  )


product.defvjp(_product_fwd, _product_bwd)
