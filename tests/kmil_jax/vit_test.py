"""Vision transformers against timm's, and the presets of the field."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import port
from kmil_jax.models import efficientnet, vit

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm_networks')

OURS = {'patch': 8, 'width': 48, 'depth': 3, 'heads': 4, 'hidden': 192}
THEIRS = {
  'patch_size': 8,
  'embed_dim': 48,
  'depth': 3,
  'num_heads': 4,
  'num_classes': 0,
  'init_values': 1e-5,
  'dynamic_img_size': True,
}
GATED = {'mlp_layer': timm.SwiGLUPacked, 'act_layer': torch.nn.SiLU}
ROTARY = {
  'qkv_bias': False,
  'rope_type': 'dinov3',
  'rope_temperature': 100,
  'rope_rotate_half': True,
  'use_rot_pos_emb': True,
  'use_abs_pos_emb': False,
  'num_reg_tokens': 4,
  'use_fc_norm': False,
  'global_pool': 'token',
  'norm_layer': functools.partial(timm.LayerNorm, eps=1e-5),
}


def vit_of(size, **options):
  return timm.VisionTransformer(img_size=size, **THEIRS, **options)


# timm's network, what ours is given, and the side of the tiles.
CASES = {
  'class token': (vit_of(32), {'grid': 4}, 32),
  'more patches than learned': (vit_of(32), {'grid': 4}, 48),
  'fewer patches than learned': (vit_of(48), {'grid': 6}, 32),
  'registers without positions, gated': (
    vit_of(32, reg_tokens=4, no_embed_class=True, **GATED),
    {'grid': 4, 'registers': 4, 'placed': 0, 'gated': True},
    32,
  ),
  'registers with positions, mean of patches': (
    vit_of(32, reg_tokens=4, **GATED),
    {
      'grid': 4,
      'registers': 4,
      'placed': 5,
      'gated': True,
      'pool': 'class_mean',
    },
    32,
  ),
  'rotary': (
    timm.Eva(img_size=32, **THEIRS, **ROTARY),
    {'registers': 4, 'bias': False, 'epsilon': 1e-5},
    32,
  ),
}


def tiles(size, count=2):
  rng = np.random.default_rng(0)
  return rng.normal(size=(count, size, size, 3)).astype(np.float32)


def randomised(module):
  """Weights that matter: a scale of 1e-5 would hide every block."""
  torch.manual_seed(0)
  with torch.no_grad():
    for weight in module.parameters():
      if weight.ndim > 1:
        weight.normal_(0, 0.15)
      else:
        weight.normal_(0.5, 0.3)
  return module.eval()


def state_of(module):
  return {name: x.numpy() for name, x in module.state_dict().items()}


def preset_of(monkeypatch, network, size):
  """Makes 'small' the name of a network."""
  preset = vit.Preset(network, size, (0.5,) * 3, (0.5,) * 3, '', '', '')
  monkeypatch.setattr(vit, 'presets', lambda: {'small': preset})
  monkeypatch.setattr(port, '_KNOWN', ('small',))
  monkeypatch.setattr(port, '_ENCODERS', ('small',))


@pytest.mark.parametrize('case', CASES)
def test_features_are_timms(case, monkeypatch):
  module, options, size = CASES[case]
  preset_of(monkeypatch, OURS | options, size)
  variables = port.from_torch('small', state_of(randomised(module)))
  x = tiles(size)
  with torch.no_grad():
    tokens = module.forward_features(torch.tensor(x).permute(0, 3, 1, 2))
  want = tokens[:, 0].numpy()
  if options.get('pool') == 'class_mean':
    patches = tokens[:, 1 + options['registers'] :].mean(1).numpy()
    want = np.concatenate([want, patches], 1)
  network = vit.ViT(**OURS, **options)
  got = np.asarray(jax.jit(network.apply)(variables, x))
  assert want.std(0).mean() > 1e-2  # Tiles make a difference.
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)
  rough = vit.ViT(**OURS, **options, dtype=jnp.bfloat16)
  rounded = np.asarray(rough.apply(variables, x))
  cosine = (rounded * got).sum(1) / np.linalg.norm(rounded, axis=1)
  assert (1 - cosine / np.linalg.norm(got, axis=1)).max() < 1e-2


def test_what_blocks_add_to_tokens_is_not_rounded_away_in_bfloat16():
  """Branches of a thousandth of a token are less than bfloat16 resolves."""
  wide, rough = (
    vit.ViT(**OURS, grid=4, dtype=dtype)
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  x = tiles(32)
  variables = wide.init(jax.random.key(0), x)
  params = dict(variables['params'])
  params['cls_token'] = 100 * params['cls_token']
  scaled = lambda factor: {
    'params': {
      name: part | {k: factor * part[k] for k in ('gamma_1', 'gamma_2')}
      if name.startswith('blocks')
      else part
      for name, part in params.items()
    }
  }
  none = wide.apply(scaled(0.0), x)
  want = np.asarray(wide.apply(scaled(0.002), x) - none)
  got = np.asarray(rough.apply(scaled(0.002), x) - none)
  error = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
  assert error.max() < 0.05, error


# By timm's names, those of Hugging Face's transformers.
HUGGING_FACE = (
  (r'^cls_token', 'embeddings.cls_token'),
  (r'^pos_embed', 'embeddings.position_embeddings'),
  (r'^patch_embed\.proj', 'embeddings.patch_embeddings.projection'),
  (r'^norm', 'layernorm'),
  (r'^blocks', 'encoder.layer'),
  (r'attn\.proj', 'attention.output.dense'),
)
DINOV2 = (*HUGGING_FACE, (r'ls(\d)\.gamma', r'layer_scale\1.lambda1'))
VIT = (
  *HUGGING_FACE,
  ('norm1', 'layernorm_before'),
  ('norm2', 'layernorm_after'),
  (r'mlp\.fc1', 'intermediate.dense'),
  (r'mlp\.fc2', 'output.dense'),
)


@pytest.mark.parametrize('kind', ['dinov2', 'vit'])
def test_weights_of_transformers_are_the_same(kind, monkeypatch):
  scaled = kind == 'dinov2'
  options = {'grid': 4, 'layer_scale': scaled}
  module = timm.VisionTransformer(
    img_size=32, **THEIRS | {'init_values': 1e-5 if scaled else None}
  )
  state, renamed = state_of(randomised(module)), {}
  for name, value in state.items():
    for pattern, other in DINOV2 if scaled else VIT:
      name = re.sub(pattern, other, name)
    if 'attn.qkv' not in name:
      renamed[name] = value
      continue
    for part, own in zip(
      ('query', 'key', 'value'), np.split(value, 3), strict=True
    ):
      renamed[name.replace('attn.qkv', f'attention.attention.{part}')] = own
  renamed['embeddings.mask_token'] = np.zeros((1, 48), np.float32)
  renamed['pooler.dense.weight'] = np.zeros((48, 48), np.float32)
  preset_of(monkeypatch, OURS | options, 32)
  jax.tree.map(
    np.testing.assert_array_equal,
    port.from_torch('small', renamed),
    port.from_torch('small', state),
  )


ROUNDED = {'M': 1e6, 'B': 1e9}


@pytest.mark.parametrize('name', vit.presets())
def test_presets_have_the_published_size(name):
  preset = vit.presets()[name]
  network = vit.ViT(**preset.network)
  tile = jax.ShapeDtypeStruct((1, preset.size, preset.size, 3), jnp.float32)
  run = network.init_with_output
  features, shapes = jax.eval_shape(run, jax.random.key(0), tile)
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  digits = len(preset.parameters[:-1].partition('.')[2])
  unit = ROUNDED[preset.parameters[-1]]
  assert f'{count / unit:.{digits}f}' == preset.parameters[:-1]
  twice = preset.network.get('pool') == 'class_mean'
  assert features.shape == (1, preset.network['width'] * (1 + twice))
  assert features.dtype == jnp.float32


# Of DINOv3, timm's own name of the network is enough.
def test_dinov3_is_timms():
  module = timm.create_model('vit_small_patch16_dinov3', num_classes=0)
  variables = port.from_torch('dinov3_small', state_of(module.eval()))
  x = tiles(64, 1)
  with torch.no_grad():
    tokens = module.forward_features(torch.tensor(x).permute(0, 3, 1, 2))
  network = vit.ViT(**vit.presets()['dinov3_small'].network)
  got = jax.jit(network.apply)(variables, x)
  np.testing.assert_allclose(got, tokens[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('size', [64, 96, 101])
def test_lite0_is_timms(size):
  """By timm's graph, whose padding follows the size of the tiles."""
  module = timm.create_model('tf_efficientnet_lite0').eval()
  torch.manual_seed(0)
  for part in module.modules():
    if isinstance(part, torch.nn.BatchNorm2d):
      part.running_mean.normal_(0, 0.1)
      part.running_var.uniform_(0.5, 1.5)
  state = {}
  for name, value in state_of(module).items():
    for pattern, other in LITE0:
      name = re.sub(pattern, other, name)
    state[name] = value
  variables = port.from_torch('efficientnet_lite0', numbered(state))
  x = tiles(size)
  with torch.no_grad():
    maps = module.forward_features(torch.tensor(x).permute(0, 3, 1, 2))
  got = jax.jit(efficientnet.EfficientNetLite0().apply)(variables, x)
  want = maps.mean((2, 3)).numpy()
  assert want.std(0).max() > 1e-3
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


