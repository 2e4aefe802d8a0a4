"""MobileNet-v2, the patch classifier of the two-step detector."""

from collections.abc import Callable, Iterator, Sequence
import functools
import itertools

from flax import linen as nn
import jax

from kmil_jax.models.convolutions import conv_norm
from kmil_jax.models.network import Classifier, Scope, TorchDense

# Expansion, channels, blocks and first stride (Sandler et al., table 2), and
# side of the filters.
_STAGES = (
  (1, 16, 1, 1, 3),
  (6, 24, 2, 2, 3),
  (6, 32, 3, 2, 3),
  (6, 64, 4, 2, 3),
  (6, 96, 3, 1, 3),
  (6, 160, 3, 2, 3),
  (6, 320, 1, 1, 3),
)
_STEM, _LAST = 32, 1280


class InvertedResidual(nn.Module):
  """Expands with 1x1, filters each channel by itself, projects with 1x1.

  Attributes:
    channels: of the result.
    stride: spatial stride of the filter.
    expansion: how many times wider the inner maps are; of 1, the first 1x1
      convolution falls away.
    layer: makes a layer, `conv_norm` with options.
    size: side of the filter.
  """

  channels: int
  stride: int
  expansion: int
  layer: Callable[..., jax.Array]
  size: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [T, S, S, C] to [T, ceil(S / stride), .., channels]."""
    width = self.expansion * x.shape[-1]
    y = x
    if self.expansion != 1:
      y = nn.relu6(Scope(self.layer, name='expand')(y, width))
    depthwise = functools.partial(self.layer, groups=width)
    y = Scope(depthwise, name='depthwise')(y, width, self.size, self.stride)
    y = Scope(self.layer, name='project')(nn.relu6(y), self.channels)
    return x + y if x.shape == y.shape else y


def residuals(
  x: jax.Array,
  layer: Callable[..., jax.Array],
  stages: Sequence[tuple[int, ...]],
  names: Iterator[str],
) -> jax.Array:
  """Returns maps after all blocks of stages, in a module's `__call__`.

  Args:
    x: maps, [T, S, S, C].
    layer: as of `InvertedResidual`.
    stages: expansion, channels, blocks, first stride and side of the filters.
    names: of the blocks.
  """
  for expansion, channels, blocks, first, size in stages:
    for stride in (first, *(1,) * (blocks - 1)):
      block = InvertedResidual(
        channels, stride, expansion, layer, size, name=next(names)
      )
      x = block(x)
  return x


class MobileNetV2(Classifier):
  """MobileNet-v2 of width 1; F is 1,280.

  Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: inverted residuals
  and linear bottlenecks", CVPR 2018 (https://arxiv.org/abs/1801.04381), table
  2. Weights start as torchvision's: kernels normal with variance 2 / fan-out,
  the last layer normal with deviation 0.01. Training drops features with
  probability 0.2.
  """

  def setup(self):
    self.dropout = nn.Dropout(0.2)
    self.fc = TorchDense(
      self.num_classes,
      weight_init=nn.initializers.normal(0.01),
      bias_init=nn.initializers.zeros,
      name='classifier',
    )

  @nn.compact
  def feature_map(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the last map before pooling, [T, ceil(S / 32), .., 1280]."""
    layer = functools.partial(
      conv_norm, train=train, dtype=self.dtype, axis_name=self.axis_name
    )
    names = map('features_{}'.format, itertools.count())
    x = nn.relu6(Scope(layer, name=next(names))(x, _STEM, 3, 2))
    x = residuals(x, layer, _STAGES, names)
    return nn.relu6(Scope(layer, name=next(names))(x, _LAST))
