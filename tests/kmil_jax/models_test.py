"""Every bag model: no output, loss or gradient depends on padding."""

import functools

import chex
from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.models import SPECS

WIDTH, CLASSES, LABEL = 12, 3, 2
PERMUTATION_INVARIANT = ('abmil', 'dsmil', 'kmil')

every_model = pytest.mark.parametrize('name', sorted(SPECS))


def init(name, width=WIDTH, num_classes=CLASSES):
  model = SPECS[name].make(num_classes=num_classes)
  variables = model.init(
    jax.random.key(0), jnp.zeros((1, width)), jnp.ones(1, bool), train=False
  )
  return model, variables['params']


@functools.cache
def evaluator(name):
  model, params = init(name)

  def loss_fn(params, x, mask):
    prediction = model.apply({'params': params}, x, mask, train=False)
    return SPECS[name].loss(prediction, mask, jnp.int32(LABEL)), prediction

  grad = jax.jit(jax.value_and_grad(loss_fn, (0, 1), has_aux=True))
  return lambda x, mask: grad(params, x, mask)


def evaluate(name, x, mask):
  """Prediction, loss and the gradients of parameters and input."""
  (loss, prediction), grads = evaluator(name)(x, mask)
  return jax.device_get((prediction, loss, *grads))


def bag(n, seed=0, shift=0.0):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(n, WIDTH)) + shift).astype(np.float32)


def assert_same(padded, plain, n):
  prediction, loss, grad, grad_x = padded
  want, want_loss, want_grad, want_grad_x = plain
  close = lambda a, b: chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-6)
  close((prediction.logits, loss, grad), (want.logits, want_loss, want_grad))
  close(prediction.attention[:n], want.attention)
  close(prediction.instance_logits[:n], want.instance_logits)
  close(grad_x[:n], want_grad_x)
  np.testing.assert_array_equal(prediction.attention[n:], 0)
  np.testing.assert_array_equal(grad_x[n:], 0)


@every_model
@given(
  n=st.integers(1, 6),
  length=st.sampled_from([8, 12]),
  scale=st.sampled_from([0.0, 1.0, 100.0]),
  seed=st.integers(0, 100),
)
def test_padding_never_matters(name, n, length, scale, seed):
  x = bag(n, seed)
  garbage = scale * bag(length - n, seed + 1)
  mask = np.arange(length) < n
  padded = evaluate(name, np.concatenate([x, garbage]), mask)
  assert_same(padded, evaluate(name, x, np.ones(n, bool)), n)


@every_model
def test_padding_of_a_clearly_negative_bag_never_wins(name):
  """Zero rows score above every instance here; they must not be critical."""
  model, params = init(name)
  # An instance stream that dislikes every real instance in every class.
  x = bag(5, shift=3.0)
  if 'instance' in params:
    params['instance']['weight'] = -jnp.ones_like(params['instance']['weight'])
  apply = jax.jit(
    lambda x, mask: model.apply({'params': params}, x, mask, train=False)
  )
  plain = apply(x, np.ones(5, bool))
  padded = apply(np.pad(x, ((0, 3), (0, 0))), np.arange(8) < 5)
  if 'instance' in params:
    assert plain.instance_logits.max() < padded.instance_logits[5:].min()
  chex.assert_trees_all_close(padded.logits, plain.logits, rtol=1e-5)


@pytest.mark.parametrize('name', PERMUTATION_INVARIANT)
@given(n=st.sampled_from([2, 5, 6]), seed=st.integers(0, 100))
def test_the_order_of_instances_never_matters(name, n, seed):
  x = bag(n, seed)
  order = np.random.default_rng(seed).permutation(n)
  mask = np.ones(n, bool)
  shuffled, loss, grad, grad_x = evaluate(name, x[order], mask)
  plain, want_loss, want_grad, want_grad_x = evaluate(name, x, mask)
  chex.assert_trees_all_close(
    (shuffled.logits, shuffled.attention, loss, grad, grad_x),
    (
      plain.logits,
      plain.attention[order],
      want_loss,
      want_grad,
      want_grad_x[order],
    ),
    rtol=1e-4,
    atol=1e-6,
  )


@every_model
@pytest.mark.parametrize('lengths', [(1,), (3, 8, 1, 5), (8, 8)])
def test_a_batch_of_bags_is_each_bag_alone(name, lengths):
  model, params = init(name)
  size = 8
  x = np.stack([np.pad(bag(n, n), ((0, size - n), (0, 0))) for n in lengths])
  mask = np.arange(size) < np.array(lengths)[:, None]
  apply = lambda x, mask: model.apply({'params': params}, x, mask, train=False)
  together = jax.vmap(apply)(x, mask)
  for i, n in enumerate(lengths):
    alone = apply(x[i, :n], mask[i, :n])
    chex.assert_trees_all_close(
      together.logits[i], alone.logits, rtol=1e-5, atol=1e-6
    )


@every_model
def test_one_instance_is_its_own_bag(name):
  prediction, loss, *grads = evaluate(name, bag(1), np.ones(1, bool))
  np.testing.assert_allclose(prediction.attention, 1)
  chex.assert_tree_all_finite((prediction, loss, grads))


@every_model
def test_attention_sums_to_one_over_real_instances(name):
  prediction, *_ = evaluate(name, bag(7), np.arange(7) < 4)
  np.testing.assert_allclose(prediction.attention.sum(0), 1, rtol=1e-6)


@every_model
def test_evaluation_is_deterministic_and_training_may_not_be(name):
  model, params = init(name)
  x, mask = bag(6), np.ones(6, bool)
  once, again = (
    model.apply({'params': params}, x, mask, train=False) for _ in range(2)
  )
  chex.assert_trees_all_equal(once, again)
  drops = [
    model.apply(
      {'params': params},
      x,
      mask,
      train=True,
      rngs={'dropout': jax.random.key(seed)},
    ).logits
    for seed in range(2)
  ]
  assert np.array_equal(*drops) == (name != 'abmil')


@pytest.mark.parametrize(
  'name,count', [('abmil', 530_182), ('dsmil', 178_442), ('kmil', 178_442)]
)
def test_parameters_are_as_many_as_published(name, count):
  _, params = init(name, width=1024, num_classes=5)
  assert sum(x.size for x in jax.tree.leaves(params)) == count


@every_model
def test_bfloat16_stays_close_and_returns_float32(name):
  x, mask = bag(20), np.ones(20, bool)
  model, params = init(name)
  low = SPECS[name].make(num_classes=CLASSES, dtype=jnp.bfloat16)
  want = model.apply({'params': params}, x, mask, train=False)
  got = low.apply({'params': params}, x.astype(jnp.bfloat16), mask, train=False)
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype('float32')}
  np.testing.assert_allclose(got.logits, want.logits, atol=0.05)
