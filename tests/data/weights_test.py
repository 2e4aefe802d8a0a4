"""Files of named weights: whoever wrote them, and what is refused."""

import numpy as np
import pytest
import safetensors.numpy
import torch

from data import weights
from data.weights import WeightsError

STATE = {
  'conv1.weight': np.arange(6.0, dtype=np.float32).reshape(2, 3),
  'bn1.running_mean': np.ones(2, np.float32),
}
MODULE = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


def tensors():
  return {name: torch.tensor(value) for name, value in STATE.items()}


def assert_equal(got, want):
  assert got.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value)
    assert got[name].dtype == np.float32


def test_weights_are_read_from_files_of_any_kind(tmp_path):
  safetensors.numpy.save_file(STATE, tmp_path / 'a.safetensors')
  named = {f'module.{name}': value for name, value in tensors().items()}
  torch.save(named, tmp_path / 'b.pth')
  # Several state dicts are joined.
  parts = {
    'conv1': {'weight': tensors()['conv1.weight']},
    'bn1': {'running_mean': tensors()['bn1.running_mean']},
  }
  torch.save(parts, tmp_path / 'c.pt')
  trained = {n: torch.nn.Parameter(value) for n, value in tensors().items()}
  torch.save(trained, tmp_path / 'd.bin')
  for file in tmp_path.iterdir():
    assert_equal(weights.read(file), STATE)


@pytest.mark.parametrize('archive', [True, False])
@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_state_dicts_are_torchs_own(tmp_path, archive, protocol, dtype):
  """Those from before torch 1.6 are pickles one after the other."""
  state = MODULE.to(dtype).state_dict()
  torch.save(
    state,
    tmp_path / 'a.pth',
    _use_new_zipfile_serialization=archive,
    pickle_protocol=protocol,
  )
  assert_equal(
    weights.read(tmp_path / 'a.pth'),
    {name: value.float().numpy() for name, value in state.items()},
  )


def test_a_folder_stands_for_its_only_file(tmp_path):
  snapshot = tmp_path / 'models--lab--encoder' / 'snapshots' / 'abc'
  snapshot.mkdir(parents=True)
  torch.save(tensors(), snapshot / 'pytorch_model.bin')
  assert_equal(weights.read(snapshot.parents[1]), STATE)
  safetensors.numpy.save_file(STATE, snapshot / 'model.safetensors')
  assert weights.file_of(snapshot) == snapshot / 'model.safetensors'
  (snapshot / 'other.safetensors').touch()
  with pytest.raises(WeightsError, match=r'several files of weights, .*Name'):
    weights.read(snapshot)
  for i, name in enumerate(('model', 'other')):
    (snapshot / f'{name}.safetensors').rename(
      snapshot / f'model-0000{i + 1}-of-00002.safetensors'
    )
  with pytest.raises(WeightsError, match=r'00002-of-.*these parts of'):
    weights.read(snapshot)
  with pytest.raises(WeightsError, match='no file of weights'):
    weights.read(tmp_path)


LARGE = torch.zeros(10**4)
NAMES = {f'n{i}': LARGE for i in range(10**4)}


@pytest.mark.parametrize(
  'state', [NAMES, {f'm{i}': NAMES for i in range(10**4)}]
)
def test_many_names_of_the_same_take_no_memory(tmp_path, state):
  torch.save(state, tmp_path / 'a.pth')
  with pytest.raises(WeightsError, match='more numbers than it holds'):
    weights.read(tmp_path / 'a.pth')


def test_tied_weights_are_read(tmp_path):
  tied = {'a': LARGE, 'b': LARGE.view(100, 100), 3: LARGE}
  torch.save(tied, tmp_path / 'a.pth')
  want = {str(name): x.numpy() for name, x in tied.items()}
  assert_equal(weights.read(tmp_path / 'a.pth'), want)


class Trap:
  """Leaves a file where it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (self.path.touch, ())


@pytest.mark.parametrize(
  'name,content,fault',
  [
    ('absent.pth', None, 'no such weights file'),
    ('model.onnx', b'x', "not '.onnx'"),
    ('cut.safetensors', b'\x10\0\0\0\0\0\0\0{"a"', 'not a readable'),
    ('cut.pth', b'PK\x03\x04 and no more', 'not a readable'),
    ('run.pth', {'state_dict': {}, 'epoch': 3}, 'tensors: state_dict, epoch'),
    ('trap.pth', Trap, 'not a readable.*asks for'),
    ('one.pth', torch.ones(3), 'more than named tensors: Tensor'),
  ],
)
def test_files_that_hold_no_weights_are_refused(tmp_path, name, content, fault):
  path = tmp_path / name
  if content is Trap:
    content = {'conv1.weight': Trap(tmp_path / 'ran')}
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif content is not None:
    torch.save(content, path)
  with pytest.raises(WeightsError, match=fault) as error:
    weights.read(path)
  assert str(path) in str(error.value)
  assert not (tmp_path / 'ran').exists()
