"""Metrics of a positive class against scikit-learn, and by hand."""

from hypothesis import given, strategies as st
import numpy as np
import pytest
from sklearn import metrics as sklearn

from kmil_jax import intervals, metrics


@given(seed=st.integers(0, 999), threshold=st.sampled_from([0.1, 0.5]))
def test_they_are_scikit_learns(seed, threshold):
  rng = np.random.default_rng(seed)
  positive = rng.random(40) < 0.3
  positive[:2] = True, False
  prob = rng.integers(0, 11, 40) / 10  # Ties, also at the threshold.
  found = metrics.evaluate_binary(positive, prob, threshold)
  called = prob >= threshold
  recall = lambda kind: sklearn.recall_score(positive, called, pos_label=kind)
  want = {
    'auroc': sklearn.roc_auc_score(positive, prob),
    'auprc': sklearn.average_precision_score(positive, prob),
    'f1': sklearn.f1_score(positive, called),
    'f1_micro': sklearn.f1_score(positive, called, average='micro'),
    'sensitivity': recall(1),
    'specificity': recall(0),
  }
  assert found == pytest.approx(want, abs=1e-9)


def test_what_is_undefined_is_nan():
  found = metrics.evaluate_binary(np.zeros(3, bool), np.ones(3), 0.5)
  assert np.isnan(found['auroc']) and np.isnan(found['sensitivity'])
  assert found['specificity'] == 0 and found['f1'] == 0
  assert np.isnan(metrics.specificity_at(np.ones(3, bool), np.ones(3), 1))


def test_specificity_at_equal_sensitivity_by_hand():
  positive = np.array([1, 1, 1, 0, 0, 0, 0], bool)
  prob = np.array([0.9, 0.8, 0.3, 0.85, 0.5, 0.3, 0.1])
  at = lambda s: metrics.specificity_at(positive, prob, s)
  # Thresholds 0.9, 0.8, 0.3; a negative at the threshold is called positive.
  assert at(1 / 3) == 1 and at(2 / 3) == 0.75 and at(1) == 0.25
  # Only ranks count.
  assert metrics.specificity_at(positive, prob**3, 2 / 3) == 0.75


def test_replicates_are_paired_and_average_models():
  rng = np.random.default_rng(0)
  positive = np.arange(60) % 3 == 0
  group = np.repeat(np.arange(12), 5)
  probs = rng.random((2, 60))
  both = intervals.auroc_replicates(positive, probs, group, resamples=50)
  each = [
    intervals.auroc_replicates(positive, p[None], group, resamples=50)
    for p in probs
  ]
  np.testing.assert_allclose(both, np.mean(each, 0))
  better = probs + 0.5 * positive
  gain = intervals.auroc_replicates(
    positive, better / better.max(), group, resamples=50
  )
  assert (gain > both).all()
