"""MobileNet-v2, the patch classifier of the two-step detector."""

import functools

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models.batch_norm import BatchNorm
from kmil_jax.models.convolutions import convolution
from kmil_jax.models.network import Network
from kmil_jax.models.torch_dense import TorchDense
from kmil_jax.types import TilePrediction

# Expansion, channels, blocks and first stride (Sandler et al., table 2).
_STAGES = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)
_STEM, _LAST = 32, 1280
_kaiming = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class ConvNorm(nn.Module):
  """A convolution without bias, batch normalisation and, maybe, ReLU6.

  Attributes:
    channels: of the result.
    size: side of the kernel; maps are padded to keep their size.
    stride: spatial stride.
    active: whether ReLU6 ends it.
    dtype: type of the computation.
    axis_name: see `BatchNorm`.
    depthwise: convolve each channel by itself; for a size of 3.
  """

  channels: int
  size: int = 1
  stride: int = 1
  active: bool = True
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None
  depthwise: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps [T, S, S, C] to [T, ceil(S / stride), .., channels]."""
    conv = nn.Conv(
      self.channels,
      (self.size, self.size),
      self.stride,
      padding=self.size // 2,
      feature_group_count=self.channels if self.depthwise else 1,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=_kaiming,
      conv_general_dilated=convolution,
      name='conv',
    )
    norm = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name='bn')
    x = norm(conv(x), use_running_average=not train)
    return nn.relu6(x) if self.active else x


class InvertedResidual(nn.Module):
  """Expands with 1x1, filters each channel with 3x3, projects with 1x1.

  Attributes:
    channels: of the result.
    stride: spatial stride of the 3x3 convolution.
    expansion: how many times wider the inner maps are; of 1, the first 1x1
      convolution falls away.
    dtype: type of the computation.
    axis_name: see `BatchNorm`.
  """

  channels: int
  stride: int
  expansion: int
  dtype: jnp.dtype
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps [T, S, S, C] to [T, ceil(S / stride), .., channels]."""
    layer = functools.partial(
      ConvNorm, dtype=self.dtype, axis_name=self.axis_name
    )
    width = self.expansion * x.shape[-1]
    y = x
    if self.expansion != 1:
      y = layer(width, name='expand')(y, train=train)
    of_channels = layer(
      width, 3, stride=self.stride, depthwise=True, name='depthwise'
    )
    y = of_channels(y, train=train)
    y = layer(self.channels, active=False, name='project')(y, train=train)
    return x + y if x.shape == y.shape else y


class MobileNetV2(Network):
  """MobileNet-v2 of width 1.

  Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: inverted residuals
  and linear bottlenecks", CVPR 2018 (https://arxiv.org/abs/1801.04381), table
  2. Weights start as torchvision's: kernels normal with variance 2 / fan-out,
  the last layer normal with deviation 0.01.

  Attributes:
    num_classes: C; 1 for one logit of the second of two classes.
    dtype: type of the computation, float32 or bfloat16; parameters, running
      statistics, features and logits are float32 in either.
    axis_name: see `BatchNorm`.
  """

  num_classes: int
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  def setup(self):
    options = {'dtype': self.dtype, 'axis_name': self.axis_name}
    layers = [ConvNorm(_STEM, 3, 2, **options)]
    for expansion, channels, blocks, stride in _STAGES:
      layers += [
        InvertedResidual(channels, 1 if block else stride, expansion, **options)
        for block in range(blocks)
      ]
    # Flax calls them features_0 to features_18.
    self.features = [*layers, ConvNorm(_LAST, **options)]
    self.dropout = nn.Dropout(0.2)
    self.classifier = TorchDense(
      self.num_classes,
      weight_init=nn.initializers.normal(0.01),
      bias_init=nn.initializers.zeros,
    )

  def __call__(self, x: jax.Array, *, train: bool = False) -> TilePrediction:
    """Classifies tiles.

    Args:
      x: normalised tiles, [T, S, S, channels].
      train: drop features with probability 0.2 (`rngs={'dropout': key}`);
        normalise with, and update, the statistics of this batch.

    Returns:
      Logits [T, C] and the spatial mean of the last map, [T, 1280].
    """
    return self.head(self.feature_map(x, train=train), train=train)

  def feature_map(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the last map before pooling, [T, ceil(S / 32), .., 1280]."""
    chex.assert_rank(x, 4)
    for layer in self.features:
      x = layer(x, train=train)
    return x

  def head(self, m: jax.Array, *, train: bool = False) -> TilePrediction:
    """Classifies maps that `feature_map` returned."""
    features = m.astype(jnp.float32).mean((1, 2))
    kept = self.dropout(features, deterministic=not train)
    return TilePrediction(logits=self.classifier(kept), features=features)
