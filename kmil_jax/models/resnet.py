"""Residual networks: whole ones classify tiles, a cut ResNet-50 encodes them.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR
2016 (https://arxiv.org/abs/1512.03385), table 1. Modules carry torchvision's
names, which `kmil_jax.port` relies on.
"""

from collections.abc import Callable
import functools

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models.batch_norm import BatchNorm
from kmil_jax.models.convolutions import convolution, max_pool
from kmil_jax.models.network import Network
from kmil_jax.models.torch_dense import TorchDense
from kmil_jax.types import TilePrediction

# Bottleneck blocks of conv2_x, conv3_x and conv4_x (He et al., table 1).
STAGES = (3, 4, 6)
# He et al., "Delving deep into rectifiers", ICCV 2015, eq. 14.
KAIMING = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class BasicBlock(nn.Module):
  """Two 3x3 convolutions around a shortcut; `width` channels out.

  Attributes:
    width: channels of both convolutions.
    stride: spatial stride of the first.
    conv: makes a convolution without bias.
    norm: makes a batch normalisation.
  """

  width: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps [T, S, S, C] to [T, S / stride, S / stride, width]."""
    norm = lambda name: functools.partial(
      self.norm(name=name), use_running_average=not train
    )
    s, out = self.stride, self.width
    y = self.conv(out, (3, 3), s, padding=1, name='conv1')(x)
    y = nn.relu(norm('bn1')(y))
    y = self.conv(out, (3, 3), padding=1, name='conv2')(y)
    y = norm('bn2')(y)
    if s != 1 or x.shape[-1] != out:
      x = self.conv(out, (1, 1), s, name='downsample_conv')(x)
      x = norm('downsample_bn')(x)
    return nn.relu(x + y)


class Bottleneck(nn.Module):
  """1x1, 3x3, 1x1 convolutions around a shortcut.

  The stride sits in the 3x3 convolution («v1.5», as in torchvision), not in
  the first 1x1 as in He et al.; ported weights expect it there.

  Attributes:
    width: channels of the 3x3 convolution.
    stride: spatial stride of the block.
    conv: makes a convolution without bias.
    norm: makes a batch normalisation.
    expansion: channels out, in widths.
    shortcut: side of the kernel of a shortcut that is not the identity.
  """

  width: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  expansion: int = 4
  shortcut: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps [T, S, S, C] to [T, S / stride, S / stride, expansion * width]."""
    norm = lambda name: functools.partial(
      self.norm(name=name), use_running_average=not train
    )
    s, out = self.stride, self.expansion * self.width
    y = self.conv(self.width, (1, 1), name='conv1')(x)
    y = nn.relu(norm('bn1')(y))
    y = self.conv(self.width, (3, 3), s, padding=1, name='conv2')(y)
    y = nn.relu(norm('bn2')(y))
    y = norm('bn3')(self.conv(out, (1, 1), name='conv3')(y))
    if s != 1 or x.shape[-1] != out:
      k = self.shortcut
      x = self.conv(out, (k, k), s, padding=k // 2, name='downsample_conv')(x)
      x = norm('downsample_bn')(x)
    return nn.relu(x + y)


class ResNet(Network):
  """A whole residual network, the classifier of tiles.

  Weights start as torchvision's: kernels normal with variance 2 / fan-out,
  the last layer as torch's linear ones.

  Attributes:
    num_classes: C; 1 for one logit of the second of two classes.
    block: `BasicBlock` or `Bottleneck`.
    stages: how many blocks conv2_x to conv5_x have.
    dtype: type of the computation, float32 or bfloat16; parameters, running
      statistics, features and logits are float32 in either.
    axis_name: see `BatchNorm`.
  """

  num_classes: int
  block: type[nn.Module]
  stages: tuple[int, ...]
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  def setup(self):
    conv = functools.partial(
      nn.Conv,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=KAIMING,
      conv_general_dilated=convolution,
    )
    norm = functools.partial(
      BatchNorm, axis_name=self.axis_name, dtype=self.dtype
    )
    self.conv1 = conv(64, (7, 7), 2, padding=3)
    self.bn1 = norm()
    for stage, blocks in enumerate(self.stages):
      # Flax calls them layer1_0, layer1_1 and so on.
      layer = [
        self.block(64 * 2**stage, 2 if stage and not block else 1, conv, norm)
        for block in range(blocks)
      ]
      setattr(self, f'layer{stage + 1}', layer)
    self.fc = TorchDense(self.num_classes)

  def __call__(self, x: jax.Array, *, train: bool = False) -> TilePrediction:
    """Classifies tiles.

    Args:
      x: normalised tiles, [T, S, S, channels].
      train: normalise with, and update, the statistics of this batch.

    Returns:
      Logits [T, C] and the spatial mean of the last map, [T, F]: F is 512 of
      basic blocks and 2,048 of bottlenecks.
    """
    return self.head(self.feature_map(x, train=train), train=train)

  def feature_map(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the last map before pooling, [T, ceil(S / 32), .., F]."""
    chex.assert_rank(x, 4)
    x = self.bn1(self.conv1(x), use_running_average=not train)
    x = max_pool(nn.relu(x), 3, 2, ((1, 1), (1, 1)))
    for stage in range(len(self.stages)):
      for block in getattr(self, f'layer{stage + 1}'):
        x = block(x, train=train)
    return x

  def head(self, m: jax.Array, *, train: bool = False) -> TilePrediction:
    """Classifies maps that `feature_map` returned; `train` changes nothing."""
    del train
    features = m.astype(jnp.float32).mean((1, 2))
    return TilePrediction(logits=self.fc(features), features=features)


class ResNet50Trunk(Network):
  """Tiles to 1,024 features: ResNet-50 up to conv4_x, then the spatial mean.

  Cut after conv4_x as CLAM, TransMIL, DTFD-MIL and KMIL do; 8,543,296
  parameters.

  Attributes:
    momentum: weight of the old running statistics in training. Torch's
      momentum of 0.1 is 0.9 here; 0 keeps those of the last batch alone.
    dtype: type of the computation, float32 or bfloat16; parameters, running
      statistics and the pooled features are float32 in either.
  """

  momentum: float = 0.9
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Encodes tiles.

    Args:
      x: tiles, [T, S, S, 3], normalised with ImageNet's mean and deviation.
      train: normalise with, and update, the statistics of this batch.

    Returns:
      Features, [T, 1024] float32.

    Raises:
      AssertionError: if `x` does not have three channels.
    """
    chex.assert_shape(x, (None, None, None, 3))
    conv = functools.partial(
      nn.Conv,
      use_bias=False,
      dtype=self.dtype,
      conv_general_dilated=functools.partial(convolution, pointwise=True),
    )
    norm = functools.partial(
      nn.BatchNorm, momentum=self.momentum, epsilon=1e-5, dtype=self.dtype
    )
    x = conv(64, (7, 7), 2, padding=3, name='conv1')(x)
    x = norm(name='bn1')(x, use_running_average=not train)
    x = max_pool(nn.relu(x), 3, 2, ((1, 1), (1, 1)))
    for stage, blocks in enumerate(STAGES):
      for block in range(blocks):
        x = Bottleneck(
          width=64 * 2**stage,
          stride=2 if stage and not block else 1,
          conv=conv,
          norm=norm,
          name=f'layer{stage + 1}_{block}',
        )(x, train=train)
    return x.astype(jnp.float32).mean((1, 2))
