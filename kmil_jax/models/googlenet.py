"""GoogLeNet with batch normalisation, a patch classifier of the detector."""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models import cpu
from kmil_jax.models.convolutions import conv_norm, max_pool
from kmil_jax.models.network import Classifier, Scope, TorchDense

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
# Of kernels and linear weights. What torchvision truncates, 200 deviations
# away, never occurs.
_narrow = nn.initializers.normal(0.01)


class Inception(nn.Module):
  """Four branches side by side (Szegedy et al., figure 2b).

  As in torchvision, the branch of 5x5 convolutions has 3x3 ones.

  Attributes:
    channels: see `_STAGES`.
    layer: makes a convolution, norm and ReLU by a name.
  """

  channels: tuple[int, ...]
  layer: Callable[..., jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [T, S, S, C] to [T, S, S, channels of the four branches]."""
    one, reduce3, three, reduce5, five, pooled = self.channels
    layer = self.layer
    branches = [
      layer('branch1', x, one),
      layer('branch2_1', layer('branch2_0', x, reduce3), three, 3),
      layer('branch3_1', layer('branch3_0', x, reduce5), five, 3),
      layer('branch4_1', max_pool(x, 3, 1, ((1, 1), (1, 1))), pooled),
    ]
    return jnp.concatenate(branches, -1)


class GoogLeNet(Classifier):
  """GoogLeNet, torchvision's, without its `transform_input`; F is 1,024.

  Szegedy et al., "Going deeper with convolutions", CVPR 2015
  (https://arxiv.org/abs/1409.4842), table 1; the local response
  normalisations have made way for batch normalisation after each convolution.
  Weights start as torchvision's: normal with deviation 0.01, linear biases as
  torch's. Training drops features with probability 0.2. There are no auxiliary
  heads.
  """

  def setup(self):
    self.dropout = nn.Dropout(0.2)
    self.fc = TorchDense(self.num_classes, weight_init=_narrow)

  @nn.compact
  def feature_map(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the last map before pooling, [T, about S / 32, .., 1024]."""
    conv = functools.partial(
      conv_norm,
      train=train,
      dtype=self.dtype,
      kernel_init=_narrow,
      convolve=None,
      axis_name=self.axis_name,
      epsilon=1e-3,
    )
    layer = lambda name, *args: nn.relu(Scope(conv, name=name)(*args))
    pool = lambda x, size=3: max_pool(x, size, 2, _ceil_padding(x, size, 2))
    x = pool(layer('conv1', x, 64, 7, 2))
    x = pool(layer('conv3', layer('conv2', x, 64), 192, 3))
    for stage, blocks in _STAGES.items():
      for letter, channels in blocks.items():
        x = Inception(channels, layer, name=f'inception{stage}{letter}')(x)
      if stage < 5:
        x = pool(x, 3 if stage == 3 else 2)
    return x


def _ceil_padding(x: jax.Array, size: int, stride: int) -> cpu.Padding:
  """Returns what completes the last window of each axis (ceiling mode).

  Unlike in torch, a map smaller than a window has one, too.
  """
  return [(0, max(-(n - size) % stride, size - n)) for n in x.shape[1:3]]
