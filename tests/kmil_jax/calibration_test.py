"""Calibration against scikit-learn, closed forms and a known temperature."""

import itertools

from hypothesis import given
import numpy as np
import pytest
from reference_scores import predictions
from scipy import optimize
from sklearn import calibration as curves, metrics as reference

from kmil_jax import calibration


@given(data=predictions())
def test_errors_are_scikit_learns(data):
  label, prob, _ = data
  prob = (prob + 1e-3) / (prob + 1e-3).sum(1, keepdims=True)
  classes = range(prob.shape[1])
  want = reference.log_loss(label, prob, labels=list(classes))
  assert calibration.nll(label, prob) == pytest.approx(want)
  want = sum(np.mean((prob[:, c] - (label == c)) ** 2) for c in classes)
  assert calibration.brier(label, prob) == pytest.approx(want)
  if prob.shape[1] == 2:
    single = reference.brier_score_loss(label == 1, prob[:, 1])
    assert calibration.brier(label, prob) == pytest.approx(2 * single)


@given(data=predictions())
def test_ece_is_its_definition(data):
  label, prob, _ = data
  top, right = prob.max(1), prob.argmax(1) == label
  total, count = 0.0, []
  edges = np.linspace(0, 1, 16)
  for low, high in itertools.pairwise(edges):
    inside = (top > low) & (top <= high)
    count.append(inside.sum())
    if inside.any():
      total += inside.mean() * abs(right[inside].mean() - top[inside].mean())
  bins = calibration.reliability(label, prob)
  np.testing.assert_array_equal(bins.count, count)
  np.testing.assert_array_equal(bins.edges, edges)
  assert calibration.ece(label, prob) == pytest.approx(total)
  inside = bins.count > 0
  np.testing.assert_array_equal(np.isnan(bins.accuracy), ~inside)
  # scikit-learn's bins hold their lower edge: they agree on other values.
  if not np.isclose(top[:, None], edges).any():
    accuracy, confidence = curves.calibration_curve(right, top, n_bins=15)
    np.testing.assert_allclose(bins.accuracy[inside], accuracy)
    np.testing.assert_allclose(bins.confidence[inside], confidence)


def test_a_probability_of_0_costs_what_the_smallest_float32_does():
  label = np.array([0, 1])
  assert calibration.nll(label, np.eye(2)[1 - label]) == pytest.approx(
    -np.log(np.finfo(np.float32).tiny)
  )


@given(data=predictions())
def test_temperature_is_the_best_of_a_grid(data):
  label, prob, _ = data
  fitted = calibration.temperature(label, prob)
  low, high = calibration.TEMPERATURES
  assert low * (1 - 1e-9) <= fitted <= high * (1 + 1e-9)
  loss = lambda t: calibration.nll(label, calibration.scale(prob, t))
  grid = np.geomspace(low, high, 41)
  assert loss(fitted) <= min(map(loss, grid)) + 1e-7
  # The slope in 1 / T vanishes inside the bounds.
  if low * 1.01 < fitted < high / 1.01 and (prob > 1e-6).all():
    slope = optimize.approx_fprime([1 / fitted], lambda b: loss(1 / b[0]))
    assert abs(slope[0]) < 1e-4


def test_few_slides_stop_at_a_bound():
  prob = np.array([[0.8, 0.2], [0.3, 0.7]])
  low, high = calibration.TEMPERATURES
  right, wrong = np.array([0, 1]), np.array([1, 0])
  assert calibration.temperature(right, prob) == pytest.approx(low)
  assert calibration.temperature(wrong, prob) == pytest.approx(high)
  for label in (right, wrong):
    assert calibration.at_bound(calibration.temperature(label, prob))
  # Where no temperature is better than another, probabilities stay.
  even = np.full((2, 2), 0.5)
  assert calibration.temperature(right, even) == 1
  assert calibration.temperature(right, np.eye(2)) == 1


def test_no_slides_have_no_calibration():
  label, prob = np.zeros(0, int), np.zeros((0, 3))
  for error in (calibration.nll, calibration.brier, calibration.ece):
    assert np.isnan(error(label, prob))
  unknown = calibration.temperature(label, prob)
  assert np.isnan(unknown) and not calibration.at_bound(unknown)
  # Nor have probabilities at a temperature that is not known.
  label, prob = np.array([0, 1]), np.eye(2)
  after = calibration.scale(prob, unknown)
  for error in (calibration.nll, calibration.brier, calibration.ece):
    assert np.isnan(error(label, after))
  assert calibration.reliability(label, after).count.sum() == 0
