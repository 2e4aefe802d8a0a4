"""One patient of a class varies in no resample: no interval, no p."""

import numpy as np

from kmil_jax import intervals

SLIDES = 4
# Class 2 is one patient with several slides, the others have four each.
CASE = np.repeat([f'p{i}' for i in range(9)], SLIDES)
LABEL = np.repeat([0, 0, 0, 0, 1, 1, 1, 1, 2], SLIDES)
PROB = np.random.default_rng(0).dirichlet(np.ones(3), len(LABEL))


def test_what_rests_on_one_patient_has_no_interval():
  overall, by_class = intervals.bootstrap(LABEL, PROB, CASE, resamples=500)
  for name in ('auroc', 'f1_macro', 'balanced_accuracy'):
    assert np.isnan(overall[name]).all(), name
  for name in ('accuracy', 'f1_weighted'):
    assert np.isfinite(overall[name]).all(), name
  for name, bounds in by_class.items():
    assert np.isnan(bounds[:, 2]).all(), name
    assert np.isfinite(bounds[:, :2]).all(), name


def test_two_patients_are_enough():
  case = CASE.copy()
  case[-2:] = 'p9'
  overall, by_class = intervals.bootstrap(LABEL, PROB, case, resamples=500)
  assert all(np.isfinite(bounds).all() for bounds in overall.values())
  assert np.isfinite(by_class['auroc']).all()


def test_a_class_against_one_patient_has_no_auroc_interval():
  label, prob = np.minimum(LABEL, 1), PROB[:, :2]
  case = np.where(label == 1, 'alone', CASE)
  _, by_class = intervals.bootstrap(label, prob, case, resamples=500)
  assert np.isnan(by_class['auroc']).all()
  assert np.isfinite(by_class['recall'][:, 0]).all()
