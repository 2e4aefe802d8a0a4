"""Variances of AUROCs against all pairs, resamples and a known truth."""

import numpy as np
import pytest
from scipy import stats

from kmil_jax import delong


def all_pairs(positive, score):
  """V10 and V01 from the table of all pairs."""
  wins = np.sign(score[positive][:, None] - score[~positive]) / 2 + 0.5
  return wins.mean(1), wins.mean(0)


def obuchowskis(positive, scores, case):
  """Covariance of AUROCs, Obuchowski 1997, patient by patient."""
  patients = sorted(set(case))
  sums, holders = [], []
  for positives, score in zip(positive, scores, strict=True):
    of_model = []
    parts = all_pairs(positives, score)
    for kind, part in zip((positives, ~positives), parts, strict=True):
      v = np.zeros(len(case))
      v[kind] = (part - part.mean()) / kind.sum()
      of_model.append([v[case == p].sum() for p in patients])
      holders.append(len(set(case[kind])))
    sums.append(of_model)
  holders, i = np.reshape(holders, (-1, 2)), len(patients)
  bessel = np.sqrt(holders / (holders - 1))
  cov = np.zeros((len(scores), len(scores)))
  for r, s in np.ndindex(cov.shape):
    for kind in range(2):
      same = bessel[r, kind] * bessel[s, kind]
      cov[r, s] += same * np.dot(sums[r][kind], sums[s][kind])
      cov[r, s] += i / (i - 1) * np.dot(sums[r][kind], sums[s][1 - kind])
  return cov


@pytest.mark.parametrize('patients', [17, None])
@pytest.mark.parametrize('ties', [False, True])
def test_covariance_of_patients_is_obuchowskis(ties, patients):
  """Of one slide each, it is DeLong's."""
  rng = np.random.default_rng(4)
  case = np.arange(60) if patients is None else rng.integers(0, patients, 60)
  positive = rng.random((3, 60)) < 0.4
  positive[1] = positive[0]  # Two models of one class, and one of another.
  scores = rng.normal(size=(3, 60)) + rng.normal(size=60) + positive
  scores = np.round(scores) if ties else scores
  value, got = delong.covariance(positive, scores, case)
  want = obuchowskis(positive, scores, case)
  np.testing.assert_allclose(got, want, rtol=1e-10)
  pairs = [all_pairs(*p) for p in zip(positive[:2], scores[:2], strict=True)]
  v10, v01 = (np.stack(part) for part in zip(*pairs, strict=True))
  np.testing.assert_allclose(value[:2], v10.mean(1))
  if patients is None:
    m, n = len(v10[0]), len(v01[0])
    np.testing.assert_allclose(
      got[:2, :2], np.cov(v10) / m + np.cov(v01) / n, rtol=1e-10
    )
  # However the patients are named.
  _, again = delong.covariance(positive, scores, case.astype(str))
  np.testing.assert_allclose(again, got, rtol=1e-10)


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
