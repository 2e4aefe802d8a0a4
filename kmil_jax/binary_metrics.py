"""Metrics of one positive class: at a threshold, and over all of them."""

import numpy as np

from kmil_jax import intervals, metrics

NAMES = ('auroc', 'auprc', 'f1', 'f1_micro', 'sensitivity', 'specificity')


def evaluate(
  positive: np.ndarray, prob: np.ndarray, threshold: float
) -> dict[str, float]:
  """Metrics of tiles that are called positive from `threshold` on.

  Args:
    positive: bool [N].
    prob: of being positive, [N].
    threshold: probability from which on a tile is called positive.

  Returns:
    `NAMES`: the area below the ROC curve; the average precision of the
    positive class; F1 of the positive class; the micro-averaged F1 of both,
    which is the accuracy; sensitivity and specificity. NaN where nothing is in
    the denominator.
  """
  positive, called = positive.astype(int), (prob >= threshold).astype(int)
  table = metrics.confusion(positive, called, 2)
  classes = metrics.per_class(table)
  values = {
    'auroc': metrics.auroc(positive == 1, prob),
    'auprc': metrics.average_precision(positive == 1, prob),
    'f1': classes['f1'][1],
    'f1_micro': metrics.from_confusion(table)['accuracy'],
    'sensitivity': classes['recall'][1],
    'specificity': classes['recall'][0],
  }
  return {name: float(values[name]) for name in NAMES}


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


def auroc_replicates(
  positive: np.ndarray,
  probs: np.ndarray,
  group: np.ndarray,
  *,
  resamples: int = 2000,
) -> np.ndarray:
  """Mean AUROC of several models on resampled groups.

  The draws depend on `group` alone: the replicates of two lists of models on
  the same tiles are paired.

  Args:
    positive: bool [N].
    probs: of R models, of being positive, [R, N].
    group: patient or slide of each tile, [N], drawn with all its tiles.
    resamples: number of resamples, W.

  Returns:
    [W]; NaN as `intervals.replicates` has it.
  """
  draws = []
  for prob in probs:
    overall, _ = intervals.replicates(
      positive.astype(int),
      np.stack([1 - prob, prob], 1),
      group,
      resamples=resamples,
    )
    draws.append(overall['auroc'])
  return np.mean(draws, 0)
