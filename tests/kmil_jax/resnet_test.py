"""The ResNet-50 trunk by itself; parity with torch is in port_test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.models.resnet import ResNet50Trunk


@pytest.fixture(scope='module')
def variables():
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.uniform(0, 0.1, leaf.shape).astype(leaf.dtype),
    jax.eval_shape(
      ResNet50Trunk().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    ),
  )


def size(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameters_are_those_of_the_papers(variables):
  assert size(variables['params']) == 8_543_296


def test_every_norm_has_a_mean_and_a_variance_per_channel(variables):
  # Each pair mirrors a scale and a bias, so all but the kernels.
  kernels = [
    leaf for leaf in jax.tree.leaves(variables['params']) if leaf.ndim == 4
  ]
  others = size(variables['params']) - size(kernels)
  assert size(variables['batch_stats']) == others
  assert len(kernels) == 1 + 3 * (3 + 4 + 6) + 3


@pytest.mark.parametrize('side', [32, 48, 65])
def test_any_tile_size_gives_1024_features(variables, side):
  shape = jax.eval_shape(
    ResNet50Trunk().apply, variables, jnp.zeros((2, side, side, 3))
  )
  assert (shape.shape, shape.dtype) == ((2, 1024), jnp.float32)


def test_images_with_a_fourth_channel_are_refused(variables):
  with pytest.raises(AssertionError):
    ResNet50Trunk().apply(variables, jnp.zeros((2, 32, 32, 4)))


def test_training_moves_the_statistics_by_a_tenth(variables):
  tiles = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))

  def stem_mean(momentum):
    _, mutated = ResNet50Trunk(momentum=momentum).apply(
      variables, tiles, train=True, mutable=['batch_stats']
    )
    return mutated['batch_stats']['bn1']['mean']

  batch, moved = jax.jit(lambda: (stem_mean(0.0), stem_mean(0.9)))()
  before = variables['batch_stats']['bn1']['mean']
  np.testing.assert_allclose(moved, 0.9 * before + 0.1 * batch, rtol=1e-4)
