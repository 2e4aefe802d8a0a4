"""EfficientNet-Lite0, the encoder of tiles that is used by default."""

import functools
import itertools

from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models.convolutions import conv_norm, convolution
from kmil_jax.models.mobilenet import residuals
from kmil_jax.models.network import Network, Scope

FEATURES = 1280
_STEM = 32
# Expansion, channels, blocks, first stride and side of the filters.
_STAGES = (
  (1, 16, 1, 1, 3),
  (6, 24, 2, 2, 3),
  (6, 40, 2, 2, 5),
  (6, 80, 3, 2, 3),
  (6, 112, 3, 1, 5),
  (6, 192, 4, 2, 5),
  (6, 320, 1, 1, 3),
)


class EfficientNetLite0(Network):
  """Tiles to 1,280 features; 3,371,008 parameters.

  EfficientNet-B0 (Tan and Le, "EfficientNet: rethinking model scaling for
  convolutional neural networks", ICML 2019, https://arxiv.org/abs/1905.11946,
  table 1) without squeeze and excitation, and with ReLU6 for swish: the form
  for small devices that TensorFlow's authors released in 2020, whose padding
  and epsilon are TensorFlow's.

  Attributes:
    dtype: type of the computation, float32 or bfloat16; parameters, running
      statistics and the pooled features are float32 in either.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Encodes tiles.

    Args:
      x: tiles, [T, S, S, 3]: of 0 to 255, minus 127, divided by 128.

    Returns:
      Features, [T, 1280] float32.
    """
    layer = functools.partial(
      conv_norm,
      train=False,
      dtype=self.dtype,
      padding='SAME',
      convolve=functools.partial(convolution, pointwise=True),
      epsilon=1e-3,
    )
    x = nn.relu6(Scope(layer, name='stem')(x, _STEM, 3, 2))
    names = map('blocks_{}'.format, itertools.count())
    x = residuals(x, layer, _STAGES, names)
    x = nn.relu6(Scope(layer, name='head')(x, FEATURES))
    return x.astype(jnp.float32).mean((1, 2))
