"""A patch classifier and tiles so small that tests can train them."""

import functools
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from kmil_jax.models import CLASSIFIERS
from kmil_jax.models.batch_norm import BatchNorm
from kmil_jax.types import TilePrediction, Tiles

SIZE = 8


class Tiny(nn.Module):
  """One convolution with its norm, the spatial mean, one dense layer."""

  num_classes: int
  dtype: Any = jnp.float32
  axis_name: str | None = None
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.Conv(
      4, (3, 3), 2, padding=1, use_bias=False, dtype=self.dtype, name='conv1'
    )(x)
    norm = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name='bn1')
    x = norm(x, use_running_average=not train)
    features = nn.relu(x).astype(jnp.float32).mean((1, 2))
    x = nn.Dropout(self.dropout, deterministic=not train)(features)
    logits = nn.Dense(self.num_classes, dtype=self.dtype, name='fc')(x)
    return TilePrediction(logits=logits.astype(jnp.float32), features=features)


def of_few_blocks(name):
  """Returns what makes a classifier, of a ResNet with two blocks that differ.

  Its others are as the second, or as the first with a stride.
  """
  fewer = {'stages': (2, 1, 1, 1)} if name.startswith('resnet') else {}
  return functools.partial(CLASSIFIERS[name], **fewer)


def make_tiles(n=32, seed=0, noise=0.3):
  """Tiles of two classes, the second of which is redder, NumPy uint8."""
  rng = np.random.default_rng(seed)
  label = rng.permutation(n).astype(np.int32) % 2
  image = rng.normal(size=(n, SIZE, SIZE, 3))
  image[..., 0] += noise * label[:, None, None]
  image = (128 + 40 * image).clip(0, 255).astype(np.uint8)
  return Tiles(image=image, label=label, weight=np.ones(n, np.float32))


def batches(tiles, size):
  """Cuts tiles into batches; fillers complete the last."""
  n = len(tiles.label)
  for start in range(0, n, size):
    rows = np.arange(start, start + size)
    real = rows < n
    rows = np.minimum(rows, n - 1)
    yield Tiles(
      # What a filler shows must not matter.
      image=np.where(
        real[:, None, None, None], tiles.image[rows], np.uint8(255)
      ),
      label=tiles.label[rows],
      weight=real.astype(np.float32),
    )
