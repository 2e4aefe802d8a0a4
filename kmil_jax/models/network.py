"""What all networks have in common: products in float32 are float32."""

from typing import Any

from flax import linen as nn
import jax


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
