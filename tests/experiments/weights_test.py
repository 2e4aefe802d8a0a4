"""Which weights an encoder gets, and what it is then called."""

import hashlib
import os

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy

from experiments.encoding import encoder as encoders
from kmil_jax import port
from kmil_jax.models import resnet


def sample() -> np.ndarray:
  return np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)


def never():
  raise AssertionError('calibrated although it need not be')


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """A pretrained file, as it were: the trunk with constant statistics."""
  path = tmp_path_factory.mktemp('weights') / 'trunk.safetensors'
  shapes = jax.eval_shape(
    resnet.ResNet50Trunk().init, jax.random.key(0), sample()
  )
  variables = jax.tree.map(
    lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), shapes
  )
  state = port.to_torch('resnet50_trunk', variables)
  safetensors.numpy.save_file(state, path)
  return path


def make(weights_flag, tmp_path, draw=never, **options):
  return encoders.make_encoder(
    weights_flag,
    features_dir=tmp_path / 'features',
    cache_dir=tmp_path / 'cache',
    sample=draw,
    **options,
  )


def test_files_of_different_weights_have_different_names(file, tmp_path):
  digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
  encoder = make(str(file), tmp_path)
  assert encoder.name == f'resnet50-conv4-{digest}'
  assert 'RANDOM' not in encoder.note
  assert encoder.encode(sample()).shape == (8, 1024)
  assert not (tmp_path / 'features').exists()  # Nothing is made up beside it.


def test_a_partial_file_is_refused_by_file_and_names(file, tmp_path):
  state = port.load_state_dict(file)
  del state['layer3.2.bn1.weight']
  partial = tmp_path / 'partial.safetensors'
  safetensors.numpy.save_file(state, partial)
  with pytest.raises(encoders.WeightsError) as error:
    make(str(partial), tmp_path)
  assert str(error.value).splitlines() == [
    f"{partial} does not fit torchvision's ResNet-50:",
    '1 missing: layer3.2.bn1.weight',
  ]


def test_a_random_trunk_is_made_once(tmp_path):
  first = make(None, tmp_path, sample)
  assert first.name.startswith('resnet50-conv4-random-seed0-')
  assert 'RANDOM' in first.note and 'NOT pretrained' in first.note
  again = make(None, tmp_path)
  assert again.name == first.name
  # Another cohort takes the file as its weights.
  path = tmp_path / 'features' / encoders.RANDOM_FILE
  other = make(str(path), tmp_path / 'other', precision='bfloat16')
  assert (other.name, other.note) == (first.name, first.note)
  assert [p.name for p in path.parent.iterdir()] == [encoders.RANDOM_FILE]
  with pytest.raises(encoders.WeightsError, match='seed 0, not 1'):
    make(None, tmp_path, seed=1)


def test_calibration_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
  def full(*args):
    raise OSError('disk full')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='disk full'):
    make(None, tmp_path, sample)
  assert not list((tmp_path / 'features').iterdir())


def test_imagenet_is_taken_from_where_it_was_put(file, tmp_path):
  place = tmp_path / 'cache' / 'weights' / 'resnet50.tv_in1k.safetensors'
  place.parent.mkdir(parents=True)
  place.write_bytes(file.read_bytes())
  assert make('imagenet', tmp_path).name == make(str(file), tmp_path).name


def test_imagenet_without_network_says_what_to_put_where(tmp_path, monkeypatch):
  asked = []

  def offline(repo, name):
    asked.append((repo, name))
    raise huggingface_hub.errors.LocalEntryNotFoundError('no network')

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', offline)
  with pytest.raises(encoders.WeightsError) as error:
    make('imagenet', tmp_path)
  assert asked == [('timm/resnet50.tv_in1k', 'model.safetensors')]
  message = str(error.value)
  assert '\n' not in message
  assert 'model.safetensors of timm/resnet50.tv_in1k' in message
  place = tmp_path / 'cache' / 'weights' / 'resnet50.tv_in1k.safetensors'
  assert str(place) in message


def test_a_function_of_ones_own_encodes(tmp_path, monkeypatch):
  (tmp_path / 'my_encoder.py').write_text('encode = lambda x: x.mean((1, 2))')
  monkeypatch.syspath_prepend(tmp_path)
  encoder = make('my_encoder:encode', tmp_path)
  assert encoder.attributes() == {
    'encoder': 'my_encoder:encode',
    'precision': 'float32',
  }
  assert encoder.encode(sample()).shape == (8, 3)
  assert not (tmp_path / 'features').exists()
  for reference in ('my_encoder:absent', 'no_such_module:encode'):
    with pytest.raises(encoders.WeightsError, match='cannot be imported'):
      make(reference, tmp_path)
  with pytest.raises(encoders.WeightsError, match='applies only to ResNet-50'):
    make('my_encoder:encode', tmp_path, precision='bfloat16')
