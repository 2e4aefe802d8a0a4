"""Reverse distillation: a frozen teacher, and the student that mirrors it.

Deng and Li, "Anomaly detection via reverse distillation from one-class
embedding", CVPR 2022 (https://arxiv.org/abs/2201.10703), as in their released
code and in that of He and Li's few-shot weighted variant (FW-RD). Modules
carry the names of the released code, which `kmil_jax.port` relies
on.
"""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models.convolutions import conv_norm
from kmil_jax.models.network import Network, Scope
from kmil_jax.models.resnet import STAGES, Block, stages

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
    if any(side % MULTIPLE for side in x.shape[1:3]):
      raise ValueError(
        f'patches of {x.shape[2]} x {x.shape[1]} pixels: their sides must be'
        f' multiples of {MULTIPLE}'
      )
    layer = functools.partial(
      conv_norm, train=train, dtype=self.dtype, momentum=self.momentum
    )
    width = self.width
    maps = stages(x, layer, STAGES, stem=width, width=2 * width, expansion=2)
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
    layer = functools.partial(
      conv_norm, train=train, dtype=self.dtype, axis_name=self.axis_name
    )
    x = Scope(_embed, name='bn')(maps, layer, self.width, self.shortcut)
    return Scope(_decode, name='decoder')(x, layer, self.width)


def _embed(
  maps: Maps, layer: Callable[..., jax.Array], width: int, shortcut: int
) -> jax.Array:
  """Fuses three maps (MFF) into one of half the size of the smallest (OCE).

  The released code also makes a 1x1 convolution and a norm that nothing uses.

  Returns:
    [T, S / 32, S / 32, 32 w].
  """
  down = lambda name, x, w: nn.relu(layer(x, w * width, 3, 2, name=name))
  first, second, third = maps
  first = down('conv2', down('conv1', first, 8), 16)
  second = down('conv3', second, 16)
  x = jnp.concatenate([first, second, third], -1)
  for block in range(3):
    x = Block(
      16 * width,
      1 if block else 2,
      layer,
      expansion=2,
      shortcut=shortcut,
      name=f'bn_layer_{block}',
    )(x)
  return x


def _decode(x: jax.Array, layer: Callable[..., jax.Array], width: int) -> Maps:
  """Maps [T, S / 32, S / 32, 32 w] to the teacher's shapes.

  The teacher's stages in reverse: each doubles the side of its map.
  """
  maps = []
  for stage, blocks in enumerate(STAGES):
    for block in range(blocks):
      x = Block(
        8 * width // 2**stage,
        1 if block else 1 / 2,
        layer,
        expansion=2,
        name=f'layer{stage + 1}_{block}',
      )(x)
    maps.append(x)
  return tuple(reversed(maps))


def map_shapes(width: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the maps of one patch of 32 pixels, as shapes and types."""
  return tuple(
    jax.ShapeDtypeStruct((1, side, side, 32 * width // side), jnp.float32)
    for side in (8, 4, 2)
  )
