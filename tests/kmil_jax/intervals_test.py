"""Intervals against a literal loop, and their coverage of a known truth."""

import itertools

from hypothesis import given, strategies as st
import numpy as np
import pytest
from reference_scores import bootstrap, reference_scores
from scipy import stats

from kmil_jax import intervals, metrics


@pytest.mark.parametrize('classes,block', [(2, 200_000), (3, 24 * 7)])
def test_bootstrap_is_a_literal_resampling_of_patients(
  monkeypatch, classes, block
):
  monkeypatch.setattr(intervals, '_BLOCK', block)  # At once, and 7 by 7.
  rng = np.random.default_rng(classes)
  n, resamples = 24, 50
  patient = rng.permutation(np.arange(n) % 9)
  label = patient % classes  # Some resamples lack a class.
  prob = np.round(rng.dirichlet(np.ones(classes), n), 1)
  case = np.array([f'p{i}' for i in patient])
  got = bootstrap(label, prob, case, resamples=resamples, seed=5)

  names = sorted(set(case))
  draws = np.random.default_rng(5).integers(0, len(names), (resamples, 9))
  scores, class_scores = [], []
  for draw in draws:
    rows = np.concatenate([np.flatnonzero(case == names[i]) for i in draw])
    scores.append(reference_scores(label[rows], prob[rows]))
    if len(set(label[rows])) < classes:
      scores[-1] |= {'balanced_accuracy': np.nan, 'f1_macro': np.nan}
    class_scores.append(metrics.evaluate(label[rows], prob[rows]))
  dropped = sum(np.isnan(s['auroc']) for s in scores)
  assert classes == 2 or 0 < dropped < resamples
  assert tuple(got) == metrics.NAMES + metrics.CLASS_NAMES
  for name in metrics.NAMES:
    want = np.nanpercentile([s[name] for s in scores], [2.5, 97.5])
    np.testing.assert_allclose(got[name], want, atol=1e-12, err_msg=name)
  for name in metrics.CLASS_NAMES:
    want = np.nanpercentile([s[name] for s in class_scores], [2.5, 97.5], 0)
    np.testing.assert_allclose(got[name], want, atol=1e-12, err_msg=name)


def wilson(hits, slides):
  """scipy's interval of a share of independent slides."""
  bounds = stats.binomtest(hits, slides).proportion_ci(method='wilson')
  return bounds.low, bounds.high


@pytest.mark.parametrize('hits', [0, 1, 10, 22])
def test_a_share_of_patients_of_one_slide_is_wilsons(hits):
  counted = np.arange(30) < 22  # The others must not matter.
  hit = (np.arange(30) < hits) | ~counted
  got = intervals.proportion(hit, counted, np.arange(30).astype(str))
  # An unbiased variance is that of one slide fewer; 0 says nothing.
  z2, p, n = stats.norm.ppf(0.975) ** 2, hits / 22, 21 + (hits in (0, 22))
  ends = np.sort(np.roots([1 + z2 / n, -(2 * p + z2 / n), p**2]))
  np.testing.assert_allclose(got, ends, atol=1e-12)


def test_a_share_of_copies_is_that_of_patients():
  hit, case = np.arange(20) % 3 > 0, np.arange(20)
  one = intervals.proportion(hit, np.ones(20, bool), case)
  copies = [np.repeat(x, 7) for x in (hit, np.ones(20, bool), case)]
  np.testing.assert_allclose(intervals.proportion(*copies), one)
  # Patients who all agree are not taken for more slides than there are.
  hit, case = np.tile([True, False], 10), np.repeat(np.arange(10), 2)
  got = intervals.proportion(hit, np.ones(20, bool), case)
  np.testing.assert_allclose(got, wilson(10, 20))
  # One patient cannot say how patients vary, nor can none.
  alone = [intervals.proportion(hit, case == c, case) for c in (3, 99)]
  assert np.isnan(alone).all()


def covered_shares(share, correlation, patients, most, trials):
  """How often the interval holds the share that cohorts are drawn from.

  Patients have 1 to `most` slides and a share of their own, beta distributed so
  that two of their slides correlate.
  """
  rng, covered = np.random.default_rng(0), []
  for _ in range(trials):
    case = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    own = np.full(patients, share)
    if correlation:
      total = (1 - correlation) / correlation
      own = rng.beta(share * total, (1 - share) * total, patients)
    hit = rng.random(len(case)) < own[case]
    low, high = intervals.proportion(hit, np.ones(len(case), bool), case)
    covered.append(low <= share <= high)
  return np.mean(covered)


