"""Metrics against scikit-learn."""

from hypothesis import given, strategies as st
import numpy as np
import pytest
from reference_scores import (
  predictions,
  reference_scores,
)
from sklearn import metrics as reference

from kmil_jax import metrics

OF_ALL_CLASSES = ('balanced_accuracy', 'f1_macro', 'auroc')


def wanted(label, prob):
  """scikit-learn's scores, without those that a missing class undoes."""
  want = reference_scores(label, prob)
  if len(set(label)) < prob.shape[1]:
    want |= dict.fromkeys(OF_ALL_CLASSES, np.nan)
  return want


@given(data=predictions())
def test_evaluate_is_scikit_learns(data):
  label, prob, _ = data
  got, want = metrics.evaluate(label, prob), wanted(label, prob)
  assert tuple(got) == metrics.NAMES + metrics.CLASS_NAMES
  assert tuple(want) == metrics.NAMES
  for name in metrics.NAMES:
    np.testing.assert_allclose(got[name], want[name], atol=1e-12, err_msg=name)


@given(data=predictions())
def test_classes_are_scikit_learns(data):
  label, prob, _ = data
  pred, classes = prob.argmax(1), range(prob.shape[1])
  table = reference.confusion_matrix(label, pred, labels=classes)
  got = metrics.from_confusion(table)
  *want, _ = reference.precision_recall_fscore_support(
    label, pred, labels=classes, zero_division=np.nan
  )
  names = ('class_precision', 'class_recall', 'class_f1')
  for name, x in zip(names, want, strict=True):
    np.testing.assert_allclose(got[name], x, atol=1e-12, err_msg=name)


def test_an_absent_class_leaves_averages_over_classes_undefined():
  label = np.array([0, 0, 1, 1])
  prob = np.eye(3)[label]
  got = metrics.evaluate(label, prob)
  undefined = {name for name in metrics.NAMES if np.isnan(got[name])}
  assert undefined == set(metrics.OF_ALL_CLASSES) == set(OF_ALL_CLASSES)
  assert got['accuracy'] == got['f1_weighted'] == 1
  assert all(
    np.all(x == 1) for x in metrics.evaluate(label, prob[:, :2]).values()
  )
  # Epochs are chosen on small parts: there the classes at hand are averaged.
  chosen = metrics.from_confusion(np.diag([2, 2, 0]))
  assert chosen['f1_macro'] == chosen['balanced_accuracy'] == 1


@given(data=predictions(), w=st.integers(1, 3))
def test_weights_are_copies(data, w):
  label, prob, rng = data
  weight = rng.integers(0, 3, (w, len(label)))
  weight[:, 0] = 1
  got = metrics.evaluate(label, prob, weight)
  assert tuple(got) == metrics.NAMES + metrics.CLASS_NAMES
  for i, times in enumerate(weight):
    rows = np.repeat(np.arange(len(label)), times)
    want = wanted(label[rows], prob[rows])
    for name in metrics.NAMES:
      np.testing.assert_allclose(got[name][i], want[name], atol=1e-12)
    want = metrics.evaluate(label[rows], prob[rows])
    absent = ~np.isin(np.arange(prob.shape[1]), label[rows])
    for name in metrics.CLASS_NAMES:
      np.testing.assert_allclose(got[name][i], want[name], atol=1e-12)
      assert np.isnan(got[name][i][absent]).all()


def test_no_slides_have_no_scores():
  scores = metrics.evaluate(np.zeros(0, int), np.zeros((0, 3)))
  assert all(np.isnan(x).all() for x in scores.values())


@given(seed=st.integers(0, 999), threshold=st.sampled_from([0.1, 0.5]))
def test_binary_metrics_are_scikit_learns(seed, threshold):
  rng = np.random.default_rng(seed)
  positive = rng.random(40) < 0.3
  positive[:2] = True, False
  prob = rng.integers(0, 11, 40) / 10  # Ties, also at the threshold.
  scores = metrics.evaluate_binary(positive, prob, threshold)
  called = prob >= threshold
  recall = lambda kind: reference.recall_score(positive, called, pos_label=kind)
  want = {
    'auroc': reference.roc_auc_score(positive, prob),
    'auprc': reference.average_precision_score(positive, prob),
    'f1': reference.f1_score(positive, called),
    'f1_micro': reference.f1_score(positive, called, average='micro'),
    'sensitivity': recall(1),
    'specificity': recall(0),
  }
  assert scores == pytest.approx(want, abs=1e-9)


def test_binary_metrics_that_are_undefined_are_nan():
  scores = metrics.evaluate_binary(np.zeros(3, bool), np.ones(3), 0.5)
  for name in ('auroc', 'auprc', 'sensitivity'):
    assert np.isnan(scores[name])
  assert scores['specificity'] == 0 and scores['f1'] == 0
  assert np.isnan(metrics.specificity_at(np.ones(3, bool), np.ones(3), 1))


def test_specificity_at_equal_sensitivity_by_hand():
  positive = np.array([1, 1, 1, 0, 0, 0, 0], bool)
  prob = np.array([0.9, 0.8, 0.3, 0.85, 0.5, 0.3, 0.1])
  at = lambda s: metrics.specificity_at(positive, prob, s)
  # Thresholds 0.9, 0.8, 0.3; a negative at the threshold is called positive.
  assert at(1 / 3) == 1 and at(2 / 3) == 0.75 and at(1) == 0.25
  # Only ranks count.
  assert metrics.specificity_at(positive, prob**3, 2 / 3) == 0.75
