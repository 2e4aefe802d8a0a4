"""Weights by the public names: both ways, and every fault by its name.

That ported weights compute the same is shown in bag_parity_test and
network_parity_test.
"""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import port
from kmil_jax.models import CLASSIFIERS, SPECS, resnet
from kmil_jax.models.reverse_distillation import Student, Teacher, map_shapes
from kmil_jax.port import PortError

torch = pytest.importorskip('torch')
twins = pytest.importorskip('torch_modules')

FEATURES, CLASSES = 6, 3
NETWORKS = (*SPECS, *CLASSIFIERS, *twins.ENCODERS)
every_network = pytest.mark.parametrize('name', NETWORKS)
# What state dicts hold beyond what is used.
IDLE = {
  'googlenet': ('aux1.', 'aux2.'),
  'resnet50_trunk': ('layer4.', 'fc.'),
  'student': ('bn.conv4.', 'bn.bn4.'),
  'teacher': ('layer4.', 'fc.'),
}
# torchvision's wide_resnet50_2 goes on where the teacher ends.
BEYOND = {'fc.bias': (1000,), 'layer4.0.conv1.weight': (1024, 1024, 1, 1)}


def model_and_inputs(name, channels=3, shortcut=3):
  if name in SPECS:
    bag = jnp.zeros((1, FEATURES)), jnp.ones(1, bool)
    return SPECS[name].make(num_classes=CLASSES), bag
  tiles = (jnp.zeros((1, 32, 32, channels)),)
  if name in CLASSIFIERS:
    tiles = (jnp.zeros((1, 16, 16, channels)),)
    return CLASSIFIERS[name](num_classes=CLASSES), tiles
  return {
    'resnet50_trunk': (resnet.ResNet50Trunk(), tiles),
    'teacher': (Teacher(8), tiles),
    'student': (Student(4, shortcut), (map_shapes(4),)),
  }[name]


@functools.cache
def flax_shapes(name, **options):
  model, inputs = model_and_inputs(name, **options)
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), *inputs)


@functools.cache
def torch_shapes(name, classes=CLASSES, **options):
  """Of the torch module, none of whose weights is ever made."""
  with torch.device('meta'):
    if name in SPECS:
      module = twins.BAG_MODELS[name](classes, FEATURES)
    elif name in CLASSIFIERS:
      module = twins.CLASSIFIERS[name](classes=classes, **options)
    else:
      width = {'teacher': (8,), 'student': (4,)}.get(name, ())
      module = twins.ENCODERS[name](*width, **options)
  shapes = {n: tuple(v.shape) for n, v in module.state_dict().items()}
  return shapes | (BEYOND if name == 'teacher' else {})


def state_of(name, **options):
  """A state dict by torch's names; every tensor starts with its own number."""
  return {
    entry: np.linspace(i, i + 0.9, int(np.prod(shape)), dtype=np.float32)
    .reshape(shape)
    for i, (entry, shape) in enumerate(torch_shapes(name, **options).items())
  }  # fmt: skip


def used(name, state):
  return {
    n for n in state
    if not n.endswith('num_batches_tracked')
    and not n.startswith(IDLE.get(name, 'nothing'))
  }  # fmt: skip


def assert_equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize(
  'name,options',
  [
    *((name, {}) for name in NETWORKS),
    # The weights tell these sizes.
    ('node_cnn', {'channels': 1}),
    ('student', {'shortcut': 1}),
  ],
)
def test_there_and_back_by_the_twins_names(name, options):
  state, expected = state_of(name, **options), flax_shapes(name, **options)
  variables = port.from_torch(name, state)
  assert jax.tree.structure(variables) == jax.tree.structure(expected)
  assert jax.tree.map(np.shape, variables) == jax.tree.map(
    lambda leaf: leaf.shape, expected
  )
  back = port.to_torch(name, variables)
  assert set(back) == used(name, state)
  for entry, value in back.items():
    np.testing.assert_array_equal(value, state[entry], entry)


@every_network
def test_every_ill_fitting_name_is_listed(name):
  state = state_of(name)
  lost, odd, bad, *_ = sorted(n for n in used(name, state) if 'bias' in n)
  state['encoder.' + lost] = state.pop(lost)
  state[odd] = np.zeros((7, 7), np.float32)
  state[bad][...] = np.inf
  with pytest.raises(PortError) as error:
    port.from_torch(name, state)
  lines = str(error.value).splitlines()
  assert lines[:2] == [f'1 missing: {lost}', f'1 unexpected: encoder.{lost}']
  assert lines[2].startswith(f'1 wrongly shaped: {odd} (7, 7), expected (')
  assert lines[3:] == [f'1 not finite: {bad}']


