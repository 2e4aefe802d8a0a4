"""How far probabilities can be believed, and one temperature to mend them."""

from typing import NamedTuple

import numpy as np
import scipy

from kmil_jax.metrics import ratio

BINS = 15
# A temperature fitted on few slides that are all right, or all wrong, runs to 0
# or infinity; it stops here.
TEMPERATURES = (0.1, 10.0)
# The smallest normal float32: what a probability of 0 may have been.
_FLOOR = float(np.finfo(np.float32).tiny)
# Nats.
_ROUNDING = 1e-12


class Reliability(NamedTuple):
  """Slides by the probability of their predicted class, in K bins."""

  edges: np.ndarray  # [K + 1], from 0 to 1; a bin holds its upper edge
  count: np.ndarray  # [K] slides
  confidence: np.ndarray  # [K] mean probability of the predicted class
  accuracy: np.ndarray  # [K] share predicted right; both NaN without slides


def nll(label: np.ndarray, prob: np.ndarray) -> float:
  """Mean negative log-likelihood in nats.

  Args:
    label: [N].
    prob: [N, C]; below 1.2e-38, the smallest normal float32, counts as that.

  Returns:
    NaN without slides.
  """
  return _mean(-_at_true_class(label, _log(prob)))


def brier(label: np.ndarray, prob: np.ndarray) -> float:
  """Mean squared distance to the one-hot label, summed over classes.

  Brier, Monthly Weather Review 1950, the original form: from 0 to 2, so that
  for two classes it is twice the score of the second class alone.

  Args:
    label: [N].
    prob: [N, C].

  Returns:
    NaN without slides.
  """
  return _mean(((prob - np.eye(prob.shape[1])[label]) ** 2).sum(1))


def reliability(label: np.ndarray, prob: np.ndarray) -> Reliability:
  """Sorts slides [N] by their top probability [N, C] into bins of equal width.

  Returns:
    `BINS` bins; slides of undefined probability, NaN, are in none.
  """
  edges = np.linspace(0, 1, BINS + 1)
  known = np.isfinite(prob).all(1)
  label, prob = label[known], prob[known]
  top = prob.max(1)
  place = np.clip(np.searchsorted(edges, top) - 1, 0, BINS - 1)
  count = np.bincount(place, minlength=BINS)
  mean = lambda x: ratio(np.bincount(place, x, BINS), count)
  return Reliability(edges, count, mean(top), mean(prob.argmax(1) == label))


def ece(label: np.ndarray, prob: np.ndarray) -> float:
  """Expected calibration error of the predicted class, from 0 to 1.

  Mean over slides of |accuracy - confidence| of their bin (Guo et al., ICML
  2017, eq. 3), in `BINS` bins of equal width. It is biased upwards where bins
  hold few slides: read it with the counts of `reliability`.

  Args:
    label: [N].
    prob: [N, C].

  Returns:
    NaN without slides, or where a probability is NaN.
  """
  if not len(label) or np.isnan(prob).any():
    return float('nan')
  bins = reliability(label, prob)
  gap = np.abs(bins.accuracy - bins.confidence)
  return float(np.nansum(bins.count * gap) / len(label))


def temperature(label: np.ndarray, prob: np.ndarray) -> float:
  """Temperature that makes probabilities likeliest (Guo et al. 2017, 4.2).

  The loss is convex in 1 / T, so that it has one valley in log T, which is
  searched between the bounds `TEMPERATURES`. Fit it on validation slides.

  Args:
    label: [N].
    prob: [N, C].

  Returns:
    T, above 1 where the model was too sure; at a bound where the slides do not
    say how sure it may be, as when all of them are predicted right. NaN
    without slides.
  """
  if not len(label):
    return float('nan')
  log_prob = _log(prob)

  def loss(log_t: float) -> float:
    scaled = log_prob * np.exp(-log_t)
    total = scipy.special.logsumexp(scaled, axis=1)
    return _mean(total - _at_true_class(label, scaled))

  bounds = np.log(TEMPERATURES)
  minimum = scipy.optimize.minimize_scalar(
    loss, bounds=bounds, method='bounded', options={'xatol': 1e-7}
  )
  # The search stays inside its bounds: a valley beyond them ends beside one.
  # Of what is equal but for rounding, no change comes first, then a bound.
  tried = [0.0, *bounds, minimum.x]
  losses = np.array([loss(log_t) for log_t in tried])
  best = np.argmax(losses <= losses.min() + _ROUNDING)
  return float(np.exp(tried[best]))


def at_bound(value: float) -> bool:
  """Whether a temperature is one of `TEMPERATURES`, not a minimum inside."""
  return bool(np.isclose(value, TEMPERATURES, rtol=1e-6).any())


def scale(prob: np.ndarray, temperature: float) -> np.ndarray:
  """softmax(log p / T) of probabilities [N, C]; their order stays."""
  return scipy.special.softmax(_log(prob) / temperature, axis=1)


def _log(prob: np.ndarray) -> np.ndarray:
  return np.log(np.maximum(np.asarray(prob, float), _FLOOR))


def _at_true_class(label: np.ndarray, values: np.ndarray) -> np.ndarray:
  return values[np.arange(len(label)), label]


def _mean(values: np.ndarray) -> float:
  return float(values.mean()) if len(values) else float('nan')
