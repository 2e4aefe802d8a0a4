"""GoogLeNet with batch normalisation, a patch classifier of the detector."""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax.models import cpu
from kmil_jax.models.batch_norm import BatchNorm
from kmil_jax.models.convolutions import max_pool
from kmil_jax.models.network import Network
from kmil_jax.models.torch_dense import TorchDense
from kmil_jax.types import TilePrediction

# Channels of the 1x1 branch; of the 3x3 branch, reduced and out; of what was
# the 5x5 branch, reduced and out; of the pooled one (Szegedy et al., table 1).
_STAGES = {
  3: {'a': (64, 96, 128, 16, 32, 32), 'b': (128, 128, 192, 32, 96, 64)},
  4: {
    'a': (192, 96, 208, 16, 48, 64),
    'b': (160, 112, 224, 24, 64, 64),
    'c': (128, 128, 256, 24, 64, 64),
    'd': (112, 144, 288, 32, 64, 64),
    'e': (256, 160, 320, 32, 128, 128),
  },
  5: {'a': (256, 160, 320, 32, 128, 128), 'b': (384, 192, 384, 48, 128, 128)},
}
_AUXILIARY = {'inception4a': 'aux1', 'inception4d': 'aux2'}
# Of kernels and linear weights. What torchvision truncates, 200 deviations
# away, never occurs.
_narrow = nn.initializers.normal(0.01)


class ConvNorm(nn.Module):
  """A convolution without bias, batch normalisation, ReLU.

  Attributes:
    channels: of the result.
    size: side of the kernel; maps are padded to keep their size.
    stride: spatial stride.
    dtype: type of the computation.
    axis_name: see `BatchNorm`.
  """

  channels: int
  size: int = 1
  stride: int = 1
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps [T, S, S, C] to [T, ceil(S / stride), .., channels]."""
    x = nn.Conv(
      self.channels,
      (self.size, self.size),
      self.stride,
      padding=self.size // 2,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=_narrow,
      name='conv',
    )(x)
    norm = BatchNorm(
      axis_name=self.axis_name, epsilon=1e-3, dtype=self.dtype, name='bn'
    )
    return nn.relu(norm(x, use_running_average=not train))


class Inception(nn.Module):
  """Four branches side by side (Szegedy et al., figure 2b).

  As in torchvision, the branch of 5x5 convolutions has 3x3 ones.

  Attributes:
    channels: see `_STAGES`.
    dtype: type of the computation.
    axis_name: see `BatchNorm`.
  """

  channels: tuple[int, ...]
  dtype: jnp.dtype
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps [T, S, S, C] to [T, S, S, channels of the four branches]."""
    one, reduce3, three, reduce5, five, pooled = self.channels

    def layer(x, channels, size, name):
      conv = ConvNorm(channels, size, 1, self.dtype, self.axis_name, name=name)
      return conv(x, train=train)

    branches = [
      layer(x, one, 1, 'branch1'),
      layer(layer(x, reduce3, 1, 'branch2_0'), three, 3, 'branch2_1'),
      layer(layer(x, reduce5, 1, 'branch3_0'), five, 3, 'branch3_1'),
      layer(max_pool(x, 3, 1, ((1, 1), (1, 1))), pooled, 1, 'branch4_1'),
    ]
    return jnp.concatenate(branches, -1)