@pytest.mark.parametrize('share', [0.7, 0.9, 0.97])
def test_intervals_of_shares_cover_the_truth(share):
  # Wilson's coverage swings about 95 % as the share moves: 10,000 trials give
  # 0.940, 0.983 and 0.974 of single slides, and 0.91 to 0.96 of patients with
  # several, least where few patients tell how much they vary.
  assert covered_shares(share, 0, 22, 1, 1000) > 0.92
  trials = 500
  error = np.sqrt(0.91 * 0.09 / trials)
  for correlation, patients in itertools.product((0.3, 0.7), (15, 30, 100)):
    covered = covered_shares(share, correlation, patients, 5, trials)
    assert covered > 0.91 - 3 * error, (correlation, patients)


def test_where_nothing_varies_there_is_an_interval_of_shares_alone():
  label, case = np.arange(12) % 2, np.arange(12)
  perfect = 0.1 + 0.8 * np.eye(2)[label]
  none = bootstrap(label, perfect, case, resamples=200)
  assert all(np.isnan(interval).all() for interval in none.values())
  got = intervals.of_metrics(label, perfect, case, resamples=200)
  for name in metrics.NAMES:
    assert np.isnan(got[name]).all() == (name != 'accuracy'), name
  np.testing.assert_allclose(got['accuracy'], wilson(12, 12))
  for name in ('class_precision', 'class_recall'):
    want = np.tile(wilson(6, 6), (2, 1)).T
    np.testing.assert_allclose(got[name], want)
  assert np.isnan(got['class_auroc']).all()


def test_shares_have_wilsons_interval_and_the_rest_the_bootstraps():
  rng = np.random.default_rng(0)
  case = rng.integers(0, 20, 60)
  label, prob = rng.integers(0, 2, 60), rng.dirichlet(np.ones(3), 60)
  got = intervals.of_metrics(label, prob, case, resamples=200)
  rest = bootstrap(label, prob, case, resamples=200)
  pred = prob.argmax(1)
  share = lambda counted: intervals.proportion(pred == label, counted, case)
  np.testing.assert_array_equal(got['accuracy'], share(label >= 0))
  for name in (*metrics.NAMES[1:], 'class_auroc'):
    np.testing.assert_array_equal(got[name], rest[name])
  precision, recall = got['class_precision'], got['class_recall']
  for c in range(2):
    np.testing.assert_array_equal(recall[:, c], share(label == c))
    np.testing.assert_array_equal(precision[:, c], share(pred == c))
  # No slide is of the third class, though some are taken for it.
  assert (pred == 2).any()
  assert np.isnan([got[name][:, 2] for name in metrics.CLASS_NAMES]).all()


# A cohort of known truth: scores of negatives are N(0, 1), of positives
# N(SHIFT, 1), and 0.7 of the variance is the patient's.
SHIFT, SHARE, PATIENTS = 1.2, 0.7, 100
TRUE_AUROC = stats.norm.cdf(SHIFT / np.sqrt(2))
TRUE_ACCURACY = stats.norm.cdf(SHIFT / 2)


def clustered(rng, models=1):
  """Labels, probabilities of each model, and cases of one drawn cohort."""
  patient = np.repeat(np.arange(PATIENTS), rng.integers(1, 6, PATIENTS))
  label = rng.integers(0, 2, PATIENTS)[patient]
  probs = []
  for _ in range(models):
    score = np.sqrt(SHARE) * rng.normal(size=PATIENTS)[patient]
    score += np.sqrt(1 - SHARE) * rng.normal(size=len(patient))
    p = stats.norm.cdf(score + SHIFT * label - SHIFT / 2)
    probs.append(np.stack([1 - p, p], 1))
  return label, probs, patient


def test_intervals_cover_the_truth_and_those_of_slides_do_not():
  # Both classes are as frequent and as often right, so that all but the AUROC
  # are the accuracy.
  truth = dict.fromkeys(metrics.NAMES, TRUE_ACCURACY) | {'auroc': TRUE_AUROC}
  trials, rng = {'case': 400, 'slide': 100}, np.random.default_rng(0)
  covered = {(name, kind): 0 for name in truth for kind in trials}
  for trial in range(trials['case']):
    label, (prob,), case = clustered(rng)
    for kind, cluster in (('case', case), ('slide', np.arange(len(case)))):
      if trial >= trials[kind]:
        continue
      bounds = intervals.of_metrics(
        label, prob, cluster, resamples=200, seed=trial
      )
      for name, value in truth.items():
        low, high = bounds[name]
        covered[name, kind] += (low <= value <= high) / trials[kind]
  error = np.sqrt(0.95 * 0.05 / trials['case'])
  for name in truth:
    assert abs(covered[name, 'case'] - 0.95) < 3 * error, name
    assert covered[name, 'slide'] < 0.88, name


