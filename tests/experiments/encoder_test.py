"""Random encoders are calibrated; which weights one gets, and its name."""

import hashlib

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy

from experiments.encoding import encoder as encoders
from kmil_jax import port
from kmil_jax.models import resnet


def make_tiles(count: int, side: int = 64, seed: int = 0) -> np.ndarray:
  """Returns tiles of blobs whose colour, size and contrast differ by tile."""
  rng = np.random.default_rng(seed)
  tiles = []
  for _ in range(count):
    coarse = rng.normal(size=(rng.choice([4, 8, 16]),) * 2 + (3,))
    fine = np.kron(coarse, np.ones((side // len(coarse),) * 2 + (1,)))
    tiles.append(rng.uniform(0.3, 1.5) * fine + rng.normal(size=3))
  return np.asarray(tiles, np.float32)


@pytest.fixture(scope='module')
def tiles():
  return make_tiles(48)


@pytest.fixture(scope='module')
def variables(tiles):
  return encoders.random_trunk(tiles, seed=0)


@pytest.fixture(scope='module')
def encode(variables):
  return encoders.pmap_encode(variables, precision='float32')


def test_features_of_a_random_trunk_are_of_order_one_and_spread(encode):
  got = encode(make_tiles(48, seed=1))
  assert got.shape == (48, 1024)
  assert got.dtype == np.float32
  assert 0.3 < got.mean() < 3
  spread = got.std(0)
  assert spread.min() > 0.01  # No feature is dead.
  assert 0.1 < spread.mean() < 3


def test_calibration_is_consistent_through_the_layers(tiles, variables, encode):
  # The stored statistics must give what the batch's own statistics gave.
  own, _ = jax.jit(
    lambda v, x: resnet.ResNet50Trunk().apply(
      v, x, train=True, mutable=['batch_stats']
    )
  )(variables, tiles)
  whole = encode(tiles)
  np.testing.assert_allclose(whole, own, atol=2e-3)
  # Rows do not depend on their batch.
  np.testing.assert_allclose(encode(tiles[7:12]), whole[7:12], atol=1e-5)


def test_bfloat16_is_close_to_float32(tiles, variables, encode):
  want = encode(tiles)
  got = encoders.pmap_encode(variables, precision='bfloat16')(tiles)
  assert got.dtype == np.float32
  assert not np.array_equal(got, want)
  error = np.linalg.norm(got - want) / np.linalg.norm(want - want.mean(0))
  assert error < 0.2


def sample() -> np.ndarray:
  return make_tiles(8, side=32)


def never():
  raise AssertionError('calibrated although it need not be')


@pytest.fixture
def file(monkeypatch, tmp_path):
  """A pretrained file, as it were: a trunk of three blocks, not thirteen."""
  monkeypatch.setattr(resnet, 'STAGES', (1, 1, 1))
  path = tmp_path / 'trunk.safetensors'
  shapes = jax.eval_shape(
    resnet.ResNet50Trunk().init, jax.random.key(0), sample()
  )
  variables = jax.tree.map(
    lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), shapes
  )
  state = port.to_torch('resnet50_trunk', variables)
  safetensors.numpy.save_file(state, path)
  return path


def make(weights, tmp_path, draw=never, **options):
  return encoders.make_encoder(
    weights,
    features_dir=tmp_path / 'features',
    cache_dir=tmp_path / 'cache',
    sample=draw,
    **options,
  )


def test_a_file_of_weights_names_the_encoder(file, tmp_path):
  digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
  encoder = make(str(file), tmp_path)
  assert encoder.name == f'resnet50-conv4-{digest}'
  assert 'RANDOM' not in encoder.note
  assert encoder.encode(sample()).shape == (8, 1024)
  assert not (tmp_path / 'features').exists()  # Nothing is made up beside it.
  state = port.load_state_dict(file)
  del state['layer3.0.bn1.weight']
  partial = tmp_path / 'partial.safetensors'
  safetensors.numpy.save_file(state, partial)
  with pytest.raises(port.PortError) as error:
    make(str(partial), tmp_path)
  assert str(error.value).splitlines() == [
    f"{partial} does not fit torchvision's ResNet-50:",
    '1 missing: layer3.0.bn1.weight',
  ]


def test_a_random_trunk_is_made_once(file, tmp_path):
  first = make(None, tmp_path, sample)
  assert first.name.startswith('resnet50-conv4-random-seed0-')
  assert 'RANDOM' in first.note and 'NOT pretrained' in first.note
  again = make(None, tmp_path)
  assert again.name == first.name
  # Another cohort takes the file as its weights; a seed makes the same.
  path = tmp_path / 'features' / encoders.RANDOM_FILE
  other = make(str(path), tmp_path / 'other', precision='bfloat16')
  assert (other.name, other.note) == (first.name, first.note)
  assert make(None, tmp_path / 'third', sample).name == first.name
  assert make(None, tmp_path / 'last', sample, seed=1).name != first.name
  assert [p.name for p in path.parent.iterdir()] == [encoders.RANDOM_FILE]
  with pytest.raises(port.PortError, match='seed 0, not 1'):
    make(None, tmp_path, seed=1)


def test_imagenet_is_taken_from_where_it_was_put(file, tmp_path, monkeypatch):
  requests = []

  def offline(repo, name):
    requests.append((repo, name))
    raise huggingface_hub.errors.LocalEntryNotFoundError('no network')

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', offline)
  place = tmp_path / 'cache' / 'weights' / 'resnet50.tv_in1k.safetensors'
  with pytest.raises(port.PortError) as error:
    make('imagenet', tmp_path)
  assert requests == [('timm/resnet50.tv_in1k', 'model.safetensors')]
  message = str(error.value)
  assert 'model.safetensors of timm/resnet50.tv_in1k' in message
  assert '\n' not in message and str(place) in message
  place.parent.mkdir(parents=True)
  place.write_bytes(file.read_bytes())
  assert make('imagenet', tmp_path).name == make(str(file), tmp_path).name


def test_a_function_of_ones_own_is_named_by_its_module(tmp_path):
  encoder = make('numpy:square', tmp_path)
  assert encoder.attributes() == {
    'encoder': 'numpy:square',
    'precision': 'float32',
  }
  assert encoder.encode is np.square
  assert not (tmp_path / 'features').exists()
  for reference in ('numpy:absent', 'no_such_module:encode'):
    with pytest.raises(port.PortError, match='cannot be imported'):
      make(reference, tmp_path)
  with pytest.raises(port.PortError, match='applies only to ResNet-50'):
    make('numpy:square', tmp_path, precision='bfloat16')
