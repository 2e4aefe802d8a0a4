"""Metrics of classified slides and tiles; NaN where one is undefined."""

import numpy as np

NAMES = ('accuracy', 'balanced_accuracy', 'f1_macro', 'f1_weighted', 'auroc')
CLASS_NAMES = ('class_precision', 'class_recall', 'class_auroc')
# Over fewer classes they would be other quantities.
OF_ALL_CLASSES = ('balanced_accuracy', 'f1_macro', 'auroc')


def from_confusion(table: np.ndarray) -> dict[str, np.ndarray]:
  """Accuracies, and precision, recall and F1 of every class.

  Args:
    table: confusion counts, possibly weighted, [..., C, C].

  Returns:
    `accuracy`; `balanced_accuracy`, the mean recall of the classes that have
    slides; `f1_macro` over the classes that occur as label or prediction; and
    `f1_weighted` by the number of true slides; [...] each, NaN without slides.
    `class_precision`, `class_recall` and `class_f1`, [..., C] each; NaN where
    nothing is in the denominator: the recall of a class without slides, the
    precision of one that is never predicted, the F1 of one that is both.
  """
  hit = np.diagonal(table, axis1=-2, axis2=-1)
  predicted, true = table.sum(-2), table.sum(-1)
  recall, f1 = ratio(hit, true), ratio(2 * hit, predicted + true)
  mean = lambda x: ratio(np.nansum(x, -1), np.isfinite(x).sum(-1))
  return {
    'accuracy': ratio(hit.sum(-1), true.sum(-1)),
    'balanced_accuracy': mean(recall),
    'f1_macro': mean(f1),
    'f1_weighted': ratio((np.nan_to_num(f1) * true).sum(-1), true.sum(-1)),
    'class_precision': ratio(hit, predicted),
    'class_recall': recall,
    'class_f1': f1,
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
  order = np.argsort(score, kind='stable')
  negative = order[~positive[order]]
  # Weight of the k lowest negatives, for k from 0.
  lowest = np.zeros((len(weight), len(negative) + 1))
  np.cumsum(weight[:, negative], axis=1, out=lowest[:, 1:])
  below, up_to = (
    np.searchsorted(score[negative], score[positive], side)
    for side in ('left', 'right')
  )
  mine = weight[:, positive]
  twice = np.einsum('wi,wi->w', mine, lowest[:, below] + lowest[:, up_to])
  return ratio(twice, 2 * mine.sum(1) * lowest[:, -1])


def evaluate(
  label: np.ndarray, prob: np.ndarray, weight: np.ndarray | None = None
) -> dict[str, np.ndarray]:
  """All metrics, under each row of weights.

  The AUROC of a class is against the rest; that of all is the macro average,
  or the second class's of two.

  Args:
    label: [N].
    prob: [N, C].
    weight: how often each slide counts, [W, N]; once by default.

  Returns:
    `NAMES` with [W] each, and `CLASS_NAMES` with [W, C] each, all NaN for a
    class without slides; without weights, scalars and [C]. Without slides of
    every class, `OF_ALL_CLASSES` are NaN. (`from_confusion` averages what
    classes there are.)
  """
  if weight is None:
    scores = evaluate(label, prob, np.ones((1, len(label))))
    return {name: value[0] for name, value in scores.items()}
  num_classes = prob.shape[1]
  cell = label * num_classes + prob.argmax(1)
  table = weight @ np.eye(num_classes**2)[cell]
  table = table.reshape(-1, num_classes, num_classes)
  aurocs = np.stack(
    [auroc(label == c, prob[:, c], weight) for c in range(num_classes)]
  )
  scores = from_confusion(table) | {
    'auroc': aurocs[1] if num_classes == 2 else aurocs.mean(0),
    'class_auroc': aurocs.T,
  }
  absent = table.sum(-1) == 0
  # It is 0 for every model: nothing is known of it.
  scores['class_precision'][absent] = np.nan
  for name in OF_ALL_CLASSES:
    scores[name][absent.any(-1)] = np.nan
  return {name: scores[name] for name in NAMES + CLASS_NAMES}


def evaluate_binary(
  positive: np.ndarray, prob: np.ndarray, threshold: float
) -> dict[str, float]:
  """Metrics of tiles that are called positive from `threshold` on.

  Args:
    positive: bool [N].
    prob: of being positive, [N].
    threshold: probability from which on a tile is called positive.

  Returns:
    `auroc`; `auprc`, the average precision of the positive class; `f1` of the
    positive class; `f1_micro`, the micro-averaged F1 of both, which is the
    accuracy; `sensitivity` and `specificity`. NaN where nothing is in the
    denominator.
  """
  # A second to import.
  from sklearn.metrics import average_precision_score, confusion_matrix

  table = confusion_matrix(positive, prob >= threshold, labels=[False, True])
  scores = from_confusion(table)
  auprc = average_precision_score(positive, prob) if positive.any() else np.nan
  values = {
    'auroc': auroc(positive, prob),
    'auprc': auprc,
    'f1': scores['class_f1'][1],
    'f1_micro': scores['accuracy'],
    'sensitivity': scores['class_recall'][1],
    'specificity': scores['class_recall'][0],
  }
  return {name: float(value) for name, value in values.items()}


def specificity_at(
  positive: np.ndarray, prob: np.ndarray, sensitivity: float
) -> float:
  """Specificity at the highest threshold that reaches a sensitivity.

  Models are compared at equal sensitivity: their probabilities need not mean
  the same.

  Args:
    positive: bool [N].
    prob: of being positive, [N].
    sensitivity: share of positives that must be called so, above 0.

  Returns:
    The share of negatives below the threshold; NaN without either kind.
  """
  if not positive.any() or positive.all():
    return float('nan')
  ordered = np.sort(prob[positive])[::-1]
  # A sum of thirds may come out just above what was asked for.
  needed = int(np.ceil(sensitivity * len(ordered) - 1e-9))
  return float((prob[~positive] < ordered[max(needed, 1) - 1]).mean())


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
  """Returns top / bottom; NaN where the bottom is not above 0."""
  top, bottom = np.broadcast_arrays(top, bottom)
  return np.divide(
    top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0
  )
