"""Patch classifiers by torchvision's names: both ways, all names accounted.

That ported weights compute the same is shown in trunk_parity_test.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import port
from kmil_jax.models import CLASSIFIERS
from kmil_jax.port import PortError

torch = pytest.importorskip('torch')
resnet = pytest.importorskip('torch_networks.resnet')
googlenet, mobilenet, node_cnn = (
  pytest.importorskip(f'torch_networks.{name}')
  for name in ('googlenet', 'mobilenet', 'node_cnn')
)
TWINS = {
  'googlenet': googlenet.GoogLeNet,
  'googlenet_aux': functools.partial(googlenet.GoogLeNet, auxiliary=True),
  'mobilenet_v2': mobilenet.MobileNetV2,
  'node_cnn': functools.partial(node_cnn.NodeCNN, 16),
  'resnet18': functools.partial(resnet.ResNet, resnet.BasicBlock, (2, 2, 2, 2)),
  'resnet50': functools.partial(resnet.ResNet, resnet.Bottleneck, (3, 4, 6, 3)),
  'resnet101': functools.partial(
    resnet.ResNet, resnet.Bottleneck, (3, 4, 23, 3)
  ),
}
every_model = pytest.mark.parametrize('name', sorted(CLASSIFIERS))


@functools.cache
def shapes(name, classes=4, size=16, channels=3):
  model = CLASSIFIERS[name](num_classes=classes)
  tiles = jnp.zeros((1, size, size, channels))
  return jax.eval_shape(model.init, jax.random.key(0), tiles)


@functools.cache
def names_and_shapes(name, classes=4, channels=3):
  """Of the torch module, none of whose weights is ever made."""
  with torch.device('meta'):
    module = TWINS[name](classes=classes, channels=channels)
  return {n: tuple(v.shape) for n, v in module.state_dict().items()}


def state_of(name, classes=4, channels=3):
  """A state dict by torch's names; every tensor starts with its own number."""
  return {
    entry: np.linspace(i, i + 0.9, int(np.prod(shape)), dtype=np.float32)
    .reshape(shape)
    for i, (entry, shape) in enumerate(
      names_and_shapes(name, classes, channels).items()
    )
  }  # fmt: skip


@every_model
def test_there_and_back_by_the_twins_names(name):
  state = state_of(name)
  variables = port.from_torch(name, state, num_classes=4)
  expected = shapes(name)
  assert jax.tree.structure(variables) == jax.tree.structure(expected)
  assert jax.tree.map(np.shape, variables) == jax.tree.map(
    lambda leaf: leaf.shape, expected
  )
  back = port.to_torch(name, variables)
  wanted = {n for n in state if not n.endswith('num_batches_tracked')}
  assert set(back) == wanted
  for entry, value in back.items():
    np.testing.assert_array_equal(value, state[entry], entry)


@pytest.mark.parametrize('name', ['mobilenet_v2', 'node_cnn', 'resnet18'])
def test_ill_fitting_names_are_listed(name):
  state = state_of(name)
  weights = [n for n in state if n.endswith('weight')]
  lost, odd, bad = weights[0], weights[1], weights[2]
  state['backbone.' + lost] = state.pop(lost)
  state[odd] = np.zeros((7, 7), np.float32)
  state[bad][...] = np.nan
  with pytest.raises(PortError) as error:
    port.from_torch(name, state, num_classes=4)
  lines = str(error.value).splitlines()
  assert lines[0] == f'1 missing: {lost}'
  assert lines[1] == f'1 unexpected: backbone.{lost}'
  assert lines[2].startswith(f'1 wrongly shaped: {odd} (7, 7), expected (')
  assert lines[3:] == [f'1 not finite: {bad}']


HEADS = {
  'googlenet': ['fc'],
  'googlenet_aux': ['aux1.fc2', 'aux2.fc2', 'fc'],
  'mobilenet_v2': ['classifier.1'],
  'node_cnn': ['fc2'],
  'resnet18': ['fc'],
}


@pytest.mark.parametrize('name', sorted(HEADS))
def test_a_head_of_another_width_is_refused_or_new(name):
  drawn = jax.tree.map(
    lambda leaf: np.full(leaf.shape, -1, np.float32), shapes(name)
  )
  pretrained = state_of(name, classes=7)
  with pytest.raises(PortError) as error:
    port.from_torch(name, pretrained, num_classes=4)
  count = 2 * len(HEADS[name])
  assert str(error.value).startswith(f'{count} wrongly shaped: ')
  started = port.from_torch(name, pretrained, drawn=drawn)
  assert jax.tree.structure(started) == jax.tree.structure(drawn)
  for entry, value in port.to_torch(name, started).items():
    if entry.rpartition('.')[0] in HEADS[name]:
      np.testing.assert_array_equal(value, -1, entry)
    else:
      np.testing.assert_array_equal(value, pretrained[entry], entry)
  # A head of the same width is taken with the rest.
  whole = port.from_torch(name, state_of(name), drawn=drawn)
  same = port.from_torch(name, state_of(name), num_classes=4)
  jax.tree.map(np.testing.assert_array_equal, whole, same)


def test_nothing_but_the_head_may_be_new():
  drawn = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, np.float32),
    shapes('resnet18', channels=1),
  )
  with pytest.raises(PortError, match=r'^1 wrongly shaped: conv1.weight'):
    port.from_torch('resnet18', state_of('resnet18', classes=7), drawn=drawn)


def test_auxiliary_heads_may_be_left_but_not_made_up():
  with_heads = state_of('googlenet_aux')
  plain = port.from_torch('googlenet', with_heads, num_classes=4)
  assert 'aux1' not in plain['params']
  with pytest.raises(PortError, match='missing: aux1'):
    port.from_torch('googlenet_aux', state_of('googlenet'), num_classes=4)


def test_channels_are_those_of_the_weights():
  variables = port.from_torch(
    'node_cnn', state_of('node_cnn', channels=1), num_classes=4
  )
  assert variables['params']['conv1']['kernel'].shape == (3, 3, 1, 32)


def test_faulty_variables_are_refused():
  variables = port.from_torch('resnet18', state_of('resnet18'), num_classes=4)
  del variables['params']['bn1']
  with pytest.raises(PortError, match=r'^2 missing: bn1.bias, bn1.weight$'):
    port.to_torch('resnet18', variables)


def test_names_without_a_table_are_refused():
  with pytest.raises(PortError, match="'vgg': weights are known of abmil,"):
    port.from_torch('vgg', {}, num_classes=2)
