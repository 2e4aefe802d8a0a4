"""Variances of AUROCs against all pairs, resamples and a known truth."""

from hypothesis import given
import numpy as np
import pytest
from reference_scores import predictions
from scipy import stats

from kmil_jax import delong, intervals, metrics


def all_pairs(positive, score):
  """V10 and V01 from the table of all pairs."""
  wins = np.sign(score[positive][:, None] - score[~positive]) / 2 + 0.5
  return wins.mean(1), wins.mean(0)


def brute(positive, scores, case):
  """Covariance of two AUROCs, Obuchowski 1997, patient by patient."""
  m, n = positive.sum(), (~positive).sum()
  patients = sorted(set(case))
  parts = [all_pairs(positive, s) for s in scores]
  auc = [v10.mean() for v10, _ in parts]

  def sums(which, kind, model):
    v = np.zeros(len(case))
    v[kind] = parts[model][which] - auc[model]
    return [v[case == p].sum() for p in patients]

  has = lambda kind: sum(kind[case == p].any() for p in patients)
  i10, i01, i = has(positive), has(~positive), len(patients)
  cov = np.zeros((2, 2))
  for r in range(2):
    for s in range(2):
      a10, a01 = sums(0, positive, r), sums(1, ~positive, r)
      b10, b01 = sums(0, positive, s), sums(1, ~positive, s)
      s10 = i10 / (i10 - 1) / m * np.dot(a10, b10)
      s01 = i01 / (i01 - 1) / n * np.dot(a01, b01)
      s11 = i / (i - 1) * np.dot(a10, b01)
      s11_ = i / (i - 1) * np.dot(a01, b10)
      cov[r, s] = s10 / m + s01 / n + (s11 + s11_) / (m * n)
  return cov


def two_models(rng, n, ties):
  positive = rng.random(n) < 0.4
  positive[:4] = True, True, False, False
  scores = rng.normal(size=(2, n)) + rng.normal(size=n) + positive
  return positive, np.round(scores) if ties else scores


@given(data=predictions())
def test_components_are_those_of_all_pairs(data):
  label, prob, _ = data
  for c in range(prob.shape[1]):
    positive = label == c
    got = delong.components(positive, prob[:, c])
    if positive.all() or not positive.any():
      assert [len(x) for x in got] == [positive.sum(), (~positive).sum()]
      assert np.isnan(np.concatenate(got)).all()
      continue
    for mine, want in zip(got, all_pairs(positive, prob[:, c]), strict=True):
      np.testing.assert_allclose(mine, want, atol=1e-12)
      np.testing.assert_allclose(
        mine.mean(), metrics.auroc(positive, prob[:, c]), atol=1e-12
      )


@pytest.mark.parametrize('ties', [False, True])
def test_covariance_of_slides_is_delongs(ties):
  rng = np.random.default_rng(3)
  positive, scores = two_models(rng, 50, ties)
  value, got = delong.covariance(positive, scores, np.arange(50))
  parts = [all_pairs(positive, s) for s in scores]
  v10, v01 = (np.stack([p[k] for p in parts]) for k in range(2))
  want = np.cov(v10) / positive.sum() + np.cov(v01) / (~positive).sum()
  np.testing.assert_allclose(got, want, rtol=1e-10)
  np.testing.assert_allclose(value, v10.mean(1))
  # However the patients are named.
  _, again = delong.covariance(positive, scores, np.arange(50).astype(str))
  np.testing.assert_allclose(again, want, rtol=1e-10)


@pytest.mark.parametrize('ties', [False, True])
def test_covariance_of_patients_is_obuchowskis(ties):
  rng = np.random.default_rng(4)
  positive, scores = two_models(rng, 60, ties)
  case = rng.integers(0, 17, 60).astype(str)
  _, got = delong.covariance(positive, scores, case)
  np.testing.assert_allclose(got, brute(positive, scores, case), rtol=1e-10)
  _, slides = delong.covariance(positive, scores, np.arange(60))
  assert np.abs(got / slides - 1).max() > 0.05