def test_p_of_equal_models_is_even_and_their_interval_holds_0():
  # 2,500 trials: 0.049, 0.196 and 0.486.
  trials, rng, p, covered = 400, np.random.default_rng(11), [], []
  for trial in range(trials):
    label, probs, case = clustered(rng, models=2)
    one, other = (
      intervals.replicates(label, prob, case, resamples=199, seed=trial)
      for prob in probs
    )
    p.append(intervals.p_value(other['auroc'] - one['auroc']))
    changes = np.stack([other[x] - one[x] for x in metrics.NAMES], 1)
    low, high = intervals.percentile(changes)
    covered.append((low <= 0) & (0 <= high))
  error = lambda share: np.sqrt(share * (1 - share) / trials)
  for share in (0.05, 0.2, 0.5):
    assert abs(np.mean(np.array(p) < share) - share) < 3 * error(share), share
  assert (abs(np.mean(covered, 0) - 0.95) < 3 * error(0.05)).all()


def test_p_by_hand():
  assert intervals.p_value(np.arange(1, 100)) == pytest.approx(0.02)
  assert intervals.p_value(-np.arange(1, 100)) == pytest.approx(0.02)
  assert intervals.p_value(np.zeros(99)) == 1
  # That differ, but in every resample by as much.
  assert np.isnan(intervals.p_value(np.ones(99)))
  values = np.append(np.ones(96), -np.ones(3))
  assert intervals.p_value(values) == pytest.approx(0.08)
  assert intervals.p_value(np.append(values, np.nan)) == pytest.approx(0.08)
  assert np.isnan(intervals.p_value(np.full(3, np.nan)))


@given(
  p=st.lists(st.floats(0, 1), min_size=1, max_size=8),
  missing=st.integers(0, 3),
)
def test_holm_is_its_definition(p, missing):
  p = np.random.default_rng(0).permutation(p + [np.nan] * missing)
  got = intervals.holm(p)
  np.testing.assert_array_equal(np.isnan(got), np.isnan(p))
  tests = np.sort(p[np.isfinite(p)])
  for value, adjusted in zip(p, got, strict=True):
    if np.isnan(value):
      continue
    # The level at which the step-down procedure first rejects this test.
    steps = [x * (len(tests) - i) for i, x in enumerate(tests) if x <= value]
    # Equal values are rejected together, at the first of their steps.
    first = np.searchsorted(tests, value)
    want = min(1, max(steps[: first + 1]))
    np.testing.assert_allclose(adjusted, want)


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


@pytest.mark.parametrize('patients', [1, 2])
def test_what_rests_on_one_patient_has_no_interval(patients):
  """Class 2 is of one patient, or of two; the others are of four each."""
  case = np.repeat([f'p{i}' for i in range(9)], 4)
  label = np.repeat([0, 0, 0, 0, 1, 1, 1, 1, 2], 4)
  prob = np.random.default_rng(0).dirichlet(np.ones(3), len(label))
  if patients == 2:
    case[-2:] = 'p9'
  bounds = bootstrap(label, prob, case, resamples=500)
  rests = {'auroc', 'f1_macro', 'balanced_accuracy'}
  for name in metrics.NAMES:
    alone = patients == 1 and name in rests
    assert np.isnan(bounds[name]).all() == alone, name
  for name in metrics.CLASS_NAMES:
    assert np.isnan(bounds[name][:, 2]).all() == (patients == 1), name
    assert np.isfinite(bounds[name][:, :2]).all(), name


def test_a_class_against_one_patient_has_no_auroc_interval():
  rng = np.random.default_rng(0)
  label, case = np.arange(36) % 2, np.arange(36) // 4
  case = np.where(label == 1, 'alone', case.astype(str))
  bounds = bootstrap(label, rng.dirichlet(np.ones(2), 36), case, resamples=500)
  assert np.isnan(bounds['class_auroc']).all()
  assert np.isfinite(bounds['class_recall'][:, 0]).all()
