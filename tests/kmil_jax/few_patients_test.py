"""One patient of a class varies in no resample: no interval, no p."""

import numpy as np
from reference_scores import bootstrap

from kmil_jax import metrics

SLIDES = 4
# Class 2 is one patient with several slides, the others have four each.
CASE = np.repeat([f'p{i}' for i in range(9)], SLIDES)
LABEL = np.repeat([0, 0, 0, 0, 1, 1, 1, 1, 2], SLIDES)
PROB = np.random.default_rng(0).dirichlet(np.ones(3), len(LABEL))


def test_what_rests_on_one_patient_has_no_interval():
  bounds = bootstrap(LABEL, PROB, CASE, resamples=500)
  for name in ('auroc', 'f1_macro', 'balanced_accuracy'):
    assert np.isnan(bounds[name]).all(), name
  for name in ('accuracy', 'f1_weighted'):
    assert np.isfinite(bounds[name]).all(), name
  for name in metrics.CLASS_NAMES:
    assert np.isnan(bounds[name][:, 2]).all(), name
    assert np.isfinite(bounds[name][:, :2]).all(), name


def test_two_patients_are_enough():
  case = CASE.copy()
  case[-2:] = 'p9'
  bounds = bootstrap(LABEL, PROB, case, resamples=500)
  assert all(np.isfinite(bounds[name]).all() for name in metrics.NAMES)
  assert np.isfinite(bounds['class_auroc']).all()


def test_a_class_against_one_patient_has_no_auroc_interval():
  label, prob = np.minimum(LABEL, 1), PROB[:, :2]
  case = np.where(label == 1, 'alone', CASE)
  bounds = bootstrap(label, prob, case, resamples=500)
  assert np.isnan(bounds['class_auroc']).all()
  assert np.isfinite(bounds['class_recall'][:, 0]).all()
