"""Vision transformers: one network for the encoders that pathology uses.

Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021
(https://arxiv.org/abs/2010.11929), with what its descendants added. Modules
carry timm's names, which `kmil_jax.port` relies on.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
import pathlib
import tomllib
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax.models.network import Network, TorchDense

_ROTARY_BASE = 100.0  # Siméoni et al., "DINOv3", 2025.


class Block(nn.Module):
  """Attention and a perceptron, each behind a norm and around a shortcut.

  Attributes:
    heads: of the attention.
    hidden: outputs of the first dense layer.
    gated: half of these gate the others: SwiGLU (Shazeer, 2020), else GELU.
    layer_scale: whether branches are scaled (Touvron et al., ICCV 2021).
    bias: whether queries, keys and values have one.
    epsilon: of the norms.
    dtype: type of the computation.
  """

  heads: int
  hidden: int
  gated: bool
  layer_scale: bool
  bias: bool
  epsilon: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: jax.Array, rotary: tuple[jax.Array, jax.Array] | None
  ) -> jax.Array:
    """Maps tokens [T, N, D] to [T, N, D], float32 in any type of computation.

    Args:
      x: tokens.
      rotary: sines and cosines of the last n tokens, [n, D / heads] each, by
        which queries and keys are turned; None to leave them.
    """
    width = x.shape[-1]

    def branch(y, place):
      y = y.astype(jnp.float32)
      if not self.layer_scale:
        return y
      return y * self.param(f'gamma_{place}', nn.initializers.ones, (width,))

    norm = functools.partial(
      nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype
    )
    dense = functools.partial(TorchDense, dtype=self.dtype)
    y = norm(name='norm1')(x)
    y = dense(3 * width, use_bias=self.bias, name='qkv')(y)
    y = y.reshape(*y.shape[:2], 3, self.heads, -1).astype(self.dtype)
    q, k, v = jnp.moveaxis(y, 2, 0)
    if rotary is not None:
      q, k = _turned(q, *rotary), _turned(k, *rotary)
    y = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
    x = x + branch(dense(width, name='proj')(y), 1)
    y = dense(self.hidden, name='fc1')(norm(name='norm2')(x))
    if self.gated:
      gate, y = jnp.split(y, 2, -1)
      y = nn.silu(gate) * y
    else:
      y = nn.gelu(y, approximate=False)
    return x + branch(dense(width, name='fc2')(y), 2)


class ViT(Network, kw_only=True):
  """A vision transformer that encodes tiles.

  Attributes:
    patch: side of a patch in pixels.
    width: D, of a token.
    depth: number of blocks.
    heads: as of `Block`.
    hidden: as of `Block`.
    gated: as of `Block`.
    layer_scale: as of `Block`.
    bias: as of `Block`.
    epsilon: as of `Block`.
    registers: further tokens (Darcet et al., ICLR 2024).
    grid: side of the grid of patches that has learned positions, which are
      interpolated for others; None for rotary ones (Su et al., 2021).
    placed: how many tokens before the patches have learned positions: none,
      the class token, or registers, too.
    pool: 'class' is the class token; 'class_mean' that and the patches' mean.
    dtype: type of the computation, float32 or bfloat16; parameters and features
      are float32 in either.
  """

  patch: int
  width: int
  depth: int
  heads: int
  hidden: int
  gated: bool = False
  layer_scale: bool = True
  bias: bool = True
  epsilon: float = 1e-6
  registers: int = 0
  grid: int | None = None
  placed: int = 1
  pool: str = 'class'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Encodes tiles.

    Args:
      x: normalised tiles, [T, S, S, 3], S a multiple of the patch.

    Returns:
      Features, [T, D] or [T, 2 D] float32.

    Raises:
      AssertionError: if the tiles have not three channels, or another side.
    """
    chex.assert_shape(x, (None, None, None, 3))
    chex.assert_is_divisible(x.shape[1], self.patch)
    patches = nn.Conv(
      self.width,
      (self.patch, self.patch),
      self.patch,
      padding='VALID',
      dtype=self.dtype,
      name='patch_embed',
    )(x).astype(jnp.float32)
    sides, rotary = patches.shape[1:3], None
    patches = patches.reshape(len(x), -1, self.width)
    draw = nn.initializers.normal(0.02)
    first = self.param('cls_token', draw, (1, self.width))
    if self.registers:
      more = self.param('reg_token', draw, (self.registers, self.width))
      first = jnp.concatenate([first, more])
    if self.grid:
      size = self.placed + self.grid**2, self.width
      place = self.param('pos_embed', draw, size)
      rest = len(first) - self.placed
      first += jnp.pad(place[: self.placed], ((0, rest), (0, 0)))
      learned = place[self.placed :].reshape(self.grid, self.grid, -1)
      patches += _resized(learned, sides)
    else:
      rotary = _angles(sides, self.width // self.heads)
    first = jnp.broadcast_to(first, (len(x), *first.shape))
    x = jnp.concatenate([first, patches], 1)
    for number in range(self.depth):
      x = Block(
        self.heads,
        self.hidden,
        self.gated,
        self.layer_scale,
        self.bias,
        self.epsilon,
        self.dtype,
        name=f'blocks_{number}',
      )(x, rotary)
    x = nn.LayerNorm(epsilon=self.epsilon, name='norm')(x)
    if self.pool == 'class':
      return x[:, 0]
    return jnp.concatenate([x[:, 0], x[:, 1 + self.registers :].mean(1)], -1)


def _resized(learned: jax.Array, sides: tuple[int, int]) -> jax.Array:
  """Interpolates positions [g, g, D] to [n, D], as timm does."""
  if learned.shape[:2] != sides:
    shape = *sides, learned.shape[-1]
    learned = jax.image.resize(learned, shape, 'cubic', antialias=True)
  return learned.reshape(-1, learned.shape[-1])


def _angles(
  sides: tuple[int, int], width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns sines and cosines of the patches' places, [n, width] each.

  A quarter of the angles is of rows, a quarter of columns, twice; places are
  from -1 to 1 over the tile (Siméoni et al., "DINOv3", 2025).
  """
  middle = [(np.arange(side) + 0.5) / side * 2 - 1 for side in sides]
  place = np.stack(np.meshgrid(*middle, indexing='ij'), -1).reshape(-1, 2)
  period = _ROTARY_BASE ** (2 * np.arange(width // 4) / (width // 2))
  angle = 2 * math.pi * place[:, :, None] / period
  angle = np.tile(angle.reshape(len(place), -1), 2)
  return np.sin(angle), np.cos(angle)


def _turned(x: jax.Array, sine: jax.Array, cosine: jax.Array) -> jax.Array:
  """Turns the last n of the tokens [T, N, heads, width], in float32."""
  before, x_n = jnp.split(x, [x.shape[1] - len(sine)], 1)
  wide = x_n.astype(jnp.float32)
  low, high = jnp.split(wide, 2, -1)
  across = jnp.concatenate([-high, low], -1)
  turned = wide * cosine[:, None] + across * sine[:, None]
  return jnp.concatenate([before, turned.astype(x.dtype)], 1)


@dataclasses.dataclass(frozen=True)
class Preset:
  """A published encoder of tiles.

  Attributes:
    network: arguments of `ViT`.
    size: side of the tiles in pixels, to which others are resized.
    mean: of each channel in [0, 1], subtracted from it.
    std: of each channel in [0, 1], which divides it.
    source: where its authors published the weights.
    licence: of the weights.
    parameters: as its authors count them, rounded.
  """

  network: Mapping[str, Any]
  size: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  source: str
  licence: str
  parameters: str


@functools.cache
def presets() -> dict[str, Preset]:
  """Returns the encoders that `vit.toml` describes, by name."""
  text = pathlib.Path(__file__).with_suffix('.toml').read_text('utf-8')
  return {name: Preset(**about) for name, about in tomllib.loads(text).items()}
