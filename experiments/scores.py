"""Turns predictions into the numbers that a summary holds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix

from experiments.predictions import Predictions, mean, pool
from kmil_jax import calibration, delong, intervals, metrics

# Of fewer patients a temperature is not worth fitting.
LEAST_PATIENTS = 30
_TOO_FEW = f'fewer than {LEAST_PATIENTS} validation patients'
_AT_BOUND = 'validation slides do not show how sure the model may be'


class Temperature(NamedTuple):
  """What the log probabilities of a fold's model are divided by."""

  value: float  # 1 unless fitted
  reason: str  # why it was not fitted, '' if it was
  at_bound: bool  # whether the fit ended at a bound
  patients: int  # to fit it on
  slides: int  # of them
  folds: tuple[int, ...]  # whose validation parts hold them


def number(value: float) -> float | None:
  """A number as JSON has it: six decimals, None where it is undefined."""
  return None if np.isnan(value) else round(float(value), 6)


def of_folds(
  whole: Predictions,
  per_fold: Sequence[Predictions],
  classes: Sequence[str],
  whole_name: str,
) -> dict:
  """All metrics of a cohort, with intervals over patients.

  Args:
    whole: slides of all folds as one set.
    per_fold: the sets that single folds evaluated.
    classes: names, C.
    whole_name: what the value of `whole` is called.

  Returns:
    `metrics`: of each its mean and std over the folds where it is defined, its
    value on the whole, that value's 95 % interval (`intervals.of_metrics`:
    Wilson's of accuracy, precision and recall, else a bootstrap of patients),
    and the values of the folds; `auroc_delong`: the interval of the AUROC in
    closed form; `per_class`; and `confusion`, true classes in rows. Slides
    count, not patients; patients are what the intervals take for independent.
    What is undefined is None, as an interval where nothing varies.
  """
  values = metrics.evaluate(whole.label, whole.prob)
  by_fold = [metrics.evaluate(p.label, p.prob) for p in per_fold]
  bounds = intervals.of_metrics(whole.label, whole.prob, whole.case)
  table = {}
  for name in metrics.NAMES:
    each = np.array([scores[name] for scores in by_fold])
    defined = each[np.isfinite(each)]
    table[name] = {
      'mean': number(defined.mean() if len(defined) else np.nan),
      'std': number(defined.std(ddof=1) if len(defined) > 1 else np.nan),
      whole_name: number(values[name]),
      'ci_low': number(bounds[name][0]),
      'ci_high': number(bounds[name][1]),
      'per_fold': [number(v) for v in each],
    }
  aurocs, covariance = class_covariance(whole)
  weight = summary_weight(len(classes))
  closed = delong.interval(weight @ aurocs, weight @ covariance @ weight)
  return {
    'metrics': table,
    'auroc_delong': _bounds(closed),
    'per_class': _per_class(whole, values, bounds, aurocs, covariance, classes),
    'confusion': confusion_matrix(
      whole.label, whole.prob.argmax(1), labels=range(len(classes))
    ).tolist(),
  }


def class_covariance(p: Predictions) -> tuple[np.ndarray, np.ndarray]:
  """AUROC of each class against the rest [C] and covariance [C, C]."""
  positive = p.label == np.arange(p.prob.shape[1])[:, None]
  return delong.covariance(positive, p.prob.T, p.case)


def summary_weight(num_classes: int) -> np.ndarray:
  """What the summary AUROC takes of each class's, [C].

  The same as `metrics.evaluate` has it, a mean of classes being a mean of their
  components.
  """
  if num_classes == 2:
    return np.array([0.0, 1.0])
  return np.full(num_classes, 1 / num_classes)


