"""Residual networks: whole ones classify tiles, a cut ResNet-50 encodes them.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR
2016 (https://arxiv.org/abs/1512.03385), table 1. Modules carry torchvision's
names, which `kmil_jax.port` relies on.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models.convolutions import conv_norm, convolution, max_pool
from kmil_jax.models.network import Classifier, Network, TorchDense

# Bottleneck blocks of conv2_x, conv3_x and conv4_x (He et al., table 1).
STAGES = (3, 4, 6)
# `expansion` and `sizes` of the blocks of networks with fewer than 50 layers.
BASIC = {'expansion': 1, 'sizes': (3, 3)}


class Block(nn.Module):
  """Convolutions around a shortcut: by default a bottleneck of 1x1, 3x3, 1x1.

  The stride sits in the first 3x3 convolution («v1.5», as in torchvision), not
  in the first 1x1 as in He et al.; ported weights expect it there.

  Attributes:
    width: channels of all convolutions but the last.
    stride: spatial stride of the block; of 1/2, its map doubles its side.
    layer: makes a layer, `conv_norm` with options.
    expansion: channels out, in widths.
    sizes: sides of the kernels.
    shortcut: side of the kernel of a shortcut that is not the identity.
  """

  width: int
  stride: float
  layer: Callable[..., jax.Array]
  expansion: int = 4
  sizes: tuple[int, ...] = (1, 3, 1)
  shortcut: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [T, S, S, C] to [T, S / stride, S / stride, expansion * width]."""
    y, out = x, self.expansion * self.width
    for place, size in enumerate(self.sizes, 1):
      last = place == len(self.sizes)
      stride = self.stride if place == self.sizes.index(3) + 1 else 1
      channels = out if last else self.width
      y = self.layer(y, channels, size, stride, name=f'conv{place}')
      y = y if last else nn.relu(y)
    if self.stride != 1 or x.shape[-1] != out:
      name = f'{"up" if self.stride < 1 else "down"}sample_conv'
      x = self.layer(x, out, self.shortcut, self.stride, name=name)
    return nn.relu(x + y)


def stages(
  x: jax.Array,
  layer: Callable[..., jax.Array],
  counts: Sequence[int],
  *,
  stem: int = 64,
  width: int = 64,
  **options: Any,
) -> Iterator[jax.Array]:
  """Yields the maps of conv2_x, conv3_x and so on, in a module's `__call__`.

  Args:
    x: tiles, [T, S, S, channels].
    layer: as of `Block`.
    counts: how many blocks each stage has.
    stem: channels of the first convolution.
    width: of the blocks of conv2_x.
    **options: of the blocks.
  """
  x = nn.relu(layer(x, stem, 7, 2, name='conv1'))
  x = max_pool(x, 3, 2, ((1, 1), (1, 1)))
  for stage, blocks in enumerate(counts):
    for block in range(blocks):
      x = Block(
        width * 2**stage,
        2 if stage and not block else 1,
        layer,
        name=f'layer{stage + 1}_{block}',
        **options,
      )(x)
    yield x


class ResNet(Classifier, kw_only=True):
  """A whole residual network; F is 512 widened by `expansion`.

  Weights start as torchvision's: kernels normal with variance 2 / fan-out,
  the last layer as torch's linear ones.

  Attributes:
    stages: how many blocks conv2_x to conv5_x have.
    expansion: as of `Block`.
    sizes: as of `Block`.
  """

  stages: tuple[int, ...]
  expansion: int = 4
  sizes: tuple[int, ...] = (1, 3, 1)

  def setup(self):
    self.dropout = nn.Dropout(0.0)
    self.fc = TorchDense(self.num_classes)

  @nn.compact
  def feature_map(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the last map before pooling, [T, ceil(S / 32), .., F]."""
    layer = functools.partial(
      conv_norm, train=train, dtype=self.dtype, axis_name=self.axis_name
    )
    block = {'expansion': self.expansion, 'sizes': self.sizes}
    *_, m = stages(x, layer, self.stages, **block)
    return m


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
    """
    layer = functools.partial(
      conv_norm,
      train=train,
      dtype=self.dtype,
      momentum=self.momentum,
      convolve=functools.partial(convolution, pointwise=True),
      norm=nn.BatchNorm,
    )
    *_, m = stages(x, layer, STAGES)
    return m.astype(jnp.float32).mean((1, 2))
