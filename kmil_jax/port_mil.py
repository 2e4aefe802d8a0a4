"""Weights of the public MIL implementations, to and from Flax parameters."""

from collections.abc import Mapping
import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import port
from kmil_jax.models import SPECS
from kmil_jax.port import PortError

# Per family: Flax modules, and leaves outside any, by their public names.
# Zheng et al., iScience 2024.
_ABMIL = {
  'value': 'path_attn_head.attention_a.0',
  'gate': 'path_attn_head.attention_b.0',
  'score': 'path_attn_head.attention_c',
  'classifier': 'classifiers',
}
_ABMIL_PLAIN = {
  'embed': 'dim.0',
  'value': 'attention.0',
  'score': 'attention.2',
  'classifier': 'classifiers',
}
# Ilse et al., ICML 2018.
_ILSE = {
  'embed': 'feature_extractor_part2.0',
  'value': 'attention_V.0',
  'gate': 'attention_U.0',
  'score': 'attention_w',
  'classifier': 'classifier.0',
}
_ILSE_PLAIN = {
  'embed': 'feature_extractor_part2.0',
  'value': 'attention.0',
  'score': 'attention.2',
  'classifier': 'classifier.0',
}
# Li et al., CVPR 2021.
_DSMIL = {
  'instance': 'i_classifier.fc.0',
  'query_1': 'b_classifier.q.0',
  'query_2': 'b_classifier.q.2',
  'value': 'b_classifier.v.1',
  'fuse': 'b_classifier.fcc',
}
# Zhang et al., CVPR 2022.
_DTFD = {
  'reduce': 'dim_reduction.fc1',
  'attention/value': 'attention.attention.0',
  'attention/score': 'attention.attention.2',
  'classifier': 'classifier.fc',
  'tier2/attention/value': 'att_classifier.attention.attention_V.0',
  'tier2/attention/gate': 'att_classifier.attention.attention_U.0',
  'tier2/attention/score': 'att_classifier.attention.attention_weights',
  'tier2/classifier': 'att_classifier.classifier.fc',
}
_DTFD_GATED = _DTFD | {
  'attention/value': 'attention.attention_V.0',
  'attention/gate': 'attention.attention_U.0',
  'attention/score': 'attention.attention_weights',
}
# Shao et al., NeurIPS 2021.
_TRANSMIL = {
  'embed': '_fc1.0',
  'class_token': 'cls_token',
  'layer1/norm': 'layer1.norm',
  'layer1/qkv': 'layer1.attn.to_qkv',
  'layer1/out': 'layer1.attn.to_out.0',
  'layer1/residual': 'layer1.attn.res_conv.weight',
  'layer2/norm': 'layer2.norm',
  'layer2/qkv': 'layer2.attn.to_qkv',
  'layer2/out': 'layer2.attn.to_out.0',
  'layer2/residual': 'layer2.attn.res_conv.weight',
  'ppeg/conv7': 'pos_layer.proj',
  'ppeg/conv5': 'pos_layer.proj1',
  'ppeg/conv3': 'pos_layer.proj2',
  'norm': 'norm',
  'classifier': '_fc2',
}
_TABLES = {
  'abmil': _ABMIL,
  'abmil_plain': _ABMIL_PLAIN,
  'abmil_ilse': _ILSE,
  'abmil_ilse_plain': _ILSE_PLAIN,
  'dsmil': _DSMIL,
  'dsmil_value': _DSMIL,
  'kmil': _DSMIL,
  'dtfd': _DTFD,
  'dtfd_gated': _DTFD_GATED,
  'transmil': _TRANSMIL,
}
# Other names of the same modules, understood on reading.
_ALIASES = {
  'i_classifier.fc': 'i_classifier.fc.0',  # Zheng et al.
  'attention_weights': 'attention_w',  # Ilse et al. until 2024.
}
_KINDS = {
  'weight': 'weight',
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
}
# The first module there says how wide instances are, or how many classes.
_TAKES_FEATURES = ('embed', 'reduce', 'instance', 'classifier')
_GIVES_CLASSES = ('classifier', 'instance')


def bag_params(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
  """Returns parameters of a bag model made of a public implementation's.

  Width and classes are those of the weights. The MNIST convolutions of
  'abmil_ilse' are no part of the model: take them out first.

  Args:
    name: of `SPECS`.
    state: arrays by the public names. DTFD-MIL's four state dicts may be nested
      under their keys, or joined to them by a dot.

  Returns:
    Nested dicts of float32 arrays.

  Raises:
    PortError: if there is no table for the name; else listing every name that
      is missing, unexpected, of the wrong shape, or not finite.
  """
  state = traverse_util.flatten_dict(dict(state), sep='.')
  table = _table(name)
  for entry in list(state):
    module, _, kind = entry.rpartition('.')
    canonical = f'{_ALIASES.get(module, module)}.{kind}'
    if _ALIASES.get(module) in table.values() and canonical not in state:
      state[canonical] = state.pop(entry)
  weights = {
    module: state.get(f'{public}.weight') for module, public in table.items()
  }
  return port.fill(state, _entries(name, weights))


def bag_state_dict(
  name: str, params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """The inverse of `bag_params`.

  Args:
    name: of `SPECS`.
    params: of that model.

  Returns:
    float32 arrays by the names of the public implementation.

  Raises:
    PortError: as `bag_params`, by the paths of the leaves.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  weights = {module: flat.get(f'{module}/weight') for module in _table(name)}
  return port.unfill(params, _entries(name, weights))


def _table(name: str) -> dict[str, str]:
  if name not in _TABLES or name not in SPECS:
    raise PortError(
      f'{name!r}: weights are known of {", ".join(sorted(_TABLES))}'
    )
  return _TABLES[name]


def _entries(name: str, weights: Mapping[str, Any]) -> dict[str, port.Entry]:
  """The leaves of the model that has these weights' width and classes.

  Args:
    name: of `SPECS`.
    weights: array or None of each Flax module in the table.
  """

  features, classes = (
    next(weights[module] for module in modules if module in weights)
    for modules in (_TAKES_FEATURES, _GIVES_CLASSES)
  )
  # Of weights that are no matrix, the message will tell.
  size = lambda array, axis: array.shape[axis] if np.ndim(array) == 2 else 1
  model = SPECS[name].make(num_classes=size(classes, 0))
  leaves = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0),
      jnp.zeros((1, size(features, 1))),
      jnp.ones(1, bool),
      train=False,
    )
  )['params']
  known = features is not None and classes is not None
  entries = {}
  for path, leaf in traverse_util.flatten_dict(leaves, sep='/').items():
    module, _, kind = path.rpartition('/')
    table = _TABLES[name]
    public = table.get(path) or f'{table[module]}.{_KINDS[kind]}'
    shape = _torch_shape(path, leaf.shape)
    axes = tuple(range(len(shape)))
    entries[path] = port.Entry(
      public, shape if known else None, leaf.shape, axes
    )
  return entries


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of a leaf in torch, of as many elements in the same order."""
  if path == 'class_token':  # [H], of a batch and one token.
    return (1, 1, *shape)
  if re.fullmatch(r'layer\d/residual', path):  # [heads, taps] of a Conv2d.
    return (shape[0], 1, shape[1], 1)
  if re.fullmatch(r'ppeg/.*/kernel', path):  # [H, k, k], depthwise.
    return (shape[0], 1, *shape[1:])
  if path == 'fuse/weight':  # [C, C D] is a Conv1d as wide as D.
    classes = shape[0]
    return (classes, classes, shape[1] // classes)
  return shape
