"""Metrics against scikit-learn, intervals against a literal loop."""

import time

from hypothesis import given, strategies as st
import numpy as np
import pytest
from sklearn import metrics as reference

from kmil_jax import metrics

seeds = st.integers(0, 2**32 - 1)


@st.composite
def predictions(draw, min_classes=2):
  """Labels and probabilities, often with ties and absent classes."""
  rng = np.random.default_rng(draw(seeds))
  n, c = draw(st.integers(1, 40)), draw(st.integers(min_classes, 5))
  label = rng.integers(0, draw(st.integers(1, c)), n)
  prob = rng.dirichlet(np.ones(c), n)
  if draw(st.booleans()):
    prob = np.round(prob, 1)
  return label, prob, rng


def in_f1(label, pred, average):
  return reference.f1_score(label, pred, average=average, zero_division=0)


def reference_scores(label, prob):
  """All four metrics by scikit-learn; NaN where it has no AUROC."""
  pred = prob.argmax(1)
  classes = prob.shape[1]
  auroc = np.nan
  if len(set(label)) == classes:
    parts = range(1, 2) if classes == 2 else range(classes)
    auroc = np.mean(
      [reference.roc_auc_score(label == c, prob[:, c]) for c in parts]
    )
  return {
    'accuracy': reference.accuracy_score(label, pred),
    'f1_macro': in_f1(label, pred, 'macro'),
    'f1_weighted': in_f1(label, pred, 'weighted'),
    'auroc': auroc,
  }


@given(data=predictions())
def test_evaluate_is_scikit_learns(data):
  label, prob, _ = data
  got, want = metrics.evaluate(label, prob), reference_scores(label, prob)
  assert tuple(got) == metrics.NAMES == tuple(want)
  for name in metrics.NAMES:
    np.testing.assert_allclose(got[name], want[name], atol=1e-12, err_msg=name)


@given(data=predictions())
def test_confusion_and_classes_are_scikit_learns(data):
  label, prob, rng = data
  pred, c = prob.argmax(1), prob.shape[1]
  table = metrics.confusion(label, pred, c)
  np.testing.assert_array_equal(
    table, reference.confusion_matrix(label, pred, labels=range(c))
  )
  weight = rng.integers(0, 4, len(label))
  weight[0] = 1  # scikit-learn refuses weights of 0 alone.
  weighted = np.zeros((c, c))
  np.add.at(weighted, (label, pred), weight)
  np.testing.assert_array_equal(
    weighted,
    reference.confusion_matrix(
      label, pred, labels=range(c), sample_weight=weight
    ),
  )
  names = ('precision', 'recall', 'f1', 'support')
  for counts, w in ((table, None), (weighted, weight)):
    got = metrics.per_class(counts)
    want = reference.precision_recall_fscore_support(
      label, pred, labels=range(c), sample_weight=w, zero_division=0
    )
    for name, x in zip(names, want, strict=True):
      np.testing.assert_allclose(got[name], x, atol=1e-12, err_msg=name)


@given(data=predictions(), w=st.integers(1, 4))
def test_a_stack_of_tables_is_the_tables_one_by_one(data, w):
  _, prob, rng = data
  c = prob.shape[1]
  tables = rng.integers(0, 3, (w, c, c))
  tables[0] = 0
  stacked = metrics.from_confusion(tables)
  for i in range(w):
    label = np.repeat(np.arange(c), tables[i].sum(1))
    pred = np.concatenate([np.repeat(np.arange(c), row) for row in tables[i]])
    if not len(label):
      assert all(stacked[name][i] == 0 for name in stacked)
      continue
    for average in ('macro', 'weighted'):
      np.testing.assert_allclose(
        stacked[f'f1_{average}'][i], in_f1(label, pred, average), atol=1e-12
      )
    np.testing.assert_allclose(stacked['accuracy'][i], np.mean(label == pred))


@given(data=predictions())
def test_weighted_auroc_is_scikit_learns(data):
  label, prob, rng = data
  weight = np.stack(
    [
      np.ones(len(label)),
      rng.random(len(label)),
      rng.integers(0, 3, len(label)),
    ]
  )
  got = metrics.class_aurocs(label, prob, weight)
  assert got.shape == (prob.shape[1], 3)
  for c in range(prob.shape[1]):
    positive = label == c
    assert not np.isinf(got[c]).any()
    for w, value in zip(weight, got[c], strict=True):
      if w[positive].sum() and w[~positive].sum():
        want = reference.roc_auc_score(positive, prob[:, c], sample_weight=w)
        np.testing.assert_allclose(value, want, atol=1e-12)
      else:
        assert np.isnan(value)
    np.testing.assert_array_equal(
      metrics.auroc(positive, prob[:, c]), got[c, 0]
    )


