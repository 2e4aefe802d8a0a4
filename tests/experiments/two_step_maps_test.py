"""Windows are seen on the device as tiles were in training."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import labelled_tiles, pipeline
from experiments import cutter, two_step_timing
from kmil_jax import heatmap
from kmil_jax.types import PatchRecipe, TilePrediction


class Linear(nn.Module):
  """A weighted sum of all values of a tile."""

  @nn.compact
  def __call__(self, x, *, train=False):
    flat = x.reshape(len(x), -1)
    return TilePrediction(logits=nn.Dense(2)(flat), features=flat)


@pytest.mark.parametrize('size', [None, 24, 64])
def test_windows_are_prepared_as_training_tiles(size):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (6, 40, 40, 3), np.uint8)
  tiles = labelled_tiles.from_arrays(
    images, np.zeros(6), ['p'] * 6, ('non-tumour', 'tumour')
  )
  recipe = PatchRecipe(input_size=size, mean=(0.7, 0.5, 0.6))
  [batch] = pipeline.tile_batches(
    tiles, batch=6, mean=recipe.mean, std=recipe.std, input_size=size
  )
  model = Linear()
  variables = model.init(jax.random.key(0), jnp.asarray(batch['image']))
  logits = model.apply(variables, batch['image']).logits
  want = jax.nn.softmax(logits)[:, 1]
  assert np.ptp(want) > 0.1
  got = cutter.classifier(model, recipe)(variables, images)
  np.testing.assert_allclose(got, want, atol=2e-4)


def test_the_map_that_is_timed_is_that_of_the_loop():
  rng = np.random.default_rng(1)
  image = rng.integers(0, 256, (90, 70, 3), np.uint8)

  def classify(variables, windows):
    mean = windows.astype(jnp.float32).mean((1, 2)) @ variables
    return jax.nn.sigmoid(mean - 127.5 * variables.sum())

  networks = [
    cutter.Cutter(classify, w, window=40, batch=8)
    for w in np.float32([[1, 2, 3], [3, -2, 1]])
  ]
  found = two_step_timing.compare(image, networks)
  assert found['difference'] < 1e-6
  assert found['map'] > 0 and found['naive'] > 0 and found['ratio'] > 0
  single = [
    lambda w, n=n: float(n.classify(n.variables, w[None])[0]) for n in networks
  ]
  votes = two_step_timing.naive(image, single)
  said = cutter.scan(cutter.Image(image), *networks)
  np.testing.assert_allclose(
    heatmap.votes(said.positive(), (90, 70)), votes, atol=1e-6
  )
  assert 0 < votes.max() <= 1 and votes.min() == 0
