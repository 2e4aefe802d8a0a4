"""ResNet-50, cut after its third stage: the tile encoder of the MIL papers."""

import functools
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

# Bottleneck blocks of conv2_x, conv3_x and conv4_x (He et al., table 1).
STAGES = (3, 4, 6)


class Bottleneck(nn.Module):
  """1x1, 3x3, 1x1 convolutions around a shortcut; four times `width` out.

  The stride sits in the 3x3 convolution («v1.5», as in torchvision), not in
  the first 1x1 as in He et al.; ported weights expect it there.

  Attributes:
    width: channels of the 3x3 convolution.
    stride: spatial stride of the block.
    momentum: weight of the old running statistics in training.
    dtype: type of the computation; parameters stay float32.
  """

  width: int
  stride: int = 1
  momentum: float = 0.9
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps [T, S, S, C] to [T, S / stride, S / stride, 4 * width]."""
    conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=self.momentum,
      epsilon=1e-5,
      dtype=self.dtype,
    )
    s, out = self.stride, 4 * self.width
    y = conv(self.width, (1, 1), name='conv1')(x)
    y = nn.relu(norm(name='bn1')(y))
    y = conv(self.width, (3, 3), s, padding=1, name='conv2')(y)
    y = nn.relu(norm(name='bn2')(y))
    y = norm(name='bn3')(conv(out, (1, 1), name='conv3')(y))
    if s != 1 or x.shape[-1] != out:
      x = conv(out, (1, 1), s, name='downsample_conv')(x)
      x = norm(name='downsample_bn')(x)
    return nn.relu(x + y)


class ResNet50Trunk(nn.Module):
  """Tiles to 1,024 features: ResNet-50 up to conv4_x, then the spatial mean.

  He, Zhang, Ren and Sun, "Deep residual learning for image recognition",
  CVPR 2016 (https://arxiv.org/abs/1512.03385), table 1, cut after conv4_x as
  CLAM, TransMIL, DTFD-MIL and KMIL do; 8,543,296 parameters. Modules carry
  torchvision's names, which `kmil_jax.port` relies on.

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
    x = nn.Conv(
      64,
      (7, 7),
      2,
      padding=3,
      use_bias=False,
      dtype=self.dtype,
      name='conv1',
    )(x)
    x = nn.BatchNorm(
      use_running_average=not train,
      momentum=self.momentum,
      epsilon=1e-5,
      dtype=self.dtype,
      name='bn1',
    )(x)
    x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
    for stage, blocks in enumerate(STAGES):
      for block in range(blocks):
        x = Bottleneck(
          width=64 * 2**stage,
          stride=2 if stage and not block else 1,
          momentum=self.momentum,
          dtype=self.dtype,
          name=f'layer{stage + 1}_{block}',
        )(x, train=train)
    return x.astype(jnp.float32).mean((1, 2))


def trunk_shapes() -> dict[str, Any]:
  """Returns the variables of `ResNet50Trunk` as shapes and types."""
  tiles = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  return jax.eval_shape(ResNet50Trunk().init, jax.random.key(0), tiles)
