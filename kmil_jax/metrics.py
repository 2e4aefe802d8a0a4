"""Classification metrics of slides, NumPy, with patient-cluster intervals."""

from collections.abc import Sequence

import numpy as np

NAMES = ('accuracy', 'f1_macro', 'f1_weighted', 'auroc')


def confusion(
  label: np.ndarray, pred: np.ndarray, num_classes: int
) -> np.ndarray:
  """Counts [C, C] of slides by true class (row) and predicted class."""
  table = np.zeros((num_classes, num_classes), int)
  np.add.at(table, (label, pred), 1)
  return table


def per_class(table: np.ndarray) -> dict[str, np.ndarray]:
  """Precision, recall and F1 of every class.

  Args:
    table: confusion counts, possibly weighted, [..., C, C].

  Returns:
    `precision`, `recall`, `f1` and `support`, [..., C] each; a ratio with
    nothing in its denominator is 0, as in scikit-learn.
  """
  hit = np.diagonal(table, axis1=-2, axis2=-1)
  said, true = table.sum(-2), table.sum(-1)
  return {
    'precision': _ratio(hit, said),
    'recall': _ratio(hit, true),
    'f1': _ratio(2 * hit, said + true),
    'support': true,
  }


def from_confusion(table: np.ndarray) -> dict[str, np.ndarray]:
  """Accuracy and averaged F1.

  Args:
    table: confusion counts, possibly weighted, [..., C, C].

  Returns:
    `accuracy`, `f1_macro` over the classes that occur as label or prediction,
    and `f1_weighted` by the number of true slides; [...] each.
  """
  scores = per_class(table)
  occurs = (table.sum(-2) + table.sum(-1)) > 0
  total = table.sum((-2, -1))
  hit = np.diagonal(table, axis1=-2, axis2=-1).sum(-1)
  return {
    'accuracy': _ratio(hit, total),
    'f1_macro': _ratio((scores['f1'] * occurs).sum(-1), occurs.sum(-1)),
    'f1_weighted': _ratio((scores['f1'] * scores['support']).sum(-1), total),
  }


def auroc(
  positive: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None
) -> np.ndarray:
  """Probability that a positive scores higher than a negative, ties half.

  Args:
    positive: bool [N].
    score: [N].
    weight: how often each slide counts, [W, N]; once by default.

  Returns:
    [W], or a scalar without weights; NaN where either kind is missing.
  """
  if weight is None:
    return auroc(positive, score, np.ones((1, len(score))))[0]
  # Sorted by score, every positive wins over the negatives below it.
  values, group = np.unique(score, return_inverse=True)
  above, below = np.zeros((2, len(weight), len(values)))
  for table, part in ((above, positive), (below, ~positive)):
    np.add.at(table, (slice(None), group[part]), weight[:, part])
  wins = above * (np.cumsum(below, -1) - 0.5 * below)
  pairs = above.sum(-1) * below.sum(-1)
  return np.divide(
    wins.sum(-1), pairs, out=np.full(len(weight), np.nan), where=pairs > 0
  )


def roc(
  positive: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """False and true positive rates from (0, 0) to (1, 1), each [K].

  Args:
    positive: bool [N]; rates of a missing kind are 0.
    score: [N]; equal scores make one sloping step.
  """
  order = np.argsort(-score, kind='stable')
  last = np.append(np.diff(score[order]) != 0, True)
  hits = np.cumsum(positive[order])[last]
  alarms = np.cumsum(~positive[order])[last]
  rate = lambda x: np.append(0, x / max(x[-1], 1))
  return rate(alarms), rate(hits)


def class_aurocs(
  label: np.ndarray, prob: np.ndarray, weight: np.ndarray | None = None
) -> np.ndarray:
  """AUROC of each class against the rest, [C] or [C, W]; see `auroc`."""
  return np.stack(
    [auroc(label == c, prob[:, c], weight) for c in range(prob.shape[1])]
  )


def summary_auroc(aurocs: np.ndarray) -> np.ndarray:
  """Macro average over classes, or the second class's AUROC of two.

  Args:
    aurocs: of every class, [C, ...].

  Returns:
    [...]; NaN where a class is missing: an average over fewer classes would be
    another quantity.
  """
  return aurocs[1] if len(aurocs) == 2 else aurocs.mean(0)


def evaluate(label: np.ndarray, prob: np.ndarray) -> dict[str, float]:
  """All of `NAMES` for slides with labels [N] and probabilities [N, C]."""
  table = confusion(label, prob.argmax(1), prob.shape[1])
  scores = from_confusion(table)
  scores['auroc'] = summary_auroc(class_aurocs(label, prob))
  return {name: float(scores[name]) for name in NAMES}


def bootstrap(
  label: np.ndarray,
  prob: np.ndarray,
  case: Sequence[str],
  *,
  resamples: int = 2000,
  seed: int = 0,
) -> dict[str, tuple[float, float]]:
  """95 % percentile intervals from resampled patients.

  Slides of one patient are not independent, so patients are drawn with
  replacement and bring all their slides (cluster bootstrap; Field and Welsh,
  JRSS B 2007). Resamples in which a class is missing leave the AUROC out.

  Args:
    label: [N].
    prob: [N, C].
    case: patient of each slide, [N].
    resamples: number of resamples, W.
    seed: of the draws.

  Returns:
    (low, high) for each of `NAMES`; NaN where it is undefined everywhere.
  """
  names, patient = np.unique(case, return_inverse=True)
  rng = np.random.default_rng(seed)
  counts = rng.multinomial(
    len(names), np.full(len(names), 1 / len(names)), size=resamples
  )
  weight = counts[:, patient].astype(float)  # [W, N]
  num_classes = prob.shape[1]
  cell = label * num_classes + prob.argmax(1)
  table = weight @ np.eye(num_classes**2)[cell]
  scores = from_confusion(table.reshape(-1, num_classes, num_classes))
  scores['auroc'] = summary_auroc(class_aurocs(label, prob, weight))
  return {name: _interval(scores[name]) for name in NAMES}


def _interval(values: np.ndarray) -> tuple[float, float]:
  values = values[np.isfinite(values)]
  if not len(values):
    return float('nan'), float('nan')
  low, high = np.percentile(values, [2.5, 97.5])
  return float(low), float(high)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
  top, bottom = np.broadcast_arrays(top, bottom)
  return np.divide(
    top, bottom, out=np.zeros(top.shape, float), where=bottom > 0
  )
