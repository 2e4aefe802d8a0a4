"""Metrics of classified slides and tiles; NaN where one is undefined."""

import numpy as np

NAMES = ('accuracy', 'balanced_accuracy', 'f1_macro', 'f1_weighted', 'auroc')
CLASS_NAMES = ('precision', 'recall', 'auroc')
BINARY_NAMES = (
  'auroc',
  'auprc',
  'f1',
  'f1_micro',
  'sensitivity',
  'specificity',
)


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
    `precision`, `recall`, `f1` and `support`, [..., C] each; NaN where nothing
    is in the denominator: the recall of a class without slides, the precision
    of one that is never predicted, the F1 of one that is both.
  """
  hit = np.diagonal(table, axis1=-2, axis2=-1)
  predicted, true = table.sum(-2), table.sum(-1)
  return {
    'precision': _ratio(hit, predicted),
    'recall': _ratio(hit, true),
    'f1': _ratio(2 * hit, predicted + true),
    'support': true,
  }


def from_confusion(table: np.ndarray) -> dict[str, np.ndarray]:
  """Accuracies and averaged F1.

  Args:
    table: confusion counts, possibly weighted, [..., C, C].

  Returns:
    `accuracy`; `balanced_accuracy`, the mean recall of the classes that have
    slides; `f1_macro` over the classes that occur as label or prediction; and
    `f1_weighted` by the number of true slides; [...] each, NaN without slides.
  """
  scores = per_class(table)
  total = table.sum((-2, -1))
  hit = np.diagonal(table, axis1=-2, axis2=-1).sum(-1)
  weighted = np.nan_to_num(scores['f1']) * scores['support']
  return {
    'accuracy': _ratio(hit, total),
    'balanced_accuracy': _mean_of_defined(scores['recall']),
    'f1_macro': _mean_of_defined(scores['f1']),
    'f1_weighted': _ratio(weighted.sum(-1), total),
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
  return _ratio(twice, 2 * mine.sum(1) * lowest[:, -1])


def roc(
  positive: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """False and true positive rates from (0, 0) to (1, 1), each [K].

  Args:
    positive: bool [N]; rates of a missing kind are 0.
    score: [N]; equal scores make one sloping step.
  """
  hits, alarms = _sweep(positive, score)
  rate = lambda x: np.append(0, x / max(x[-1], 1))
  return rate(alarms), rate(hits)


def precision_recall(
  positive: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Recall and precision from (0, 1) on, as the threshold falls, each [K].

  Args:
    positive: bool [N]; the recall is 0 throughout if there is none.
    score: [N]; equal scores make one step.
  """
  hits, alarms = _sweep(positive, score)
  recall = hits / max(hits[-1], 1)
  return np.append(0, recall), np.append(1, hits / (hits + alarms))


def average_precision(positive: np.ndarray, score: np.ndarray) -> float:
  """Area below the steps of the precision-recall curve; NaN, no positives."""
  recall, precision = precision_recall(positive, score)
  area = np.sum(np.diff(recall) * precision[1:])
  return float(area) if positive.any() else float('nan')


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


def weighted(
  label: np.ndarray, prob: np.ndarray, weight: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """All metrics under each row of weights.

  Args:
    label: [N].
    prob: [N, C].
    weight: how often each slide counts, [W, N].

  Returns:
    `NAMES` with [W] each, and `CLASS_NAMES` with [W, C] each, all NaN for a
    class without slides. Without slides of every class, AUROC, macro F1 and
    balanced accuracy are NaN: over fewer classes they would be other
    quantities. (`from_confusion` averages what classes there are.)
  """
  num_classes = prob.shape[1]
  cell = label * num_classes + prob.argmax(1)
  table = weight @ np.eye(num_classes**2)[cell]
  table = table.reshape(-1, num_classes, num_classes)
  aurocs = class_aurocs(label, prob, weight)
  classes = per_class(table) | {'auroc': aurocs.T}
  # It is 0 for every model: nothing is known of it.
  classes['precision'][classes['support'] == 0] = np.nan
  scores = from_confusion(table) | {'auroc': summary_auroc(aurocs)}
  lacks_class = (classes['support'] == 0).any(-1)
  for name in ('balanced_accuracy', 'f1_macro'):
    scores[name] = np.where(lacks_class, np.nan, scores[name])
  return (
    {name: scores[name] for name in NAMES},
    {name: classes[name] for name in CLASS_NAMES},
  )


def evaluate(label: np.ndarray, prob: np.ndarray) -> dict[str, float]:
  """All of `NAMES` for slides with labels [N] and probabilities [N, C]."""
  scores, _ = weighted(label, prob, np.ones((1, len(label))))
  return {name: float(value[0]) for name, value in scores.items()}


def evaluate_classes(
  label: np.ndarray, prob: np.ndarray
) -> dict[str, np.ndarray]:
  """All of `CLASS_NAMES`, [C] each, for labels [N], probabilities [N, C]."""
  _, classes = weighted(label, prob, np.ones((1, len(label))))
  return {name: value[0] for name, value in classes.items()}


def evaluate_binary(
  positive: np.ndarray, prob: np.ndarray, threshold: float
) -> dict[str, float]:
  """Metrics of tiles that are called positive from `threshold` on.

  Args:
    positive: bool [N].
    prob: of being positive, [N].
    threshold: probability from which on a tile is called positive.

  Returns:
    `BINARY_NAMES`: the area below the ROC curve; the average precision of the
    positive class; F1 of the positive class; the micro-averaged F1 of both,
    which is the accuracy; sensitivity and specificity. NaN where nothing is in
    the denominator.
  """
  positive, called = positive.astype(int), (prob >= threshold).astype(int)
  table = confusion(positive, called, 2)
  classes = per_class(table)
  values = {
    'auroc': auroc(positive == 1, prob),
    'auprc': average_precision(positive == 1, prob),
    'f1': classes['f1'][1],
    'f1_micro': from_confusion(table)['accuracy'],
    'sensitivity': classes['recall'][1],
    'specificity': classes['recall'][0],
  }
  return {name: float(values[name]) for name in BINARY_NAMES}


def specificity_at(
  positive: np.ndarray,
  prob: np.ndarray,
  sensitivity: float,
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


def _sweep(
  positive: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """True and false positives at every distinct score, from the highest."""
  order = np.argsort(-score, kind='stable')
  last = np.append(np.diff(score[order]) != 0, True)
  return np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
  top, bottom = np.broadcast_arrays(top, bottom)
  return np.divide(
    top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0
  )


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
  """Mean over the last axis of what is not NaN."""
  return _ratio(np.nansum(values, -1), np.isfinite(values).sum(-1))
