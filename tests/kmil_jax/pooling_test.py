"""Masked pooling equals the same pooling of the real instances alone."""

from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.models import cpu, pooling

N, A = 8, 2
SCALES = (1.0, 30.0, 1e4)

softmax = jax.jit(pooling.masked_softmax)
highest = jax.jit(pooling.masked_max)
argmax = jax.jit(pooling.masked_argmax)
rank = jax.jit(pooling.masked_rank)
WEIGHT = np.arange(N * A, dtype=np.float32).reshape(N, A)
softmax_grad = jax.jit(
  jax.grad(lambda x, m: (pooling.masked_softmax(x, m) * WEIGHT).sum())
)
max_grad = jax.jit(jax.grad(lambda x, m: pooling.masked_max(x, m).sum()))


@st.composite
def bags(draw):
  """Values [N, A] with ties, and a mask with a real instance at least."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  mask = rng.permutation(np.arange(N) < draw(st.integers(1, N)))
  x = rng.normal(size=(N, A)) * draw(st.sampled_from(SCALES))
  x += draw(st.sampled_from([0.0, -1e4]))  # A clearly negative bag.
  if draw(st.booleans()):
    x = np.round(x)
  x[~mask] = rng.choice([0, 1e6, -1e6])
  return x.astype(np.float32), mask


@given(bag=bags())
def test_softmax(bag):
  x, mask = bag
  got = softmax(x, mask)
  real = x[mask].astype(np.float64)
  want = np.exp(real - real.max(0))
  np.testing.assert_allclose(got[mask], want / want.sum(0), atol=1e-6)
  np.testing.assert_array_equal(got[~mask], 0)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got[mask], softmax(x[mask], mask[mask]), atol=1e-6)
  grad = np.asarray(softmax_grad(x, mask))
  assert np.isfinite(grad).all()
  np.testing.assert_array_equal(grad[~mask], 0)


@given(bag=bags())
def test_max_and_argmax(bag):
  x, mask = bag
  np.testing.assert_array_equal(highest(x, mask), x[mask].max(0))
  best = np.asarray(argmax(x, mask))
  np.testing.assert_array_equal(best, np.flatnonzero(mask)[x[mask].argmax(0)])
  grad = np.asarray(max_grad(x, mask))
  assert np.isfinite(grad).all()
  np.testing.assert_array_equal(grad[~mask], 0)
  np.testing.assert_allclose(grad.sum(0), 1, rtol=1e-6)


@given(bag=bags())
def test_rank(bag):
  x, mask = bag
  got = np.asarray(rank(x[:, 0], mask))
  want = np.empty(mask.sum(), int)
  want[np.argsort(-x[mask, 0], kind='stable')] = np.arange(mask.sum())
  np.testing.assert_array_equal(got[mask], want)
  np.testing.assert_array_equal(np.sort(got), np.arange(N))


def test_half_precision_is_summed_in_single():
  # 4,000 equal scores: bfloat16 sums stall at 256.
  x = jnp.zeros((4000, 1), jnp.bfloat16)
  got = softmax(x, jnp.ones(4000, bool))
  np.testing.assert_allclose(got, 1 / 4000, rtol=1e-5)


def test_an_empty_bag_has_no_nan():
  x, mask = np.ones((N, A), np.float32), np.zeros(N, bool)
  np.testing.assert_array_equal(softmax(x, mask), 0)
  np.testing.assert_array_equal(softmax_grad(x, mask), 0)
  np.testing.assert_array_equal(highest(x, mask), -np.inf)


@pytest.mark.parametrize(
  'function',
  [pooling.masked_softmax, pooling.masked_max, pooling.masked_argmax],
)
def test_a_mask_of_another_length_is_refused(function):
  with pytest.raises(AssertionError):
    function(jnp.ones((N, A)), jnp.ones(1, bool))


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_weighted_sums_and_their_gradients_are_the_plain_products(platform):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  weights, x, out = draw(7, 3), draw(7, 5), draw(3, 5)
  with cpu.lowering_for(platform):
    value, pull = jax.vjp(pooling.weighted_sum, weights, x)
    grads = pull(out)
  want, pull_plain = jax.vjp(lambda w, x: w.T @ x, weights, x)
  np.testing.assert_allclose(value, want, rtol=1e-6)
  for got, plain in zip(grads, pull_plain(out), strict=True):
    np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-6)
