"""KMIL's choice of instances: how many, which, and whatever the padding."""

from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.models import kmil
from kmil_jax.types import Prediction

N = 257

keys = jax.jit(kmil.key_instances, static_argnums=3)
scores_of = jax.jit(kmil.instance_scores, static_argnums=1)


@st.composite
def bags(draw):
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  n = draw(st.integers(1, N))
  scores = rng.random(N).astype(np.float32)
  if draw(st.booleans()):
    scores = np.round(scores, 1)  # Many ties.
  scores[n:] = rng.choice([-1, 0, 2])
  return scores, n, draw(st.integers(0, 999))


@given(bag=bags(), drop=st.sampled_from(kmil.DROPS))
def test_the_kept_are_the_best_and_padding_changes_nothing(bag, drop):
  scores, n, t = bag
  mask = np.arange(N) < n
  kept = np.asarray(keys(scores, mask, t, drop))
  assert not kept[n:].any()
  real, chosen = scores[:n], kept[:n]
  if not chosen.all():
    if drop == 'lowest':
      assert real[chosen].min() >= real[~chosen].max()
    else:
      assert real[chosen].max() <= real[~chosen].min()
  # Earlier ones first among equals, by a stable sort of the bag alone.
  order = np.argsort(-real if drop == 'lowest' else real, kind='stable')
  want = np.zeros(n, bool)
  want[order[: max(n * (1000 - t) // 1000, 1)]] = True
  np.testing.assert_array_equal(chosen, want)


def test_a_thousand_times_the_instances_may_be_more_than_int32():
  mask = np.ones(2_400_000, bool)
  kept = keys(mask.astype(np.float32), mask, 100, 'lowest')
  assert kept.sum() == 2_160_000


@given(
  seed=st.integers(0, 2**32 - 1),
  scale=st.sampled_from([0.0, 1.0, 10.0, 1e4]),
)
def test_scores_are_the_unbiased_variance_over_classes(seed, scale):
  logits = np.random.default_rng(seed).normal(size=(20, 5)) * scale
  logits = logits.astype(np.float32)
  prob = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
  prob /= prob.sum(1, keepdims=True)
  got = scores_of(logits, 'var')
  np.testing.assert_allclose(got, prob.var(1, ddof=1), atol=1e-6)
  assert (got >= 0).all() and (got <= 1 / 5 + 1e-6).all()
  np.testing.assert_allclose(scores_of(logits, 'one_minus_var'), 1 - got)


@pytest.mark.parametrize(
  'wrong', [{'score': 'variance'}, {'drop': 'top'}, {'drop_per_mille': 0.1}]
)
def test_a_choice_of_another_kind_is_refused(wrong):
  (name,) = wrong
  with pytest.raises(ValueError, match=f'{name}.*{wrong[name]}'):
    kmil.Choice(**wrong).check()


def test_equation_3_drops_the_certain_ones():
  logits = np.float32([[9, 0, 0], [0, 0, 0], [1, 0, 0]])
  mask = jnp.ones(3, bool)
  released = keys(scores_of(logits, 'var'), mask, 334, 'lowest')
  printed = keys(scores_of(logits, 'one_minus_var'), mask, 334, 'lowest')
  assert released.tolist() == [True, False, False]
  assert printed.tolist() == [False, True, False]


def test_combining_prob_averages_over_the_right_axes():
  softmax = lambda x: np.exp(x) / np.exp(x).sum()
  prediction = Prediction(
    logits=jnp.array([1.0, 2.0, 0.5]),
    attention=jnp.zeros((3, 3)),
    instance_logits=jnp.array([[3.0, 0, 0], [0, 1, -1], [9, 9, 99]]),
  )
  got = kmil.prob(prediction, jnp.array([True, True, False]), combine=True)
  want = softmax(np.array([3.0, 1.0, 0.0])) + softmax([1.0, 2.0, 0.5])
  np.testing.assert_allclose(got, want / 2, rtol=1e-6)
