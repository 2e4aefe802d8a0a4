"""Losses of one bag: hand values, and nothing from padding."""

from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import losses
from kmil_jax.types import Prediction

N, C = 8, 3
LOSSES = {
  'cross_entropy': jax.jit(jax.value_and_grad(losses.cross_entropy)),
  'dual': jax.jit(jax.value_and_grad(losses.dual_stream)),
}


def prediction(logits, instance_logits):
  return Prediction(
    logits=jnp.asarray(logits, jnp.float32),
    attention=jnp.zeros((len(instance_logits), 1)),
    instance_logits=jnp.asarray(instance_logits, jnp.float32),
  )


def entropy(logits, label):
  logits = np.asarray(logits, np.float64)
  return np.log(np.exp(logits - logits[label]).sum())


def test_cross_entropy_by_hand():
  mask, label = jnp.ones(1, bool), jnp.int32(1)
  even = prediction([0.0, 0.0], [[9.0, -9.0]])
  assert losses.cross_entropy(even, mask, label) == pytest.approx(np.log(2))
  sure = prediction([0.0, np.log(3.0)], [[9.0, -9.0]])
  assert losses.cross_entropy(sure, mask, label) == pytest.approx(np.log(4 / 3))
  far = prediction([1000.0, 0.0], [[0.0, 0.0]])
  assert losses.cross_entropy(far, mask, label) == pytest.approx(1000)


def test_dual_stream_by_hand():
  # The highest of the seen instances, class by class: [2, 1]; 5 is unseen.
  instances = [[2.0, -1.0], [0.0, 1.0], [5.0, 5.0]]
  both = prediction([0.0, 0.0], instances)
  mask = jnp.array([True, True, False])
  got = losses.dual_stream(both, mask, jnp.int32(0))
  want = 0.5 * np.log(2) + 0.5 * np.log(1 + np.exp(-1))
  assert got == pytest.approx(want, rel=1e-6)


@given(
  seed=st.integers(0, 2**32 - 1),
  n=st.integers(1, N),
  label=st.integers(0, C - 1),
  shift=st.sampled_from([0.0, -50.0, 50.0]),
)
def test_masked_is_compressed_and_padding_has_no_gradient(
  seed, n, label, shift
):
  rng = np.random.default_rng(seed)
  mask = rng.permutation(np.arange(N) < n)
  logits = rng.normal(size=C) * 3
  instances = rng.normal(size=(N, C)) * 3 + shift
  instances[~mask] = rng.choice([0, 1e4, -1e4])
  want = {
    'cross_entropy': entropy(logits, label),
    'dual': 0.5 * entropy(logits, label)
    + 0.5 * entropy(instances[mask].max(0), label),
  }
  for name, value_and_grad in LOSSES.items():
    got, grad = value_and_grad(prediction(logits, instances), mask, label)
    np.testing.assert_allclose(got, want[name], rtol=2e-5, atol=1e-5)
    assert np.isfinite(grad.logits).all() and np.any(grad.logits)
    assert np.isfinite(grad.instance_logits).all()
    np.testing.assert_array_equal(grad.instance_logits[~mask], 0)
    assert np.any(grad.instance_logits) == (name == 'dual')


def test_a_label_of_the_wrong_rank_is_refused():
  p = prediction([0.0, 0.0], [[0.0, 0.0]])
  with pytest.raises(AssertionError):
    losses.cross_entropy(p, jnp.ones(1, bool), jnp.zeros(1, int))
