"""Patch classifiers by torchvision's and timm's names, both ways."""

from collections.abc import Mapping
import math
import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import port
from kmil_jax.models import CLASSIFIERS
from kmil_jax.port import PortError

_MOBILENET = (
  # The first and last layer: convolution 0, norm 1.
  (r'/features_(0|18)/conv/', r'/features_\1/0/'),
  (r'/features_(0|18)/bn/', r'/features_\1/1/'),
  # The first block expands nothing and has one layer less.
  (r'/features_1/depthwise/conv/', '/features_1/conv/0/0/'),
  (r'/features_1/depthwise/bn/', '/features_1/conv/0/1/'),
  (r'/features_1/project/conv/', '/features_1/conv/1/'),
  (r'/features_1/project/bn/', '/features_1/conv/2/'),
  (r'/expand/conv/', '/conv/0/0/'),
  (r'/expand/bn/', '/conv/0/1/'),
  (r'/depthwise/conv/', '/conv/1/0/'),
  (r'/depthwise/bn/', '/conv/1/1/'),
  (r'/project/conv/', '/conv/2/'),
  (r'/project/bn/', '/conv/3/'),
  (r'/features_(\d+)/', r'/features/\1/'),
  (r'/classifier/', '/classifier/1/'),
)
_GOOGLENET = ((r'/(branch\d)_(\d)/', r'/\1/\2/'),)
_NAMES: dict[str, port.Names] = {
  'googlenet': _GOOGLENET,
  'googlenet_aux': _GOOGLENET,
  'mobilenet_v2': _MOBILENET,
  'node_cnn': (),
  'resnet18': port.RESNET,
  'resnet50': port.RESNET,
  'resnet101': port.RESNET,
}
# The layer that sees the channels of a tile.
_FIRST = ('conv1.weight', 'conv1.conv.weight', 'features.0.0.weight')
# Layers as wide as there are classes.
_HEAD = r'(fc|fc2|classifier\.1|aux[12]\.fc2)\.(weight|bias)'
_COUNTERS = r'.*\.num_batches_tracked'
_AUXILIARY = r'aux[12]\..*'


def classifier(
  name: str, state: Mapping[str, np.ndarray], *, num_classes: int
) -> dict[str, Any]:
  """Returns the variables of a classifier, made of torchvision's weights.

  Args:
    name: of `CLASSIFIERS`. The names of 'node_cnn', which torchvision does
      not have, are conv1 to conv3, fc1 and fc2.
    state: arrays by torchvision's or timm's names, OIHW kernels.
      `num_batches_tracked`, and for 'googlenet' the auxiliary heads, may be
      there and are left unused.
    num_classes: C of the model, and of the weights.

  Returns:
    `{'params', 'batch_stats'}`, float32 NumPy.

  Raises:
    PortError: listing every name that is missing, unexpected, of the wrong
      shape, or not finite.
  """
  entries = port.entries_of(_shapes(name, state, num_classes), _names(name))
  return port.fill(state, entries, _unused(name))


def start(
  name: str, state: Mapping[str, np.ndarray], drawn: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns variables to fine-tune: of other weights, but with a new head.

  The head is the last layer, and that of each auxiliary head. Where it has as
  many classes in `state` as in `drawn`, it is taken like all others.

  Args:
    name: of `CLASSIFIERS`.
    state: as of `classifier`, of any number of classes.
    drawn: variables of the model to be, whose head may be kept.

  Raises:
    PortError: as `classifier`, the head's number of classes excepted.
  """
  entries = port.entries_of(drawn, _names(name))
  head = {path: e for path, e in entries.items() if re.fullmatch(_HEAD, e.name)}
  given = {e.name: np.shape(state[e.name]) for e in head.values()
           if e.name in state}  # fmt: skip
  if all(given.get(e.name, e.torch)[:1] == e.torch[:1] for e in head.values()):
    return port.fill(state, entries, _unused(name))
  rest = {path: e for path, e in entries.items() if path not in head}
  unused = f'{_unused(name)}|{_HEAD}'
  filled = port.fill(state, rest, unused)
  flat = traverse_util.flatten_dict(filled, sep='/')
  leaves = traverse_util.flatten_dict(drawn, sep='/')
  flat |= {path: np.asarray(leaves[path]) for path in head}
  return traverse_util.unflatten_dict(flat, sep='/')


def state_dict(
  name: str, variables: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """The inverse of `classifier`: OIHW kernels by torchvision's names.

  Raises:
    PortError: listing, by torchvision's names, what is missing, unexpected, of
      the wrong shape, or not finite.
  """
  state = port.unfill(variables, port.entries_of(variables, _names(name)))
  heads = [n for n in state if re.fullmatch(_HEAD, n) and n.endswith('bias')]
  classes = len(state[heads[0]]) if heads else 1
  port.fill(state, port.entries_of(_shapes(name, state, classes), _names(name)))
  return state


def _names(name: str) -> port.Names:
  if name not in _NAMES:
    raise PortError(
      f'{name!r}: weights are known of {", ".join(sorted(_NAMES))}'
    )
  return _NAMES[name]


def _unused(name: str) -> str:
  return f'{_COUNTERS}|{_AUXILIARY}' if name == 'googlenet' else _COUNTERS


def _shapes(name: str, state: Mapping[str, np.ndarray], num_classes: int):
  """Returns the shapes of a model for the tiles that weights are meant for."""
  _names(name)
  first = [np.shape(state[n]) for n in _FIRST if np.ndim(state.get(n)) == 4]
  channels = first[0][1] if first else 3
  size = 32
  if name == 'node_cnn' and np.ndim(state.get('fc1.weight')) == 2:
    size = 8 * max(math.isqrt(state['fc1.weight'].shape[1] // 128), 1)
  model = CLASSIFIERS[name].make(num_classes=num_classes)
  tiles = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), tiles)
