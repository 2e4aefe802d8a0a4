"""Bag models by the public names: both ways, and every fault by its name.

That ported weights compute the same is shown in torch_parity_test.
"""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import port
from kmil_jax.models import SPECS
from kmil_jax.port import PortError

WIDTH, CLASSES = 6, 3
every_model = pytest.mark.parametrize('name', sorted(SPECS))


@functools.cache
def shapes(name):
  model = SPECS[name].make(num_classes=CLASSES)
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(
    init, jax.random.key(0), jnp.zeros((1, WIDTH)), jnp.ones(1, bool)
  )['params']


def params_of(name):
  """Parameters whose every element is a number of its own."""
  count = iter(range(10**6))
  return jax.tree.map(
    lambda leaf: (
      (next(count) + np.linspace(0, 0.9, leaf.size, dtype='f4'))
      .reshape(leaf.shape)
      .astype(np.float32)
    ),
    shapes(name),
  )


@every_model
def test_there_and_back(name):
  params = params_of(name)
  state = port.to_torch(name, {'params': params})
  back = port.from_torch(name, state)['params']
  assert jax.tree.structure(back) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, back, params)
  again = port.to_torch(name, {'params': back})
  assert set(again) == set(state)
  for entry, value in again.items():
    np.testing.assert_array_equal(value, state[entry], entry)
  # Each leaf under a name of its own, in the order of its elements.
  flat = traverse_util.flatten_dict(params)
  assert len(state) == len(flat)
  by_first = {float(leaf.flat[0]): leaf for leaf in flat.values()}
  for value in state.values():
    np.testing.assert_array_equal(
      value.ravel(), by_first[float(value.flat[0])].ravel()
    )


@pytest.mark.parametrize(
  'name,entry,shape',
  [
    ('abmil', 'path_attn_head.attention_b.0.weight', (256, WIDTH)),
    ('abmil_plain', 'dim.0.weight', (512, WIDTH)),
    ('abmil_ilse', 'classifier.0.weight', (CLASSES, 500)),
    ('dsmil', 'b_classifier.fcc.weight', (CLASSES, CLASSES, WIDTH)),
    ('dsmil_value', 'b_classifier.v.1.weight', (WIDTH, WIDTH)),
    ('dtfd', 'att_classifier.attention.attention_U.0.weight', (128, 512)),
    ('transmil', 'cls_token', (1, 1, 512)),
    ('transmil', 'layer2.attn.res_conv.weight', (8, 1, 33, 1)),
    ('transmil', 'pos_layer.proj1.weight', (512, 1, 5, 5)),
    ('transmil', 'layer1.norm.weight', (512,)),
  ],
)
def test_layouts_are_those_of_torch(name, entry, shape):
  assert port.to_torch(name, {'params': params_of(name)})[entry].shape == shape


@every_model
def test_every_ill_fitting_name_is_listed(name):
  state = port.to_torch(name, {'params': params_of(name)})
  names = [n for n in sorted(state) if n.endswith('bias')]
  lost, odd, bad = names[0], names[1], names[2]
  del state[lost]
  state[odd] = np.zeros((7, 7), np.float32)
  state[bad] = np.full_like(state[bad], np.inf)
  state['encoder.weight'] = np.zeros(2)
  with pytest.raises(PortError) as error:
    port.from_torch(name, state)['params']
  lines = str(error.value).splitlines()
  assert lines[:2] == [f'1 missing: {lost}', '1 unexpected: encoder.weight']
  assert lines[2].startswith(f'1 wrongly shaped: {odd} (7, 7), expected (')
  assert lines[3:] == [f'1 not finite: {bad}']


@every_model
def test_ill_fitting_parameters_are_listed(name):
  flat = traverse_util.flatten_dict(params_of(name), sep='/')
  lost, odd, *_ = sorted(path for path in flat if path.endswith('bias'))
  whole = port.to_torch(name, {'params': params_of(name)})
  public = lambda path: next(
    n for n, value in whole.items() if value.flat[0] == flat[path].flat[0]
  )
  lost_name, odd_name = public(lost), public(odd)
  flat['tail/bias'] = flat.pop(lost)
  flat[odd] = np.zeros((7, 7))
  params = traverse_util.unflatten_dict(flat, sep='/')
  with pytest.raises(PortError) as error:
    port.to_torch(name, {'params': params})
  lines = str(error.value).splitlines()
  assert lines[:2] == [f'1 missing: {lost_name}', '1 unexpected: tail.bias']
  assert lines[2].startswith(f'1 wrongly shaped: {odd_name} (7, 7), expected (')


def test_without_what_tells_the_size_names_alone_are_judged():
  state = port.to_torch('dtfd', {'params': params_of('dtfd')})
  del state['dim_reduction.fc1.weight']
  with pytest.raises(PortError) as error:
    port.from_torch('dtfd', state)['params']
  assert str(error.value) == '1 missing: dim_reduction.fc1.weight'
  state['dim_reduction.fc1.weight'] = np.zeros(5)
  with pytest.raises(PortError, match=r'dim_reduction.fc1.weight \(5,\), exp'):
    port.from_torch('dtfd', state)['params']


@pytest.mark.parametrize(
  'name,other',
  [
    ('dtfd', 'dtfd_gated'),
    ('dtfd_gated', 'dtfd'),
    ('dsmil', 'dsmil_value'),
    ('dsmil_value', 'dsmil'),
    ('abmil', 'abmil_plain'),
    ('abmil_ilse', 'abmil_ilse_plain'),
  ],
)
def test_another_form_is_refused(name, other):
  state = port.to_torch(other, {'params': params_of(other)})
  with pytest.raises(PortError, match=r'missing|unexpected'):
    port.from_torch(name, state)['params']


@pytest.mark.parametrize(
  'name,public,other',
  [
    ('dsmil', 'i_classifier.fc.0', 'i_classifier.fc'),
    ('kmil', 'i_classifier.fc.0', 'i_classifier.fc'),
    ('abmil_ilse', 'attention_w', 'attention_weights'),
  ],
)
def test_other_names_of_a_layer_are_understood(name, public, other):
  params = params_of(name)
  state = port.to_torch(name, {'params': params})
  for kind in ('weight', 'bias'):
    state[f'{other}.{kind}'] = state.pop(f'{public}.{kind}')
  given = dict(state)
  back = port.from_torch(name, state)['params']
  jax.tree.map(np.testing.assert_array_equal, back, params)
  assert state.keys() == given.keys()
  # Not both: which one would count?
  state[f'{public}.bias'] = state[f'{other}.bias']
  with pytest.raises(PortError, match=f'1 unexpected: {other}.bias'):
    port.from_torch(name, state)['params']


def test_dtfds_four_state_dicts_may_stay_apart():
  params = params_of('dtfd')
  nested = {}
  for entry, value in port.to_torch('dtfd', {'params': params}).items():
    module, _, rest = entry.partition('.')
    nested.setdefault(module, {})[rest] = value
  assert set(nested) == {
    'classifier', 'attention', 'dim_reduction', 'att_classifier'
  }  # fmt: skip
  back = port.from_torch('dtfd', nested)['params']
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_names_without_a_table_are_refused():
  with pytest.raises(PortError, match="'mean': weights are known of abmil, "):
    port.from_torch('mean', {})['params']
  with pytest.raises(PortError, match="'mean': weights are known of abmil, "):
    port.to_torch('mean', {'params': {}})