def test_the_patients_variance_is_that_of_many_cohorts():
  """Patients hold slides of both kinds, which moves both together."""
  rng, values, variances, naive = np.random.default_rng(0), [], [], []
  patient = np.repeat(np.arange(60), 4)
  for _ in range(400):
    positive = rng.random(240) < 0.5
    shared = 1.2 * rng.normal(size=(60, 2))[patient, positive.astype(int)]
    score = positive + shared + rng.normal(size=240)
    value, cov = delong.covariance(positive, score[None], patient)
    values.append(value[0])
    variances.append(cov[0, 0])
    _, cov = delong.covariance(positive, score[None], np.arange(240))
    naive.append(cov[0, 0])
  assert np.mean(variances) == pytest.approx(np.var(values), rel=0.2)
  assert np.mean(naive) < 0.7 * np.var(values)
  inside = [
    low <= np.mean(values) <= high
    for low, high in map(delong.interval, values, variances)
  ]
  assert abs(np.mean(inside) - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 400)


def test_classes_against_the_rest_vary_as_in_resamples():
  rng = np.random.default_rng(5)
  n, classes = 400, 3
  case = rng.integers(0, 150, n)
  label = rng.integers(0, classes, 150)[case]
  logits = rng.normal(size=(n, classes)) + rng.normal(size=(150, 3))[case]
  prob = np.exp(logits + np.eye(classes)[label])
  prob /= prob.sum(1, keepdims=True)
  positive = label == np.arange(classes)[:, None]
  value, cov = delong.covariance(positive, prob.T, case)
  np.testing.assert_allclose(
    value, metrics.evaluate(label, prob)['class_auroc']
  )
  drawn = intervals.replicates(label, prob, case, resamples=3000)
  want = np.cov(drawn['class_auroc'].T)
  error = np.sqrt(np.diag(want))
  np.testing.assert_allclose(np.sqrt(np.diag(cov)), error, rtol=0.08)
  np.testing.assert_allclose(
    cov / np.outer(error, error), np.corrcoef(drawn['class_auroc'].T), atol=0.15
  )
  mean = np.full(classes, 1 / classes)
  np.testing.assert_allclose(
    np.sqrt(mean @ cov @ mean), drawn['auroc'].std(), rtol=0.08
  )


def test_what_cannot_be_estimated_is_nan():
  score = np.arange(6.0)
  none, one = np.zeros(6, bool), np.arange(6) == 3
  two = np.arange(6) > 3
  value, cov = delong.covariance(
    np.stack([none, one, two]), np.tile(score, (3, 1)), np.arange(6)
  )
  np.testing.assert_array_equal(value, [np.nan, 3 / 5, 1])
  assert np.isnan(cov[:2]).all() and np.isnan(cov[:, :2]).all()
  # A perfect AUROC has no variance, and so no interval.
  assert cov[2, 2] == 0 and np.isnan(delong.interval(1, cov[2, 2])).all()
  assert np.isnan(delong.interval(np.nan, np.nan)).all()
  # One patient cannot say how patients vary.
  _, cov = delong.covariance(two, score[None], np.zeros(6))
  assert np.isnan(cov).all()


def test_tests_and_intervals_by_hand():
  assert delong.p_value(0.1, 0.05**2) == pytest.approx(2 * stats.norm.sf(2))
  assert delong.p_value(-0.1, 0.05**2) == pytest.approx(2 * stats.norm.sf(2))
  assert delong.p_value(0.0, -1e-19) == 1
  assert np.isnan(delong.p_value(0.1, 0.0))
  assert np.isnan(delong.p_value(np.nan, 0.05**2))
  low, high = delong.interval(0.95, 0.05**2)
  assert low == pytest.approx(0.95 - 0.0979982) and high == 1