@pytest.mark.parametrize('name', ['dtfd', 'resnet18', 'student', 'transmil'])
def test_ill_fitting_variables_are_listed(name):
  state = state_of(name)
  variables = port.from_torch(name, state)
  flat = traverse_util.flatten_dict(variables, sep='/')
  lost, odd, *_ = sorted(path for path in flat if path.endswith('bias'))
  public = lambda path: next(
    n for n, value in state.items() if value.flat[0] == flat[path].flat[0]
  )
  lost_name, odd_name = public(lost), public(odd)
  flat['params/tail/bias'] = flat.pop(lost)
  flat[odd] = np.zeros((7, 7))
  with pytest.raises(PortError) as error:
    port.to_torch(name, traverse_util.unflatten_dict(flat, sep='/'))
  lines = str(error.value).splitlines()
  assert lines[:2] == [f'1 missing: {lost_name}', '1 unexpected: tail.bias']
  assert lines[2].startswith(f'1 wrongly shaped: {odd_name} (7, 7), expected (')


@pytest.mark.parametrize(
  'name,other,fault',
  [
    ('dtfd', 'dtfd_gated', 'unexpected: .*attention_U'),
    ('dtfd_gated', 'dtfd', 'missing: .*attention_U'),
    ('dsmil', 'dsmil_value', r'unexpected: b_classifier\.v\.1'),
    ('dsmil_value', 'dsmil', r'missing: b_classifier\.v\.1'),
    ('abmil', 'abmil_plain', 'missing: .*attention_b'),
    ('abmil_ilse', 'abmil_ilse_plain', 'missing: attention_U'),
    ('resnet50_trunk', 'resnet101', 'unexpected: layer3'),
    ('teacher', 'resnet50', r'wrongly shaped: .*layer1\.0\.conv2'),
  ],
)
def test_weights_of_another_form_are_refused(name, other, fault):
  with pytest.raises(PortError, match=fault):
    port.from_torch(name, state_of(other))


def test_auxiliary_heads_may_be_left():
  state = state_of('googlenet')
  plain = port.from_torch('googlenet', state | {'aux1.fc2.bias': np.ones(2)})
  assert_equal(plain, port.from_torch('googlenet', state))


HEADS = {
  'googlenet': ['fc'],
  'mobilenet_v2': ['classifier.1'],
  'node_cnn': ['fc2'],
  'resnet18': ['fc'],
}


@pytest.mark.parametrize('name', sorted(HEADS))
def test_a_head_of_another_width_is_new(name):
  drawn = jax.tree.map(
    lambda leaf: np.full(leaf.shape, -1, np.float32), flax_shapes(name)
  )
  pretrained = state_of(name, classes=7)
  started = port.from_torch(name, pretrained, drawn=drawn)
  assert jax.tree.structure(started) == jax.tree.structure(drawn)
  for entry, value in port.to_torch(name, started).items():
    new = entry.rpartition('.')[0] in HEADS[name]
    np.testing.assert_array_equal(value, -1 if new else pretrained[entry])
  # A head of the same width is taken with the rest.
  whole = port.from_torch(name, state_of(name), drawn=drawn)
  assert_equal(whole, port.from_torch(name, state_of(name)))


def test_nothing_but_the_head_may_be_new():
  drawn = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, np.float32),
    flax_shapes('resnet18', channels=1),
  )
  with pytest.raises(PortError, match=r'^1 wrongly shaped: conv1.weight'):
    port.from_torch('resnet18', state_of('resnet18', classes=7), drawn=drawn)


@pytest.mark.parametrize(
  'name,public,other',
  [
    ('dsmil', 'i_classifier.fc.0', 'i_classifier.fc'),
    ('kmil', 'i_classifier.fc.0', 'i_classifier.fc'),
    ('abmil_ilse', 'attention_w', 'attention_weights'),
  ],
)
def test_other_names_of_a_layer_are_understood(name, public, other):
  state = state_of(name)
  want = port.from_torch(name, state)
  for kind in ('weight', 'bias'):
    state[f'{other}.{kind}'] = state.pop(f'{public}.{kind}')
  assert_equal(port.from_torch(name, state), want)
  # Not both: which one would count?
  state[f'{public}.bias'] = state[f'{other}.bias']
  with pytest.raises(PortError, match=f'1 unexpected: {other}.bias'):
    port.from_torch(name, state)


def test_dtfds_four_state_dicts_may_stay_apart():
  state, nested = state_of('dtfd'), {}
  for entry, value in state.items():
    module, _, rest = entry.partition('.')
    nested.setdefault(module, {})[rest] = value
  assert len(nested) == 4
  assert_equal(port.from_torch('dtfd', nested), port.from_torch('dtfd', state))


def test_names_without_a_table_are_refused():
  for convert in (port.from_torch, port.to_torch):
    with pytest.raises(PortError, match="'vgg': weights are known of abmil, "):
      convert('vgg', {})
