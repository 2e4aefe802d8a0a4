"""DTFD-MIL: pseudo-bags, two tiers; its equations are in bag_parity_test."""

import functools

import chex
from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import losses
from kmil_jax.models import pooling
from kmil_jax.models.dtfd import DTFD, pseudo_bags

WIDTH, CLASSES, LABEL = 12, 3, 1


def bag(n, seed=0):
  return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)


@functools.cache
def params():
  init = functools.partial(DTFD(CLASSES).init, train=False)
  variables = jax.jit(init)(jax.random.key(0), bag(1), np.ones(1, bool))
  return jax.device_get(variables['params'])


@functools.cache
def program(**options):
  return jax.jit(functools.partial(DTFD(CLASSES, **options).apply, train=False))


def predict(x, params, **options):
  """What is said of a bag, in one program for all lengths below 20."""
  padded = np.pad(x, ((0, 20 - len(x)), (0, 0)), constant_values=9.0)
  mask = np.arange(20) < len(x)
  got = program(**options)({'params': params}, padded, mask)
  return got.replace(
    attention=got.attention[: len(x)],
    instance_logits=got.instance_logits[: len(x)],
  )


deal = jax.jit(pseudo_bags, static_argnums=2)


@given(
  n=st.integers(1, 16),
  count=st.sampled_from([1, 4, 5]),
  seed=st.integers(0, 2**31),
)
def test_pseudo_bags_are_nearly_equal_and_indifferent_to_padding(
  n, count, seed
):
  key = jax.random.key(seed)
  member, real = deal(key, np.arange(20) < n, count)
  want = [len(part) for part in np.array_split(np.arange(n), count)]
  np.testing.assert_array_equal(member.sum(0), want)
  np.testing.assert_array_equal(member.sum(1), np.arange(20) < n)
  np.testing.assert_array_equal(real, np.array(want) > 0)
  again, _ = deal(key, np.arange(16) < n, count)
  np.testing.assert_array_equal(member[:16], again)


def test_pseudo_bags_are_drawn_uniformly():
  keys = jax.random.split(jax.random.key(0), 4000)
  draw = lambda key: pseudo_bags(key, jnp.ones(6, bool), 3)[0]
  members = np.asarray(jax.jit(jax.vmap(draw))(keys))
  # Six standard deviations of a mean of 4,000 draws of probability 1/3.
  np.testing.assert_allclose(members.mean(0), 1 / 3, atol=0.045)
  together = (members[:, 0] & members[:, 1]).any(1).mean()
  np.testing.assert_allclose(together, 1 / 5, atol=0.04)


@pytest.mark.parametrize('distill', ['afs', 'maxmins'])
def test_each_tier_is_trained_by_its_own_loss(distill):
  model = DTFD(CLASSES, distill=distill)

  def terms(params):
    mask = jnp.ones(9, bool)
    prediction = model.apply({'params': params}, bag(9), mask, train=False)
    total = losses.two_tier(prediction, mask, jnp.int32(LABEL))
    second = losses.cross_entropy(prediction, mask, jnp.int32(LABEL))
    return jnp.stack([total - second, second])

  grads = jax.jit(jax.jacrev(terms))(params())
  size = {
    module: jax.tree.reduce(
      np.add, jax.tree.map(lambda g: np.abs(g).reshape(2, -1).sum(1), tree)
    )
    for module, tree in grads.items()
  }
  for module in ('reduce', 'attention', 'classifier'):
    assert size[module][0] > 0 and size[module][1] == 0, module
  assert size['tier2'][1] > 0
  np.testing.assert_allclose(size['tier2'][0], 0, atol=1e-5)


def test_the_loss_is_the_mean_over_pseudo_bags_that_are_not_empty():
  prediction = predict(
    bag(3), params(), total_instances=8, distill='afs', score='last'
  )
  np.testing.assert_array_equal(prediction.pseudo_mask, [1, 1, 1, 0])
  prob = lambda logits: jax.nn.softmax(logits)[..., LABEL]
  want = -np.log(prob(prediction.pseudo_logits)[:3]).mean()
  want -= np.log(prob(prediction.logits))
  got = losses.two_tier(prediction, np.ones(3, bool), jnp.int32(LABEL))
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
  'options,named',
  [
    (
      {'distill': 'maxmin'},
      "distill 'maxmin' .* afs, maxmins, maxs, mas",
    ),
    (
      {'score': 'true'},
      "score 'true' .* last, predicted",
    ),
    (
      {'pseudo_bags': 8, 'distill': 'maxs'},
      'total_instances is 4 and pseudo_bags 8',
    ),
    ({'pseudo_bags': 0}, 'pseudo_bags 0'),
  ],
)
def test_options_that_mean_nothing_are_refused(options, named):
  with pytest.raises(ValueError, match=named):
    predict(bag(2), params(), **options)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), k=st.sampled_from([1, 3, 9]))
def test_top_values_are_those_of_a_sort(seed, k):
  rng = np.random.default_rng(seed)
  values = rng.integers(-3, 3, size=(6, 2)).astype(np.float32)
  mask = rng.random((6, 2)) < 0.6
  index, present = jax.jit(pooling.masked_top, static_argnums=2)(
    values, mask, k
  )
  chex.assert_shape([index, present], (min(k, 6), 2))
  for column in range(2):
    real = np.flatnonzero(mask[:, column])
    order = real[np.argsort(-values[real, column], kind='stable')][:k]
    np.testing.assert_array_equal(present[:, column].sum(), len(order))
    np.testing.assert_array_equal(index[: len(order), column], order)
