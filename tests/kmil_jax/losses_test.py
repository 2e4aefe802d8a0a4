"""Losses by hand; of bags nothing from padding, of maps always finite."""

import functools
import itertools

from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import losses
from kmil_jax.losses import PER
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


def test_losses_of_bags_by_hand():
  mask, label = jnp.array([True, True, False]), jnp.int32(0)
  # The highest of the seen instances, class by class: [2, 1]; 5 is unseen.
  instances = [[2.0, -1.0], [0.0, 1.0], [5.0, 5.0]]
  even = prediction([0.0, 0.0], instances)
  assert losses.cross_entropy(even, mask, label) == pytest.approx(np.log(2))
  sure = prediction([np.log(3.0), 0.0], instances)
  assert losses.cross_entropy(sure, mask, label) == pytest.approx(np.log(4 / 3))
  far = prediction([0.0, 1000.0], instances)
  assert losses.cross_entropy(far, mask, label) == pytest.approx(1000)
  want = 0.5 * np.log(2) + 0.5 * np.log(1 + np.exp(-1))
  got = losses.dual_stream(even, mask, label)
  assert got == pytest.approx(want, rel=1e-6)


def entropy(logits, label):
  logits = np.asarray(logits, np.float64)
  return np.log(np.exp(logits - logits[label]).sum())


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


# Of reverse distillation.
focal = jax.jit(losses.focal, static_argnames='per')
cosine = jax.jit(losses.cosine)
both = pytest.mark.parametrize('per', PER)
SHAPES = ((4, 4, 4, 6), (4, 2, 2, 5), (4, 1, 2, 3))
LABEL = np.array([1, 0, 0, 1])


def rd(f, g, per):
  """Reverse distillation's: that of alpha 0."""
  return focal(f, g, np.ones(len(f[0]), int), 0.0, 2.0, per=per)


def maps(seed, shapes=SHAPES):
  rng = np.random.default_rng(seed)
  return [np.maximum(rng.normal(size=s), 0).astype('f4') for s in shapes]


def at_angle(cos):
  """Two maps whose vectors have a given cosine, however they are flattened."""
  f, g = np.zeros((2, 4, 3, 3, 2), np.float32)
  f[..., 0], g[..., 0], g[..., 1] = 1, cos, (1 - cos**2) ** 0.5
  return f, g


@both
def test_focal_at_one_half_by_hand(per):
  f, g = at_angle(0.5)
  got = focal([f, f, f], [g, g, g], LABEL, 0.1, 2.0, per=per)
  normal, tumour = (3 * a * 0.25 * np.log(2) for a in (0.1, 0.9))
  np.testing.assert_allclose(got, [normal, tumour, tumour, normal], rtol=1e-5)
  # And elsewhere.
  f, g = at_angle(0.8)
  got = focal([f, f, f], [g, g, g], LABEL, 0.3, 1.5, per=per)
  normal = -3 * 0.3 * 0.2**1.5 * np.log(0.8)
  tumour = -3 * 0.7 * 0.8**1.5 * np.log(0.2)
  np.testing.assert_allclose(got, [normal, tumour, tumour, normal], rtol=1e-5)


def test_whole_maps_and_locations_are_told_apart():
  # Two places, one large and alike, one small and orthogonal.
  f = np.array([[[[3.0, 0], [1, 0]]]], np.float32)
  g = np.array([[[[3.0, 0], [0, 1]]]], np.float32)
  np.testing.assert_allclose(rd([f], [g], per='location'), [0.5], rtol=1e-6)
  np.testing.assert_allclose(rd([f], [g], per='map'), [0.1], rtol=1e-5)


@both
def test_with_alpha_zero_no_label_counts(per):
  f, g = maps(0), maps(1)
  want = rd(f, g, per=per)
  got = focal(f, g, LABEL, 0.0, 2.0, per=per)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert not np.allclose(focal(f, g, LABEL, 0.01, 2.0, per=per), want)


def extremes():
  ones = np.ones((4, 2, 2, 3), np.float32)
  spiked = ones.copy()
  spiked[..., 0] = 1e20
  return {
    'zero': 0 * ones,
    'ones': ones,
    'opposite': -ones,
    'tiny': 1e-30 * ones,
    'denormal': 1e-42 * ones,
    'huge': 1e38 * ones,
    'spiked': spiked,
    'mixed': maps(3, [(4, 2, 2, 3)])[0],
  }


@functools.cache
def both_losses():
  def value(g, f, alpha, gamma):
    return sum(
      focal([f], [g], LABEL, alpha, gamma, per=per).sum()
      + rd([f], [g], per=per).sum()
      for per in PER
    )

  return jax.jit(jax.value_and_grad(value))


@pytest.mark.parametrize('name', sorted(extremes()))
def test_values_and_gradients_are_finite_whatever_the_maps(name):
  f = extremes()[name]
  for g in extremes().values():
    for alpha, gamma in itertools.product((0, 0.1, 1), (0, 0.5, 1, 2, 50)):
      value, gradient = both_losses()(g, f, float(alpha), float(gamma))
      assert np.isfinite(value)
      assert np.isfinite(gradient).all()


def test_similarity_is_of_directions_alone():
  f, g = maps(0)[0], maps(1)[0]
  want = cosine(f, g)
  for scale in (1e-4, 1e25):
    np.testing.assert_allclose(cosine(scale * f, g), want, atol=1e-5)
  np.testing.assert_array_equal(cosine(0 * f, g), np.zeros(want.shape))
  assert cosine(f.astype(jnp.bfloat16), g).dtype == np.float32
