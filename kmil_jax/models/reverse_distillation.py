"""Reverse distillation: a frozen teacher, and the student that mirrors it.

Deng and Li, "Anomaly detection via reverse distillation from one-class
embedding", CVPR 2022 (https://arxiv.org/abs/2201.10703), as in their released
code and in that of He and Li's few-shot weighted variant (FW-RD). Modules
carry the names of the released code, which `kmil_jax.port` relies
on.
"""

import functools

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models.batch_norm import BatchNorm
from kmil_jax.models.convolutions import convolution, max_pool
from kmil_jax.models.network import Network
from kmil_jax.models.resnet import KAIMING, STAGES, Bottleneck
from kmil_jax.models.upsample import Upsample

# [T, S / 4, S / 4, 4 w], [T, S / 8, S / 8, 8 w], [T, S / 16, S / 16, 16 w]
Maps = tuple[jax.Array, jax.Array, jax.Array]
# Patches must halve five times.
MULTIPLE = 32


class Teacher(Network):
  """WideResNet-50-2 up to conv4_x: patches to the maps of three stages.

  Zagoruyko and Komodakis, "Wide residual networks", BMVC 2016, as torchvision
  has it: ResNet-50 with 3x3 convolutions twice as wide. 24,862,528 parameters
  at width 64.

  Attributes:
    width: channels of the stem, w; 64 in the paper, less for phantoms.
    dtype: type of the computation, float32 or bfloat16; parameters and running
      statistics are float32 in either.
    momentum: weight of the old running statistics in training; see `BatchNorm`.
  """

  width: int = 64
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> Maps:
    """Encodes patches.

    Args:
      x: [T, S, S, 3], normalised with ImageNet's mean and deviation.
      train: normalise with the statistics of this batch; for calibration only.

    Returns:
      The maps of conv2_x, conv3_x and conv4_x, after their last ReLU.

    Raises:
      ValueError: if S is not a multiple of 32.
    """
    chex.assert_shape(x, (None, None, None, 3))
    if any(side % MULTIPLE for side in x.shape[1:3]):
      raise ValueError(
        f'patches of {x.shape[2]} x {x.shape[1]} pixels: their sides must be'
        f' multiples of {MULTIPLE}'
      )
    conv, norm = _layers(self.dtype, None, self.momentum)
    x = conv(self.width, (7, 7), 2, padding=3, name='conv1')(x)
    x = norm(name='bn1')(x, use_running_average=not train)
    x = max_pool(nn.relu(x), 3, 2, ((1, 1), (1, 1)))
    maps = []
    for stage, blocks in enumerate(STAGES):
      for block in range(blocks):
        x = Bottleneck(
          width=2 * self.width * 2**stage,
          stride=2 if stage and not block else 1,
          conv=conv,
          norm=norm,
          expansion=2,
          name=f'layer{stage + 1}_{block}',
        )(x, train=train)
      maps.append(x)
    return tuple(maps)


class Student(Network):
  """The teacher's maps through a narrow place and back, 83,802,624 parameters.

  With FW-RD's shortcut they are 134,134,272.

  Attributes:
    width: that of the teacher, w.
    shortcut: side of the kernel of the embedding's strided shortcut: 1 in RD, 3
      in the released code of FW-RD, though its paper does not say so.
    dtype: as of `Teacher`.
    axis_name: see `BatchNorm`.
  """

  width: int = 64
  shortcut: int = 3
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, maps: Maps, *, train: bool = False) -> Maps:
    """Guesses the teacher's maps from what one small map keeps of them.

    Args:
      maps: of the teacher.
      train: normalise with, and update, the statistics of this batch.

    Returns:
      Maps of the same shapes in the same order, not negative.
    """
    layers = _layers(self.dtype, self.axis_name)
    x = _Embedding(self.width, self.shortcut, *layers, name='bn')(maps, train)
    return _Decoder(self.width, *layers, name='decoder')(x, train)


class _Embedding(nn.Module):
  """Fuses three maps (MFF) into one of half the size of the smallest (OCE).

  The released code also makes a 1x1 convolution and a norm that nothing uses.
  """

  width: int
  shortcut: int
  conv: functools.partial
  norm: functools.partial

  @nn.compact
  def __call__(self, maps: Maps, train: bool) -> jax.Array:
    """Returns [T, S / 32, S / 32, 32 w]."""

    def down(number, x, channels):
      conv = self.conv(channels, (3, 3), 2, padding=1, name=f'conv{number}')
      norm = self.norm(name=f'bn{number}')
      return nn.relu(norm(conv(x), use_running_average=not train))

    w = self.width
    first, second, third = maps
    first = down(2, down(1, first, 8 * w), 16 * w)
    second = down(3, second, 16 * w)
    x = jnp.concatenate([first, second, third], -1)
    for block in range(3):
      x = Bottleneck(
        width=16 * w,
        stride=1 if block else 2,
        conv=self.conv,
        norm=self.norm,
        expansion=2,
        shortcut=self.shortcut,
        name=f'bn_layer_{block}',
      )(x, train=train)
    return x


class _Decoder(nn.Module):
  """The teacher's stages in reverse: each doubles the side of its map."""

  width: int
  conv: functools.partial
  norm: functools.partial

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> Maps:
    """Maps [T, S / 32, S / 32, 32 w] to the teacher's shapes."""
    maps = []
    for stage, blocks in enumerate(STAGES):
      layers = {
        'width': 8 * self.width // 2**stage,
        'conv': self.conv,
        'norm': self.norm,
      }
      name = f'layer{stage + 1}'
      x = _UpBottleneck(**layers, name=f'{name}_0')(x, train)
      for block in range(1, blocks):
        x = Bottleneck(**layers, stride=1, expansion=2, name=f'{name}_{block}')(
          x, train=train
        )
      maps.append(x)
    return tuple(reversed(maps))


class _UpBottleneck(nn.Module):
  """A bottleneck that doubles the side of its map."""

  width: int
  conv: functools.partial
  norm: functools.partial

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [T, S, S, C] to [T, 2 S, 2 S, 2 * width]."""
    norm = lambda name: functools.partial(
      self.norm(name=name), use_running_average=not train
    )
    dtype, out = self.conv.keywords['dtype'], 2 * self.width
    y = self.conv(self.width, (1, 1), name='conv1')(x)
    y = nn.relu(norm('bn1')(y))
    y = Upsample(self.width, dtype, name='conv2')(y)
    y = nn.relu(norm('bn2')(y))
    y = norm('bn3')(self.conv(out, (1, 1), name='conv3')(y))
    x = norm('upsample_bn')(Upsample(out, dtype, name='upsample_conv')(x))
    return nn.relu(x + y)


def map_shapes(width: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the maps of one patch of 32 pixels, as shapes and types."""
  return tuple(
    jax.ShapeDtypeStruct((1, side, side, 32 * width // side), jnp.float32)
    for side in (8, 4, 2)
  )


def _layers(
  dtype: jnp.dtype, axis_name: str | None, momentum: float = 0.9
) -> tuple[functools.partial, functools.partial]:
  """Returns what makes a convolution, and what makes a norm."""
  conv = functools.partial(
    nn.Conv,
    use_bias=False,
    dtype=dtype,
    kernel_init=KAIMING,
    conv_general_dilated=convolution,
  )
  norm = functools.partial(
    BatchNorm, axis_name=axis_name, dtype=dtype, momentum=momentum
  )
  return conv, norm
