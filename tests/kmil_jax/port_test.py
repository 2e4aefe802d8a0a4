"""Ported weights give torch's outputs; ill-fitting weights are named."""

import sys

import numpy as np
import pytest
import safetensors.numpy

from experiments.encoding import encoder
from kmil_jax import port

torch = pytest.importorskip('torch')

resnet = pytest.importorskip('torch_networks.resnet')


@pytest.fixture(scope='module')
def network():
  """A network in which every weight and statistic is its own random number."""
  torch.manual_seed(0)
  network = resnet.ResNet50().eval()
  with torch.no_grad():
    for name, value in network.state_dict().items():
      if name.endswith('running_var'):
        value.uniform_(0.5, 2)
      elif name.endswith('running_mean') or name.endswith('bias'):
        value.normal_(0, 0.2)
      elif value.ndim == 1:
        value.uniform_(0.5, 1.5)
  return network


@pytest.fixture(scope='module')
def state(network):
  return {n: v.numpy().copy() for n, v in network.state_dict().items()}


def test_ported_weights_give_torchs_features(network, state, tmp_path):
  path = tmp_path / 'resnet50.safetensors'
  safetensors.numpy.save_file(state, path)
  tiles = np.random.default_rng(1).normal(size=(3, 96, 96, 3))
  tiles = tiles.astype(np.float32)
  with torch.no_grad():
    want = network(torch.from_numpy(tiles.transpose(0, 3, 1, 2))).numpy()
  assert want.std() > 0.1
  variables = port.from_torch('resnet50_trunk', port.load_state_dict(path))
  got = encoder.pmap_encode(variables, precision='float32')(tiles)
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-5)


def test_pth_of_a_data_parallel_model_is_the_same(network, state, tmp_path):
  path = tmp_path / 'resnet50.pth'
  torch.save({f'module.{n}': v for n, v in network.state_dict().items()}, path)
  got = port.load_state_dict(path)
  assert set(got) == set(state)
  for name, value in got.items():
    np.testing.assert_array_equal(value, state[name], name)


def test_export_is_the_inverse(state):
  variables = port.from_torch('resnet50_trunk', state)
  exported = port.to_torch('resnet50_trunk', variables)
  trunk = {
    name for name in state
    if not name.startswith(('layer4', 'fc'))
    and not name.endswith('num_batches_tracked')
  }  # fmt: skip
  assert set(exported) == trunk
  for name, value in exported.items():
    np.testing.assert_array_equal(value, state[name], name)


def test_every_ill_fitting_name_is_listed(state):
  bad = dict(state)
  bad['backbone.conv1.weight'] = bad.pop('conv1.weight')
  del bad['layer2.3.bn2.running_var']
  bad['layer1.0.conv2.weight'] = bad['layer1.0.conv2.weight'][:, :32]
  bad['layer3.5.bn3.bias'] = np.full(1024, np.nan, np.float32)
  with pytest.raises(port.PortError) as error:
    port.from_torch('resnet50_trunk', bad)
  assert str(error.value).splitlines() == [
    '2 missing: conv1.weight, layer2.3.bn2.running_var',
    '1 unexpected: backbone.conv1.weight',
    '1 wrongly shaped: layer1.0.conv2.weight (64, 32, 3, 3), '
    'expected (64, 64, 3, 3)',
    '1 not finite: layer3.5.bn3.bias',
  ]


def test_other_networks_are_refused(state):
  wide = dict(state)
  wide['layer3.6.conv1.weight'] = np.zeros((256, 1024, 1, 1), np.float32)
  with pytest.raises(port.PortError, match='1 unexpected: layer3'):
    port.from_torch('resnet50_trunk', wide)  # A ResNet-101 has 23 blocks there.


def test_files_that_hold_no_weights_are_refused(tmp_path):
  def refused(name, content, match):
    path = tmp_path / name
    if content is not None:
      path.write_bytes(content)
    with pytest.raises(port.PortError, match=match) as error:
      port.load_state_dict(path)
    assert str(path) in str(error.value)

  refused('absent.pth', None, 'no such weights file')
  refused('model.onnx', b'x', "not '.onnx'")
  refused('cut.safetensors', b'\x10\0\0\0\0\0\0\0{"a"', 'not a readable')
  refused('cut.pth', b'PK\x03\x04 and no more', 'torch cannot read it')


def test_pickles_with_code_are_refused_and_not_run(tmp_path):
  class Trap:
    def __reduce__(self):
      return (tmp_path.joinpath('ran').touch, ())

  torch.save({'conv1.weight': Trap()}, tmp_path / 'trap.pth')
  with pytest.raises(port.PortError, match='torch cannot read it'):
    port.load_state_dict(tmp_path / 'trap.pth')
  assert not (tmp_path / 'ran').exists()


def test_whole_checkpoints_are_refused_by_their_entries(tmp_path):
  torch.save({'state_dict': {}, 'epoch': 3}, tmp_path / 'run.pth')
  with pytest.raises(port.PortError, match='tensors: state_dict, epoch'):
    port.load_state_dict(tmp_path / 'run.pth')


def test_pth_without_torch_says_what_to_install(tmp_path, monkeypatch):
  (tmp_path / 'w.pth').touch()
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(port.PortError, match='takes torch'):
    port.load_state_dict(tmp_path / 'w.pth')


def test_several_state_dicts_are_joined(tmp_path):
  weight = torch.ones(2, 3)
  torch.save({'head': {'fc.weight': weight}}, tmp_path / 'parts.pth')
  ((name, value),) = port.load_state_dict(tmp_path / 'parts.pth').items()
  assert name == 'head.fc.weight'
  np.testing.assert_array_equal(value, weight)
