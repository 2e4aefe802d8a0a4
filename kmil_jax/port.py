"""Weights by the names of public implementations, to and from Flax variables.

A network is a table of name pairs: modules here, and their names there.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
import pathlib
import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax.models import CLASSIFIERS, SPECS, resnet
from kmil_jax.models.reverse_distillation import Student, Teacher, map_shapes

# Patterns of module paths, from first to last, and what stands there in torch.
Names = Mapping[str, str]

# torchvision and timm.
_RESNET = {
  'downsample_conv': 'downsample/0',
  'downsample_bn': 'downsample/1',
  r'(layer\d+)_(\d+)': r'\1/\2',
}
_MOBILENET = {
  # The first and last layer: convolution 0, norm 1.
  r'features_(0|18)/conv': r'features_\1/0',
  r'features_(0|18)/bn': r'features_\1/1',
  # The first block expands nothing and has one layer less.
  'features_1/depthwise/conv': 'features_1/conv/0/0',
  'features_1/depthwise/bn': 'features_1/conv/0/1',
  'features_1/project/conv': 'features_1/conv/1',
  'features_1/project/bn': 'features_1/conv/2',
  'expand/conv': 'conv/0/0',
  'expand/bn': 'conv/0/1',
  'depthwise/conv': 'conv/1/0',
  'depthwise/bn': 'conv/1/1',
  'project/conv': 'conv/2',
  'project/bn': 'conv/3',
  r'features_(\d+)': r'features/\1',
  'classifier': 'classifier/1',
}
_GOOGLENET = {r'(branch\d)_(\d)': r'\1/\2'}
# Deng and Li, CVPR 2022 (RD4AD).
_STUDENT = {
  'upsample_conv': 'upsample/0',
  'upsample_bn': 'upsample/1',
  r'bn_layer_(\d+)': r'bn_layer/\1',
  **_RESNET,
}
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
_ILSE_PLAIN = _ABMIL_PLAIN | {
  'embed': 'feature_extractor_part2.0',
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
  'tier2/attention/value': 'att_classifier.attention.attention_V.0',
  'tier2/attention/gate': 'att_classifier.attention.attention_U.0',
  'tier2/attention/score': 'att_classifier.attention.attention_weights',
  'tier2/classifier': 'att_classifier.classifier.fc',
  'attention/value': 'attention.attention.0',
  'attention/score': 'attention.attention.2',
  'classifier': 'classifier.fc',
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
  r'(layer\d)/norm': r'\1.norm',
  r'(layer\d)/qkv': r'\1.attn.to_qkv',
  r'(layer\d)/out': r'\1.attn.to_out.0',
  r'(layer\d)/residual': r'\1.attn.res_conv.weight',
  'ppeg/conv7': 'pos_layer.proj',
  'ppeg/conv5': 'pos_layer.proj1',
  'ppeg/conv3': 'pos_layer.proj2',
  'norm': 'norm',
  'classifier': '_fc2',
}
_NAMES = {
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
  'googlenet': _GOOGLENET,
  'googlenet_aux': _GOOGLENET,
  'mobilenet_v2': _MOBILENET,
  'node_cnn': {},
  'resnet18': _RESNET,
  'resnet50': _RESNET,
  'resnet101': _RESNET,
  'resnet50_trunk': _RESNET,
  'teacher': _RESNET,
  'student': _STUDENT,
}
_LEAVES = {
  r'^params/(.*)/(kernel|scale|weight)$': r'\1/weight',
  r'^batch_stats/(.*)/(mean|var)$': r'\1/running_\2',
  r'^params/': '',
  '/': '.',
}
# Leaves of so many axes that torch holds in another shape, of as many elements
# in the same order.
_TORCH_SHAPES = (
  # Of a batch and one token.
  ('params/class_token', 1, lambda h: (1, 1, h)),
  # Of a Conv2d.
  (r'params/layer\d/residual', 2, lambda heads, taps: (heads, 1, taps, 1)),
  # Depthwise.
  ('params/ppeg/.*/kernel', 3, lambda h, *taps: (h, 1, *taps)),
  # A Conv1d as wide as the features.
  ('params/fuse/weight', 2, lambda c, n: (c, n) if n % c else (c, c, n // c)),
)
# Other names of bag models' modules, understood on reading.
_ALIASES = {
  'i_classifier.fc': 'i_classifier.fc.0',  # Zheng et al.
  'attention_weights': 'attention_w',  # Ilse et al. until 2024.
}
# The layer that sees the channels of a tile.
_FIRST = ('conv1.weight', 'conv1.conv.weight', 'features.0.0.weight')
# Layers as wide as there are classes.
_HEAD = r'(fc|fc2|classifier\.1|aux[12]\.fc2)\.(weight|bias)'
# Names that may be in a state dict and are knowingly left.
_UNUSED = {
  'googlenet': r'aux[12]\..*',
  'resnet50_trunk': r'layer4\..*|fc\.(weight|bias)',
  'teacher': r'layer4\..*|fc\.(weight|bias)',
  # Made in the released code and never used there.
  'student': r'bn\.(conv4|bn4)\..*',
}
_COUNTERS = r'.*\.num_batches_tracked'


class PortError(ValueError):
  """Weights that do not fit; the message lists every name concerned."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """Where a Flax leaf stands in a state dict, and how it lies there.

  `tensor.transpose(axes).reshape(leaf)` makes the leaf of torch's tensor. Its
  shape `torch` is None where the tensor that tells it is missing.
  """

  name: str
  torch: tuple[int, ...] | None
  leaf: tuple[int, ...]
  axes: tuple[int, ...]


def load_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a file of named weights.

  Args:
    path: a `.safetensors` file, or a `.pth` or `.pt` file saved with
      `torch.save(model.state_dict(), ...)`, or with a dict of several state
      dicts, whose keys come before their names. The latter needs torch.

  Returns:
    Arrays by name, float32, without DataParallel's `module.` prefix.

  Raises:
    PortError: if the file is missing, is of another type, cannot be read, or
      holds anything but named tensors.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise PortError(f'{path}: there is no such weights file')
  match path.suffix:
    case '.safetensors':
      state = _read_safetensors(path)
    case '.pth' | '.pt':
      state = _read_torch(path)
    case other:
      raise PortError(
        f'{path}: weights come as .safetensors or .pth, not {other!r}'
      )
  return {
    name.removeprefix('module.'): np.asarray(value, np.float32)
    for name, value in state.items()
  }


def from_torch(
  name: str, state: Mapping[str, Any], *, num_classes: int | None = None
) -> dict[str, Any]:
  """Returns a network's variables, made of a public implementation's weights.

  Sizes are those of the weights: the width of features or of the network, the
  shortcut of a student, the channels and the size of tiles.

  Args:
    name: of `SPECS` or `CLASSIFIERS`; 'resnet50_trunk' takes torchvision's or
      timm's ResNet-50, 'teacher' their wide_resnet50_2; 'student' takes
      RD4AD's names after `bn.` and `decoder.`, as `load_state_dict` makes them
      of its checkpoints. The names of 'node_cnn', which torchvision does not
      have, are conv1 to conv3, fc1 and fc2. The MNIST convolutions of
      'abmil_ilse' are no part of the model: take them out first.
    state: arrays by the public names, OIHW kernels. DTFD-MIL's four state dicts
      may be nested under their keys, or joined to them by a dot. Counters of
      batch norms, and layers beyond those used (`layer4` and `fc` of a trunk or
      teacher, RD4AD's idle layer, the auxiliary heads of 'googlenet'), may be
      there and are left.
    num_classes: C of the model, by default that of the weights.

  Returns:
    `{'params'}`, and `'batch_stats'` where there are batch norms, float32.

  Raises:
    PortError: if there is no table for the name; else listing every name that
      is missing, unexpected, of the wrong shape, or not finite.
  """
  names = _names(name)
  state = traverse_util.flatten_dict(dict(state), sep='.')
  for entry in list(state) if name in SPECS else ():
    module, _, kind = entry.rpartition('.')
    canonical = f'{_ALIASES.get(module, module)}.{kind}'
    known = _ALIASES.get(module) in names.values()
    if known and canonical not in state:
      state[canonical] = state.pop(entry)
  return fill(state, _expected(name, state, num_classes), _UNUSED.get(name, ''))


def to_torch(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inverse of `from_torch`, without what is not used.

  Args:
    name: as of `from_torch`.
    variables: of that network.

  Returns:
    float32 arrays by the names of the public implementation.

  Raises:
    PortError: as `from_torch`, by the public names.
  """
  state = {}
  leaves = traverse_util.flatten_dict(variables, sep='/')
  for path, e in _entries_of(variables, _names(name)).items():
    leaf = np.asarray(leaves[path], np.float32)
    leaf = leaf.reshape([e.torch[axis] for axis in e.axes])
    state[e.name] = np.ascontiguousarray(leaf.transpose(np.argsort(e.axes)))
  expected = _expected(name, state).values()
  _account(state, {e.name: e.torch for e in expected})
  return state


def fine_tuned(
  name: str, state: Mapping[str, np.ndarray], drawn: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns variables to fine-tune: of other weights, but with a new head.

  The head is the last layer, and that of each auxiliary head. Where it has as
  many classes in `state` as in `drawn`, it is taken like all others.

  Args:
    name: of `CLASSIFIERS`.
    state: as of `from_torch`, of any number of classes.
    drawn: variables of the model to be, whose head may be kept.

  Raises:
    PortError: as `from_torch`, the head's number of classes excepted.
  """
  entries = _entries_of(drawn, _names(name))
  head = [e for e in entries.values() if re.fullmatch(_HEAD, e.name)]
  classes = lambda e: np.shape(state.get(e.name, np.empty(e.torch)))[:1]
  if any(classes(e) != e.torch[:1] for e in head):
    own = to_torch(name, drawn)
    state = {**state, **{e.name: own[e.name] for e in head}}
  return fill(state, entries, _UNUSED.get(name, ''))


def fill(
  state: Mapping[str, np.ndarray],
  entries: Mapping[str, Entry],
  unused: str = '',
) -> dict[str, Any]:
  """Makes a Flax tree of a state dict and accounts for every name.

  Args:
    state: arrays by torch's names.
    entries: by the path of the leaf they fill, joined by '/'.
    unused: a pattern of names that may be there and are left, as are the
      counters of batch norms.

  Returns:
    Nested dicts of float32 arrays.

  Raises:
    PortError: listing every name that is missing, unexpected, of the wrong
      shape, or not finite.
  """
  state = {name: np.asarray(value, np.float32) for name, value in state.items()}
  _account(state, {e.name: e.torch for e in entries.values()}, unused)
  filled = {
    path: state[e.name].transpose(e.axes).reshape(e.leaf)
    for path, e in entries.items()
  }
  return traverse_util.unflatten_dict(filled, sep='/')


def _entries_of(variables: Mapping[str, Any], names: Names) -> dict[str, Entry]:
  """Returns where the leaves of variables, or of their shapes, are in torch."""
  entries = {}
  rules = {rf'(?<=/){module}(?=/|$)': there for module, there in names.items()}
  for path, leaf in traverse_util.flatten_dict(variables, sep='/').items():
    shape, name = np.shape(leaf), path
    for pattern, replacement in (*rules.items(), *_LEAVES.items()):
      name = re.sub(pattern, replacement, name)
    # Kernels, the only leaves of four axes: OIHW to HWIO.
    axes = (2, 3, 1, 0) if len(shape) == 4 else tuple(range(len(shape)))
    torch = tuple(shape[axes.index(axis)] for axis in range(len(axes)))
    for pattern, rank, reshaped in _TORCH_SHAPES:
      if len(shape) == rank and re.fullmatch(pattern, path):
        torch = reshaped(*shape)
        axes = tuple(range(len(torch)))
    entries[path] = Entry(name, torch, shape, axes)
  return entries


def _expected(
  name: str, state: Mapping[str, np.ndarray], num_classes: int | None = None
) -> dict[str, Entry]:
  """Returns the entries of the network that a state dict is meant for.

  The state dict tells its sizes, and the number of classes if it is not given.
  """
  names, size = _names(name), functools.partial(_size, state)
  tiles, options = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), {}
  known = True
  if name in SPECS:
    layer = lambda *modules: next(names[m] for m in modules if m in names)
    first = f'{layer("embed", "reduce", "instance", "classifier")}.weight'
    last = f'{layer("classifier", "instance")}.weight'
    model = SPECS[name].make(num_classes=num_classes or size(last, 0))
    inputs = jnp.zeros((1, size(first, 1))), jnp.ones(1, bool)
    options = {'train': False}
    known = first in state and last in state
  elif name in CLASSIFIERS:
    heads = [n for n in state if re.fullmatch(_HEAD, n)]
    classes = num_classes or (size(heads[0], 0) if heads else 1)
    model = CLASSIFIERS[name](num_classes=classes)
    channels = next((size(n, 1, 3) for n in _FIRST if n in state), 3)
    features = size('fc1.weight', 1) if name == 'node_cnn' else 0
    side = 8 * max(math.isqrt(features // 128), 1) if features else 32
    inputs = (tiles.update(shape=(1, side, side, channels)),)
  elif name == 'student':
    width = size('bn.conv1.weight', 0, 512) // 8
    model = Student(width, size('bn.bn_layer.0.downsample.0.weight', 2))
    inputs = (map_shapes(width),)
  elif name == 'teacher':
    model, inputs = Teacher(size('conv1.weight', 0, 64)), (tiles,)
  else:
    model, inputs = resnet.ResNet50Trunk(), (tiles,)
  init = functools.partial(model.init, **options)
  entries = _entries_of(jax.eval_shape(init, jax.random.key(0), *inputs), names)
  if known:
    return entries
  return {p: dataclasses.replace(e, torch=None) for p, e in entries.items()}


def _size(
  state: Mapping[str, np.ndarray], name: str, axis: int, default: int = 1
) -> int:
  """Returns a length of an array; the default where there is no such axis.

  Of an array with fewer axes than it should have, the message will tell.
  """
  shape = np.shape(state.get(name))
  return shape[axis] if axis < len(shape) else default


def _names(name: str) -> Names:
  if name not in _NAMES:
    raise PortError(
      f'{name!r}: weights are known of {", ".join(sorted(_NAMES))}'
    )
  return _NAMES[name]


def _account(
  found: Mapping[str, np.ndarray],
  wanted: Mapping[str, tuple[int, ...] | None],
  unused: str = '',
) -> None:
  """Raises unless arrays have the names and shapes wanted and are finite."""
  here = [name for name in wanted if name in found]
  shaped = [n for n in here if wanted[n] in (None, found[n].shape)]
  wrong = {
    'missing': sorted(set(wanted) - set(found)),
    'unexpected': [
      name for name in sorted(set(found) - set(wanted))
      if not re.fullmatch(f'{_COUNTERS}|{unused}', name)
    ],
    'wrongly shaped': [
      f'{name} {found[name].shape}, expected {wanted[name]}'
      for name in here if name not in shaped
    ],
    'not finite': [n for n in shaped if not np.isfinite(found[n]).all()],
  }  # fmt: skip
  if any(wrong.values()):
    raise PortError('\n'.join(
      f'{len(names)} {kind}: {", ".join(names)}'
      for kind, names in wrong.items() if names
    ))  # fmt: skip


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  import safetensors
  import safetensors.numpy

  try:
    return safetensors.numpy.load_file(path)
  except safetensors.SafetensorError as error:
    raise PortError(f'{path}: not a readable .safetensors file: {error}') from (
      error
    )


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError as error:
    raise PortError(
      f'{path}: reading {path.suffix} files takes torch, which is not '
      'installed; install it, or convert the file to .safetensors'
    ) from error
  try:
    state = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # torch raises what its unpickler raises.
    raise PortError(f'{path}: torch cannot read it: {error}') from error
  if not isinstance(state, dict):
    raise PortError(
      f'{path}: holds a {type(state).__name__}, not named tensors'
    )
  if state and all(isinstance(part, dict) for part in state.values()):
    state = {
      f'{module}.{name}': value
      for module, part in state.items()
      for name, value in part.items()
    }
  others = [str(n) for n, v in state.items() if not torch.is_tensor(v)]
  if others:
    raise PortError(
      f'{path}: holds more than named tensors: {", ".join(others)}; save '
      'model.state_dict() alone'
    )
  return {name: value.float().numpy() for name, value in state.items()}
