"""Encoders: random ones are calibrated; which weights one gets, its name."""

import functools
import hashlib
import pathlib

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from data import weights
from experiments.encoding import encoder as encoders
from experiments.encoding.encoder import EncoderError
from kmil_jax import parallel, port
from kmil_jax.models import cpu, resnet, vit


def make_tiles(count: int, side: int = 64, seed: int = 0) -> np.ndarray:
  """Returns tiles of blobs whose colour, size and contrast differ by tile."""
  rng = np.random.default_rng(seed)
  tiles = []
  for _ in range(count):
    coarse = rng.normal(size=(rng.choice([4, 8, 16]),) * 2 + (3,))
    fine = np.kron(coarse, np.ones((side // len(coarse),) * 2 + (1,)))
    tiles.append(rng.uniform(0.3, 1.5) * fine + rng.normal(size=3))
  return np.asarray(tiles, np.float32)


def encoding(variables, precision='float32'):
  """The trunk on tiles that are normalised already."""
  trunk = resnet.ResNet50Trunk(dtype=jnp.dtype(precision))
  run = parallel.pmap_local(
    lambda v, x: cpu.map_tiles(functools.partial(trunk.apply, v), x)
  )
  return functools.partial(run, parallel.replicate(variables))


@pytest.fixture(scope='module')
def tiles():
  return make_tiles(48)


@pytest.fixture(scope='module')
def variables(tiles):
  trunk = resnet.ResNet50Trunk(momentum=0.0)
  return encoders.random_network(trunk, tiles, seed=0)


@pytest.fixture(scope='module')
def encode(variables):
  return encoding(variables)


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
  got = encoding(variables, 'bfloat16')(tiles)
  assert got.dtype == np.float32
  assert not np.array_equal(got, want)
  error = np.linalg.norm(got - want) / np.linalg.norm(want - want.mean(0))
  assert error < 0.2


def sample() -> np.ndarray:
  return np.clip(60 * make_tiles(8, side=32) + 120, 0, 255).astype(np.uint8)


def never():
  raise AssertionError('calibrated although it need not be')


@pytest.fixture
def file(monkeypatch, tmp_path):
  """A pretrained file, as it were: a trunk of three blocks, not thirteen."""
  monkeypatch.setattr(resnet, 'STAGES', (1, 1, 1))
  path = tmp_path / 'trunk.safetensors'
  shapes = jax.eval_shape(
    resnet.ResNet50Trunk().init, jax.random.key(0), make_tiles(1, side=32)
  )
  variables = jax.tree.map(
    lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), shapes
  )
  state = port.to_torch('resnet50_trunk', variables)
  safetensors.numpy.save_file(state, path)
  return path


def make(weights, tmp_path, draw=never, encoder=None, **options):
  return encoders.make_encoder(
    encoder,
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
  mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  assert encoder.normalisation == f'(pixels - {mean}) / {deviation}'
  assert encoder.encode(sample()).shape == (8, 1024)
  assert not (tmp_path / 'features').exists()  # Nothing is made up beside it.
  state = weights.read(file)
  del state['layer3.0.bn1.weight']
  partial = tmp_path / 'partial.safetensors'
  safetensors.numpy.save_file(state, partial)
  with pytest.raises(port.PortError) as error:
    make(str(partial), tmp_path)
  assert str(error.value).splitlines() == [
    f'{partial} does not fit resnet50. Give the --encoder it is of.',
    '1 missing: layer3.0.bn1.weight',
  ]


def test_a_random_trunk_is_made_once(file, tmp_path):
  draw = functools.partial(make, None, encoder='random')
  first = draw(tmp_path, sample)
  assert first.name.startswith('resnet50-conv4-random-seed0-')
  assert 'RANDOM' in first.note and 'NOT pretrained' in first.note
  again = draw(tmp_path)
  assert again.name == first.name
  # Another cohort takes the file as its weights; a seed makes the same.
  path = tmp_path / 'features' / encoders.RANDOM_FILE
  other = make(str(path), tmp_path / 'other', precision='bfloat16')
  assert (other.name, other.note) == (first.name, first.note)
  assert draw(tmp_path / 'third', sample).name == first.name
  assert draw(tmp_path / 'last', sample, seed=1).name != first.name
  assert [p.name for p in path.parent.iterdir()] == [encoders.RANDOM_FILE]
  with pytest.raises(EncoderError, match='seed 0, not 1'):
    draw(tmp_path, seed=1)
  path.write_bytes(b'cut')
  with pytest.raises(EncoderError, match=r'safetensors is damaged.*Copy'):
    draw(tmp_path)


def test_the_default_needs_nothing_and_sees(tmp_path):
  encoder = make(None, tmp_path)
  assert encoder.name == 'efficientnet_lite0-57934424'
  features = encoder.encode(sample())
  assert features.shape == (8, 1280) and features.dtype == np.float32
  assert features.std(0).mean() > 0.01
  assert encoders.named(encoder.name) == 'efficientnet_lite0'
  assert not (tmp_path / 'features').exists()


def test_a_damaged_default_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(encoders, '_LITE0_SHA256', 'of another file')
  with pytest.raises(EncoderError, match=r'is damaged\. Install '):
    make(None, tmp_path)


@pytest.mark.parametrize(
  ('encoder', 'weights'), [('random', 'a.pth'), ('uni', 'numpy:square')]
)
def test_weights_that_do_not_apply_are_refused(tmp_path, encoder, weights):
  with pytest.raises(EncoderError, match=f'{weights} does not apply to'):
    make(weights, tmp_path, encoder=encoder)


def test_presets_ask_for_their_weights(tmp_path):
  with pytest.raises(EncoderError) as error:
    make(None, tmp_path, encoder='uni2_h')
  assert str(error.value) == (
    '--encoder=uni2_h requires --weights: download them from'
    ' https://huggingface.co/MahmoodLab/UNI2-h (licence: CC BY-NC-ND 4.0), and'
    ' give the file.'
  )


def test_a_preset_resizes_and_normalises_tiles_and_names_its_file(
  tmp_path, monkeypatch
):
  """The features are those of tiles that were resized and normalised before."""
  small = {'patch': 8, 'width': 16, 'depth': 1, 'heads': 2, 'hidden': 32}
  preset = vit.Preset(
    small | {'grid': 2}, 16, (0.7, 0.6, 0.7), (0.2, 0.3, 0.2), '', '', ''
  )
  presets = {'phikon': preset}
  monkeypatch.setattr(vit, 'presets', lambda: presets)
  network = vit.ViT(**preset.network)
  variables = network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  path = tmp_path / 'own.safetensors'
  state = port.to_torch('phikon', variables)
  safetensors.numpy.save_file(state, path)
  encoder = make(str(path), tmp_path, encoder='phikon')
  digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
  assert encoder.name == f'phikon-{digest}'
  tiles = np.kron(sample()[:, :16, :16], np.ones((1, 2, 2, 1))).astype('u1')
  wide = tiles[:, ::2, ::2] / 255
  near = jax.image.resize(tiles / 255, (8, 16, 16, 3), 'linear')
  want = network.apply(
    variables, (near - np.array(preset.mean)) / np.array(preset.std)
  )
  np.testing.assert_allclose(encoder.encode(tiles), want, atol=1e-4)
  assert np.abs(near - wide).max() < 0.3  # It was made smaller, not cut.


def test_imagenet_is_taken_from_where_it_was_put(file, tmp_path, monkeypatch):
  requests = []

  def offline(repo, name):
    requests.append((repo, name))
    raise huggingface_hub.errors.LocalEntryNotFoundError('no network')

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', offline)
  place = tmp_path / 'cache' / 'weights' / 'resnet50.tv_in1k.safetensors'
  with pytest.raises(EncoderError) as error:
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
  # It is given tiles that are normalised as ImageNet's are.
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  want = ((sample() / 255 - mean) / std) ** 2
  np.testing.assert_allclose(encoder.encode(sample()), want, rtol=1e-4)
  assert not (tmp_path / 'features').exists()
  with pytest.raises(EncoderError, match='of your own is module:function'):
    make('numpy.square', tmp_path)
  for reference in ('numpy:absent', 'no_such_module:encode'):
    with pytest.raises(EncoderError, match='cannot be imported'):
      make(reference, tmp_path)
  with pytest.raises(EncoderError, match='does not apply to numpy:square'):
    make('numpy:square', tmp_path, precision='bfloat16')


def test_the_page_of_encoders_is_that_of_the_presets():
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'encoders.md'
  text = page.read_text(encoding='utf-8')
  assert encoders.network('virchow2').width() == 2560
  for name, preset in vit.presets().items():
    width = preset.network['width']
    width *= 1 + (preset.network.get('pool') == 'class_mean')
    assert (
      f'| `{name}` | {width:,} | {preset.size} | {preset.parameters} |'
      f' {preset.licence} | [' in text
    )
    assert preset.source in text