def test_auroc_by_hand():
  positive = np.array([True, False, True, False])
  # Pairs: 0.9 wins over both; 0.5 ties with 0.5 and wins over 0.1.
  assert metrics.auroc(positive, np.array([0.9, 0.5, 0.5, 0.1])) == 0.875
  assert metrics.auroc(positive, np.zeros(4)) == 0.5
  assert metrics.auroc(positive, -np.array([0.9, 0.5, 0.5, 0.1])) == 0.125
  assert np.isnan(metrics.auroc(np.ones(2, bool), np.arange(2)))


@given(data=predictions())
def test_roc_is_scikit_learns_and_its_area_the_auroc(data):
  label, prob, _ = data
  for c in range(prob.shape[1]):
    positive = label == c
    alarms, hits = metrics.roc(positive, prob[:, c])
    assert alarms[0] == hits[0] == 0
    assert (np.diff(alarms) >= 0).all() and (np.diff(hits) >= 0).all()
    if positive.all() or not positive.any():
      missing, there = (alarms, hits) if positive.all() else (hits, alarms)
      assert not missing.any() and there[-1] == 1
      continue
    want = reference.roc_curve(positive, prob[:, c], drop_intermediate=False)
    np.testing.assert_allclose(alarms, want[0], atol=1e-12)
    np.testing.assert_allclose(hits, want[1], atol=1e-12)
    np.testing.assert_allclose(
      np.trapezoid(hits, alarms),
      metrics.auroc(positive, prob[:, c]),
      atol=1e-12,
    )


def test_an_absent_class_leaves_the_macro_auroc_undefined():
  label = np.array([0, 0, 1, 1])
  prob = np.eye(3)[label]
  assert np.isnan(metrics.evaluate(label, prob)['auroc'])
  assert metrics.evaluate(label, prob)['accuracy'] == 1
  assert metrics.evaluate(label, prob[:, :2])['auroc'] == 1


@pytest.mark.parametrize('classes', [2, 3])
def test_bootstrap_is_a_literal_resampling_of_patients(classes):
  rng = np.random.default_rng(classes)
  n, resamples = 24, 150
  patient = rng.permutation(np.arange(n) % 9)
  label = patient % classes  # Some resamples lack a class.
  prob = np.round(rng.dirichlet(np.ones(classes), n), 1)
  case = np.array([f'p{i}' for i in patient])
  got = metrics.bootstrap(label, prob, case, resamples=resamples, seed=5)

  names = sorted(set(case))
  draws = np.random.default_rng(5).multinomial(
    len(names), np.full(len(names), 1 / len(names)), size=resamples
  )
  scores = []
  for draw in draws:
    rows = []
    for name, times in zip(names, draw, strict=True):
      rows += list(np.flatnonzero(case == name)) * times
    scores.append(reference_scores(label[rows], prob[rows]))
  dropped = sum(np.isnan(s['auroc']) for s in scores)
  assert classes == 2 or 0 < dropped < resamples
  for name in metrics.NAMES:
    want = np.nanpercentile([s[name] for s in scores], [2.5, 97.5])
    np.testing.assert_allclose(got[name], want, atol=1e-12, err_msg=name)


def test_bootstrap_draws_patients_not_slides():
  # All slides of a patient agree, so copies of slides carry no information.
  rng = np.random.default_rng(0)
  label = rng.integers(0, 2, 40)
  prob = rng.dirichlet(np.ones(2), 40)
  case = np.arange(40).astype(str)
  one = metrics.bootstrap(label, prob, case, resamples=300)
  copies = [np.repeat(x, 5, axis=0) for x in (label, prob, case)]
  for name, interval in metrics.bootstrap(*copies, resamples=300).items():
    np.testing.assert_allclose(interval, one[name], atol=1e-12)
  slides = metrics.bootstrap(
    *copies[:2], np.arange(200).astype(str), resamples=300
  )
  width = lambda x: x['accuracy'][1] - x['accuracy'][0]
  assert width(slides) < 0.7 * width(one)


def test_bootstrap_of_a_single_class_is_nan_for_auroc_alone():
  label, prob = np.zeros(6, int), np.tile([0.7, 0.3], (6, 1))
  got = metrics.bootstrap(label, prob, np.arange(6).astype(str), resamples=50)
  assert np.isnan(got['auroc']).all()
  assert got['accuracy'] == (1, 1)


def test_bootstrap_of_a_thousand_slides_takes_seconds():
  rng = np.random.default_rng(0)
  label, prob = rng.integers(0, 5, 1000), rng.dirichlet(np.ones(5), 1000)
  case = rng.integers(0, 400, 1000).astype(str)
  start = time.process_time()
  metrics.bootstrap(label, prob, case)
  assert time.process_time() - start < 5
