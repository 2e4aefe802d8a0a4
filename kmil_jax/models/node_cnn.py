"""The small network that tells apart lymph nodes in CT slices."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models.convolutions import max_pool
from kmil_jax.models.network import Classifier, TorchDense
from kmil_jax.types import TilePrediction

_CHANNELS = (32, 64, 128)
_HIDDEN = 128
_glorot = nn.initializers.glorot_uniform()


class NodeCNN(Classifier):
  """Three convolutions with pooling between them, two dense layers.

  As Ansari describes it, 100,352 inputs to the first dense layer at 224 x 224
  (so convolutions keep the size) and 128 hidden units. Kernels of 3x3, ReLU
  after the dense layer, dropout of 0.25 after each pooling and 0.5 before the
  last layer are ours: the description does not give them. Weights start as
  Keras's, Glorot-uniform with biases of 0. 12,937,985 parameters at one
  channel of 224 x 224; the first dense layer has as many as the tile's size
  asks for. F is 128, the hidden units. Training drops values of maps and of
  features. There is no batch normalisation.
  """

  def setup(self):
    conv = lambda channels: nn.Conv(
      channels, (3, 3), padding=1, dtype=self.dtype, kernel_init=_glorot
    )
    self.conv1, self.conv2, self.conv3 = map(conv, _CHANNELS)
    dense = functools.partial(
      TorchDense, weight_init=_glorot, bias_init=nn.initializers.zeros
    )
    self.fc1 = dense(_HIDDEN, dtype=self.dtype)
    self.fc2 = dense(self.num_classes)
    self.drop_map, self.drop_hidden = nn.Dropout(0.25), nn.Dropout(0.5)

  def feature_map(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the last pooled map, [T, S // 8, S // 8, 128]."""
    for conv in (self.conv1, self.conv2, self.conv3):
      x = max_pool(nn.relu(conv(x)), 2, 2)
      x = self.drop_map(x, deterministic=not train)
    return x

  def head(self, m: jax.Array, *, train: bool = False) -> TilePrediction:
    """Classifies maps that `feature_map` returned."""
    # Channel by channel, as torch does, so that weights mean the same there.
    x = m.transpose(0, 3, 1, 2).reshape(len(m), -1)
    features = nn.relu(self.fc1(x)).astype(jnp.float32)
    kept = self.drop_hidden(features, deterministic=not train)
    return TilePrediction(logits=self.fc2(kept), features=features)
