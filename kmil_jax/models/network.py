"""What networks have in common: float32 products, dense layers, tile heads."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models import cpu
from kmil_jax.types import TilePrediction, unknown

_HIGHEST = 'highest'
_DTYPES = {'float32': 'float32', 'tf32': 'float32', 'bfloat16': 'bfloat16'}


class Network(nn.Module):
  """A Flax module whose products of float32 are not rounded by `apply`.

  By default GPUs round the factors to TF32, and TPUs to bfloat16; CPUs do not.
  Products of bfloat16 are what they were. Gradients inherit the precision; a
  function with one of its own takes it by `custom_vjp`. Modules inside a
  network may be of any class.

  Attributes:
    exact: False to let the hardware round as it does by default.
  """

  exact: bool = dataclasses.field(default=True, kw_only=True)

  @nn.nowrap
  def apply(self, *args: Any, **kwargs: Any) -> Any:
    with jax.default_matmul_precision(_HIGHEST if self.exact else 'default'):
      return super().apply(*args, **kwargs)


def dtype_of(precision: str) -> jnp.dtype:
  """Returns the type of features and factors in a precision, see `build`.

  Raises:
    ValueError: for another precision.
  """
  if precision not in _DTYPES:
    raise unknown('precision', precision, _DTYPES)
  return jnp.dtype(_DTYPES[precision])


def build(make: Callable[..., nn.Module], precision: str) -> nn.Module:
  """Returns the network that `make(dtype=...)` makes, of a precision.

  Args:
    make: of a `Network`, or of a module of a user's, which multiplies as it
      likes.
    precision: 'float32'; 'bfloat16'; or 'tf32', which is float32 of which the
      hardware rounds the factors of products: to TF32 on GPUs, to bfloat16 on
      TPUs, not at all on CPUs.
  """
  network = make(dtype=dtype_of(precision))
  if precision == 'tf32' and isinstance(network, Network):
    network = network.clone(exact=False)
  return network


def shapes(model: nn.Module, width: int) -> dict[str, Any]:
  """Returns the variables of a bag model of features [N, width] as shapes."""
  init = functools.partial(model.init, train=False)
  x, mask = jnp.ones((1, width)), jnp.ones(1, bool)
  return jax.eval_shape(init, jax.random.key(0), x, mask)


def custom_vjp(function: Callable, forward: Callable, backward: Callable):
  """Returns `function` with a gradient of its own, as precise as its caller.

  JAX traces the rules of a `jax.custom_vjp` outside of the network's `apply`.
  """

  def as_called(rule):
    def run(precision, *args):
      with jax.default_matmul_precision(precision):
        return rule(*args)

    return run

  call = jax.custom_vjp(as_called(function), nondiff_argnums=(0,))
  call.defvjp(as_called(forward), as_called(backward))

  @functools.wraps(function)
  def called(*args):
    return call(jax.config.jax_default_matmul_precision or _HIGHEST, *args)

  return called


class Scope(nn.Module):
  """Calls a function whose modules become those of this one.

  Attributes:
    function: creates modules, as the `__call__` of a module does.
  """

  function: Callable[..., Any]

  @nn.compact
  def __call__(self, *args: Any) -> Any:
    return self.function(*args)


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
    x, weight = nn.dtypes.promote_dtype(x, weight, dtype=self.dtype)
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


def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns `x @ weight.T` of [..., D] and [F, D], in float32 or wider.

  For gradients in reverse alone; that to the weight is `cpu.transposed`'s.
  """
  return jnp.einsum(
    '...d,fd->...f',
    x,
    weight,
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  )


def _product_fwd(x, weight):
  return _product(x, weight), (x, weight)


def _product_bwd(saved, grad):
  x, weight = saved
  grad = grad.astype(x.dtype)
  columns = cpu.transposed(grad.reshape(-1, grad.shape[-1]))
  return (
    jnp.matmul(grad, weight),
    jnp.matmul(columns, x.reshape(-1, x.shape[-1])),
  )


product = custom_vjp(_product, _product_fwd, _product_bwd)


class Classifier(Network):
  """A network that maps tiles, and classifies the maps.

  Classes of it have a method `feature_map(x, train=)`; `fc`, the last layer,
  and `dropout` before it, unless they have a `head` of their own.

  Attributes:
    num_classes: C; 1 for one logit of the second of two classes.
    dtype: type of the computation, float32 or bfloat16; parameters, running
      statistics, features and logits are float32 in either.
    axis_name: see `BatchNorm`.
  """

  num_classes: int
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  def __call__(self, x: jax.Array, *, train: bool = False) -> TilePrediction:
    """Classifies tiles.

    Args:
      x: normalised tiles, [T, S, S, channels].
      train: drop features (`rngs={'dropout': key}`); normalise with, and
        update, the statistics of this batch.

    Returns:
      Logits [T, C] and what the last layer sees, [T, F].
    """
    return self.head(self.feature_map(x, train=train), train=train)

  def head(self, m: jax.Array, *, train: bool = False) -> TilePrediction:
    """Classifies the spatial means of maps that `feature_map` returned."""
    features = m.astype(jnp.float32).mean((1, 2))
    kept = self.dropout(features, deterministic=not train)
    return TilePrediction(logits=self.fc(kept), features=features)
