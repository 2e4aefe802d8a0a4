"""Patch classifiers: counts, shapes, where they are cut, types, devices."""

import functools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.models import CLASSIFIERS
from kmil_jax.models.batch_norm import BatchNorm
from kmil_jax.models.resnet import BASIC, ResNet

FLOAT32 = np.dtype('float32')
every_model = pytest.mark.parametrize('name', sorted(CLASSIFIERS))
WIDTH = {'googlenet': 1024, 'googlenet_aux': 1024, 'mobilenet_v2': 1280,
         'node_cnn': 128, 'resnet18': 512, 'resnet50': 2048,
         'resnet101': 2048}  # fmt: skip


def shapes(model, tiles):
  return jax.eval_shape(model.init, jax.random.key(0), tiles)


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  'name,classes,channels,count',
  [
    ('resnet18', 1000, 3, 11_689_512),
    ('resnet50', 1000, 3, 25_557_032),
    ('resnet101', 1000, 3, 44_549_160),
    ('mobilenet_v2', 1000, 3, 3_504_872),
    ('googlenet', 1000, 3, 6_624_904),
    ('googlenet_aux', 1000, 3, 13_004_888),
    ('node_cnn', 1, 1, 12_937_985),
    ('node_cnn', 1, 3, 12_938_561),
  ],
)
def test_parameters_are_as_many_as_published(name, classes, channels, count):
  model = CLASSIFIERS[name](num_classes=classes)
  tiles = jnp.zeros((1, 224, 224, channels))
  assert size(shapes(model, tiles)['params']) == count


@every_model
def test_float32_comes_out_whatever_goes_on_inside(name):
  model = CLASSIFIERS[name](num_classes=1, dtype=jnp.bfloat16)
  tiles = jnp.zeros((2, 50, 40, 1))
  variables = shapes(model, tiles)
  assert ('batch_stats' in variables) == (name != 'node_cnn')
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {FLOAT32}

  def train(variables, tiles):
    return model.apply(
      variables,
      tiles,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )

  got, mutated = jax.eval_shape(train, variables, tiles)
  assert (got.logits.shape, got.features.shape) == ((2, 1), (2, WIDTH[name]))
  assert len(got.aux_logits) == (2 if name == 'googlenet_aux' else 0)
  leaves = jax.tree.leaves((got, mutated))
  assert {leaf.dtype for leaf in leaves} == {FLOAT32}
  # Inside, it is bfloat16.
  maps = functools.partial(model.apply, method='feature_map')
  assert jax.eval_shape(maps, variables, tiles).dtype == jnp.bfloat16


@pytest.mark.parametrize('name', ['googlenet', 'mobilenet_v2', 'node_cnn'])
def test_head_of_the_feature_map_is_the_whole(name):
  model = CLASSIFIERS[name](num_classes=3)
  x = np.random.default_rng(0).normal(size=(2, 40, 40, 3)).astype(np.float32)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda leaf: rng.uniform(0, 0.1, leaf.shape).astype(np.float32),
    shapes(model, x),
  )

  @jax.jit
  def both(variables, x):
    m = model.apply(variables, x, method='feature_map')
    return model.apply(variables, x), m, model.apply(
      variables, m, method='head'
    )  # fmt: skip

  whole, m, cut = both(variables, x)
  np.testing.assert_allclose(cut.logits, whole.logits, rtol=1e-6)
  if name != 'node_cnn':
    np.testing.assert_allclose(whole.features, m.mean((1, 2)), rtol=1e-5)


def test_batch_norm_evaluates_as_flaxs_and_keeps_unbiased_variances():
  x = 3 + jax.random.normal(jax.random.key(0), (4, 3, 3, 5))
  variables = {
    'params': {'scale': jnp.arange(1.0, 6), 'bias': jnp.ones(5)},
    'batch_stats': {'mean': jnp.full(5, 2.5), 'var': jnp.full(5, 0.7)},
  }
  got = BatchNorm().apply(variables, x, use_running_average=True)
  want = nn.BatchNorm(use_running_average=True).apply(variables, x)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  y, mutated = BatchNorm(momentum=0.75).apply(
    variables, x, use_running_average=False, mutable=['batch_stats']
  )
  stats = mutated['batch_stats']
  rows = np.asarray(x, np.float64).reshape(-1, 5)
  np.testing.assert_allclose(
    stats['var'], 0.75 * 0.7 + 0.25 * rows.var(0, ddof=1), rtol=1e-5
  )
  np.testing.assert_allclose(
    stats['mean'], 0.75 * 2.5 + 0.25 * rows.mean(0), rtol=1e-5
  )
  normal = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
  np.testing.assert_allclose(
    np.reshape(y, (-1, 5)), normal * np.arange(1, 6) + 1, atol=1e-4
  )


def test_four_devices_train_as_one():
  model = ResNet(2, axis_name='tiles', stages=(1,), **BASIC)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(8, 32, 32, 3)).astype(np.float32)
  # Parts unlike each other: their own statistics would not do.
  x += np.arange(8, dtype=np.float32)[:, None, None, None]
  label = np.arange(8) % 2
  variables = jax.jit(model.init)(jax.random.key(0), x)

  def step(variables, x, label):
    def loss_fn(params):
      got, mutated = model.apply(
        {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
      )
      chosen = jnp.take_along_axis(
        jax.nn.log_softmax(got.logits), label[:, None], 1
      )
      return -chosen.mean(), mutated

    (loss, mutated), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      variables['params']
    )
    return lax.pmean((loss, grads), 'tiles'), mutated

  def on(devices):
    n = len(devices)
    mapped = jax.pmap(
      step, axis_name='tiles', in_axes=(None, 0, 0), devices=devices
    )
    out = mapped(
      variables, x.reshape(n, -1, *x.shape[1:]), label.reshape(n, -1)
    )
    return jax.device_get(out)

  one, four = on(jax.devices()[:1]), on(jax.devices()[:4])
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  for device in range(4):
    mine = jax.tree.map(lambda leaf: leaf[device], four)  # noqa: B023
    jax.tree.map(close, jax.tree.map(lambda leaf: leaf[0], one), mine)
