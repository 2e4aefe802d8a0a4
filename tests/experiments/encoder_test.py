"""Random weights are calibrated; encoding does not depend on the batch."""

import jax
import numpy as np
import pytest

from experiments.encoding import encoder
from kmil_jax.models.resnet import ResNet50Trunk


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
  return encoder.random_trunk(tiles, seed=0)


@pytest.fixture(scope='module')
def encode(variables):
  return encoder.pmap_encode(variables, precision='float32')


def test_features_of_a_random_trunk_are_of_order_one_and_spread(encode):
  got = encode(make_tiles(48, seed=1))
  assert got.shape == (48, 1024)
  assert got.dtype == np.float32
  assert np.isfinite(got).all()
  assert 0.3 < got.mean() < 3
  spread = got.std(0)
  assert spread.min() > 0.01  # No feature is dead.
  assert 0.1 < spread.mean() < 3


def test_calibration_is_consistent_through_the_layers(tiles, variables, encode):
  # The stored statistics must give what the batch's own statistics gave.
  own, _ = jax.jit(
    lambda v, x: ResNet50Trunk().apply(
      v, x, train=True, mutable=['batch_stats']
    )
  )(variables, tiles)
  np.testing.assert_allclose(encode(tiles), own, atol=2e-3)


def test_random_trunk_is_a_function_of_seed_and_tiles(tiles, variables):
  again = encoder.random_trunk(tiles, seed=0)
  jax.tree.map(np.testing.assert_array_equal, variables, again)
  other = encoder.random_trunk(tiles, seed=1)
  kernel = lambda v: v['params']['conv1']['kernel']
  assert np.abs(kernel(variables) - kernel(other)).max() > 0.01


def test_rows_do_not_depend_on_their_batch(tiles, encode):
  whole = encode(tiles)
  np.testing.assert_allclose(encode(tiles[7:12]), whole[7:12], atol=1e-5)


def test_bfloat16_is_close_to_float32(tiles, variables, encode):
  want = encode(tiles)
  got = encoder.pmap_encode(variables, precision='bfloat16')(tiles)
  assert got.dtype == np.float32
  assert not np.array_equal(got, want)
  error = np.linalg.norm(got - want) / np.linalg.norm(want - want.mean(0))
  assert error < 0.2