# By timm's names, those of the file that the default encoder comes in.
LITE0 = (
  (r'^conv_stem', '_conv_stem'),
  (r'^conv_head', '_conv_head'),
  (r'^bn1', '_bn0'),
  (r'^bn2', '_bn1'),
  (r'^classifier', '_fc'),
  (r'^(blocks\.0\.0)\.conv_dw', r'\1._depthwise_conv'),
  (r'^(blocks\.0\.0)\.bn1', r'\1._bn1'),
  (r'^(blocks\.0\.0)\.conv_pw', r'\1._project_conv'),
  (r'^(blocks\.0\.0)\.bn2', r'\1._bn2'),
  (r'(?<=\d)\.conv_pwl', '._project_conv'),
  (r'(?<=\d)\.conv_pw', '._expand_conv'),
  (r'(?<=\d)\.conv_dw', '._depthwise_conv'),
  (r'(?<=\d)\.bn3', '._bn2'),
  (r'(?<=[1-6]\.\d)\.bn2', '._bn1'),
  (r'(?<=[1-6]\.\d)\.bn1', '._bn0'),
)


def numbered(state):
  """Numbers the blocks of all stages in one row."""
  place = {}
  for name in state:
    if block := re.match(r'blocks\.\d+\.\d+(?=\.)', name):
      place.setdefault(block[0], f'_blocks.{len(place)}')
  return {
    re.sub(r'^blocks\.\d+\.\d+(?=\.)', lambda m: place[m[0]], name): value
    for name, value in state.items()
  }
