"""What networks have in common: float32 products, scopes, heads of tiles."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.types import TilePrediction


class Network(nn.Module):
  """A Flax module whose products of float32 are not rounded by `apply`.

  By default GPUs round the factors to TF32, and TPUs to bfloat16; CPUs do not.
  Products of bfloat16 are what they were. Gradients inherit the precision,
  other than those of a `custom_vjp`, which has to name it. Modules inside a
  network may be of any class.
  """

  @nn.nowrap
  def apply(self, *args: Any, **kwargs: Any) -> Any:
    with jax.default_matmul_precision('highest'):
      return super().apply(*args, **kwargs)


class Scope(nn.Module):
  """Calls a function whose modules become those of this one.

  Attributes:
    function: creates modules, as the `__call__` of a module does.
  """

  function: Callable[..., Any]

  @nn.compact
  def __call__(self, *args: Any) -> Any:
    return self.function(*args)


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