class AuxiliaryHead(nn.Module):
  """Classifies a map from the middle of the network, in training only.

  Attributes:
    num_classes: C.
    dtype: type of the convolution.
    axis_name: see `BatchNorm`.
  """

  num_classes: int
  dtype: jnp.dtype
  axis_name: str | None

  @nn.compact
  def __call__(self, m: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps [T, h, w, F] to logits [T, C]."""
    m = _adaptive_mean(m, 4)
    m = ConvNorm(128, dtype=self.dtype, axis_name=self.axis_name, name='conv')(
      m, train=train
    )
    # Channel by channel, as torch does.
    x = m.astype(jnp.float32).transpose(0, 3, 1, 2).reshape(len(m), -1)
    x = nn.relu(TorchDense(1024, weight_init=_narrow, name='fc1')(x))
    x = nn.Dropout(0.7, deterministic=not train)(x)
    return TorchDense(self.num_classes, weight_init=_narrow, name='fc2')(x)


class GoogLeNet(Network):
  """GoogLeNet, torchvision's, without its `transform_input`.

  Szegedy et al., "Going deeper with convolutions", CVPR 2015
  (https://arxiv.org/abs/1409.4842), table 1; the local response
  normalisations have made way for batch normalisation after each convolution.
  Weights start as torchvision's: normal with deviation 0.01, linear biases as
  torch's.

  Attributes:
    num_classes: C; 1 for one logit of the second of two classes.
    auxiliary: whether there are the two auxiliary heads.
    dtype: type of the computation, float32 or bfloat16; parameters, running
      statistics, features and logits are float32 in either.
    axis_name: see `BatchNorm`.
  """

  num_classes: int
  auxiliary: bool = False
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  def setup(self):
    options = {'dtype': self.dtype, 'axis_name': self.axis_name}
    self.conv1 = ConvNorm(64, 7, 2, **options)
    self.conv2 = ConvNorm(64, **options)
    self.conv3 = ConvNorm(192, 3, **options)
    for stage, blocks in _STAGES.items():
      for letter, channels in blocks.items():
        block = Inception(channels, **options)
        setattr(self, f'inception{stage}{letter}', block)
    if self.auxiliary:
      self.aux1 = AuxiliaryHead(self.num_classes, **options)
      self.aux2 = AuxiliaryHead(self.num_classes, **options)
    self.dropout = nn.Dropout(0.2)
    self.fc = TorchDense(self.num_classes, weight_init=_narrow)

  def __call__(self, x: jax.Array, *, train: bool = False) -> TilePrediction:
    """Classifies tiles.

    Args:
      x: normalised tiles, [T, S, S, channels].
      train: drop features with probability 0.2 (`rngs={'dropout': key}`);
        normalise with, and update, the statistics of this batch.

    Returns:
      Logits [T, C], the spatial mean of the last map [T, 1024] and, in
      training, the logits of the auxiliary heads, if there are any.
    """
    m, middle = self._maps(x, train)
    prediction = self.head(m, train=train)
    if not self.auxiliary or not (train or self.is_initializing()):
      return prediction
    aux_logits = tuple(
      getattr(self, aux)(middle[block], train=train)
      for block, aux in _AUXILIARY.items()
    )
    return prediction.replace(aux_logits=aux_logits)

  def feature_map(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the last map before pooling, [T, about S / 32, .., 1024]."""
    return self._maps(x, train)[0]

  def head(self, m: jax.Array, *, train: bool = False) -> TilePrediction:
    """Classifies maps that `feature_map` returned."""
    features = m.astype(jnp.float32).mean((1, 2))
    kept = self.dropout(features, deterministic=not train)
    return TilePrediction(logits=self.fc(kept), features=features)

  def _maps(
    self, x: jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the last map, and by name those that auxiliary heads see."""
    chex.assert_rank(x, 4)
    pool = lambda x, size=3: max_pool(x, size, 2, _ceil_padding(x, size, 2))
    x = pool(self.conv1(x, train=train))
    x = pool(self.conv3(self.conv2(x, train=train), train=train))
    middle = {}
    for stage, blocks in _STAGES.items():
      for letter in blocks:
        name = f'inception{stage}{letter}'
        x = getattr(self, name)(x, train=train)
        if name in _AUXILIARY:
          middle[name] = x
      if stage < 5:
        x = pool(x, 3 if stage == 3 else 2)
    return x, middle


def _adaptive_mean(m: jax.Array, size: int) -> jax.Array:
  """Means [T, size, size, F] of parts that cover a map, of any size, evenly."""

  def weights(n):
    i, pixel = np.arange(size)[:, None], np.arange(n)
    inside = (pixel >= i * n // size) & (pixel < -(-(i + 1) * n // size))
    return jnp.asarray(inside / inside.sum(1, keepdims=True), m.dtype)

  rows, columns = weights(m.shape[1]), weights(m.shape[2])
  return jnp.einsum('thwf,ih,jw->tijf', m, rows, columns)


def _ceil_padding(x: jax.Array, size: int, stride: int) -> cpu.Padding:
  """Returns what completes the last window of each axis (ceiling mode)."""
  return [(0, -(n - size) % stride) for n in x.shape[1:3]]