def temperatures(
  folds: dict[int, dict[str, Predictions]],
) -> dict[int, Temperature]:
  """Temperature of each fold's model, fitted on the validation of all folds.

  The patients that the fold tests are left out. A fold's own validation part is
  too small: where a dozen slides are all right, the fit makes the model as sure
  as the bounds allow. The temperature is 1 where there are fewer than
  `LEAST_PATIENTS` patients, or where the fit ends at a bound.
  """
  whole = pool([parts['val'] for parts in folds.values()])
  of_fold = np.repeat(list(folds), [len(p['val']) for p in folds.values()])
  found = {}
  for fold, parts in folds.items():
    seen = ~np.isin(whole.case, parts['test'].case)
    patients = len(set(whole.case[seen]))
    value, reason, at_bound = 1.0, _TOO_FEW, False
    if patients >= LEAST_PATIENTS:
      value = calibration.temperature(whole.label[seen], whole.prob[seen])
      at_bound = calibration.at_bound(value)
      value, reason = (1.0, _AT_BOUND) if at_bound else (value, '')
    found[fold] = Temperature(
      value=value,
      reason=reason,
      at_bound=at_bound,
      patients=patients,
      slides=int(seen.sum()),
      folds=tuple(np.unique(of_fold[seen]).tolist()),
    )
  return found


def scaled(
  folds: dict[int, dict[str, Predictions]], temperature: dict[int, Temperature]
) -> np.ndarray:
  """Test probabilities of all folds at their temperatures, [N, C]."""
  return np.concatenate(
    [
      calibration.scale(parts['test'].prob, temperature[fold].value)
      for fold, parts in folds.items()
    ]
  )


def of_calibration(
  folds: dict[int, dict[str, Predictions]], temperature: dict[int, Temperature]
) -> dict:
  """Calibration of the pooled test parts before and after temperatures."""
  test = pool([parts['test'] for parts in folds.values()])
  after = scaled(folds, temperature)
  return {
    **errors(test.label, test.prob),
    'after_temperature': errors(test.label, after),
    'temperature': [number(t.value) for t in temperature.values()],
    'temperature_reason': [t.reason for t in temperature.values()],
    'temperature_bounds': list(calibration.TEMPERATURES),
    'at_bound': [fold for fold, t in temperature.items() if t.at_bound],
    'bins': _bins(test.label, test.prob),
    'bins_after_temperature': _bins(test.label, after),
  }


def errors(label: np.ndarray, prob: np.ndarray) -> dict[str, float | None]:
  """NLL, Brier score (summed over classes) and ECE."""
  return {
    'nll': number(calibration.nll(label, prob)),
    'brier': number(calibration.brier(label, prob)),
    'ece': number(calibration.ece(label, prob)),
  }


def summarise_external(
  parts: dict[int, Predictions], classes: Sequence[str]
) -> dict:
  """What the models of all folds say of a cohort that none was trained on.

  Args:
    parts: the external slides as each fold's model sees them, by fold.
    classes: names.

  Returns:
    What `of_folds` returns, `ensemble` being the mean probability over folds,
    with the number of slides and cases, the folds, and the ensemble's
    calibration.

  Raises:
    ResultsError: if the folds do not hold the same slides.
  """
  ensemble = mean(parts)
  return {
    'slides': len(ensemble),
    'cases': len(set(ensemble.case)),
    'folds': list(parts),
    **of_folds(ensemble, list(parts.values()), classes, 'ensemble'),
    'calibration': errors(ensemble.label, ensemble.prob),
  }


def _per_class(
  whole: Predictions,
  values: dict[str, np.ndarray],
  bounds: dict[str, np.ndarray],
  aurocs: np.ndarray,
  covariance: np.ndarray,
  classes: Sequence[str],
) -> dict:
  short = {key: key.removeprefix('class_') for key in metrics.CLASS_NAMES}
  table = {}
  for c, name in enumerate(classes):
    row = {short[key]: number(values[key][c]) for key in short}
    row['slides'] = int((whole.label == c).sum())
    for key, of in short.items():
      row[f'{of}_ci_low'], row[f'{of}_ci_high'] = map(number, bounds[key][:, c])
    row['auroc_delong'] = _bounds(delong.interval(aurocs[c], covariance[c, c]))
    table[name] = row
  return table


def _bounds(pair: tuple[float, float]) -> dict[str, float | None]:
  return {'low': number(pair[0]), 'high': number(pair[1])}


def _bins(label: np.ndarray, prob: np.ndarray) -> list[dict]:
  """The reliability of each bin, for whoever draws it anew."""
  bins = calibration.reliability(label, prob)
  return [
    {
      'from': number(bins.edges[i]),
      'to': number(bins.edges[i + 1]),
      'slides': int(bins.count[i]),
      'confidence': number(bins.confidence[i]),
      'accuracy': number(bins.accuracy[i]),
    }
    for i in range(len(bins.count))
  ]
