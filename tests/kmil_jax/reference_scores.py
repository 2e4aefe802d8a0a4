"""Drawn predictions, and what scikit-learn and resamples make of them."""

import warnings

from hypothesis import strategies as st
import numpy as np
from sklearn import metrics as reference

from kmil_jax import intervals


@st.composite
def predictions(draw, min_classes=2):
  """Labels and probabilities, often with ties and absent classes."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  n, c = draw(st.integers(1, 40)), draw(st.integers(min_classes, 5))
  label = rng.integers(0, draw(st.integers(1, c)), n)
  prob = rng.dirichlet(np.ones(c), n)
  if draw(st.booleans()):
    prob = np.round(prob, 1)
  return label, prob, rng


def in_f1(label, pred, average):
  return reference.f1_score(label, pred, average=average, zero_division=0)


def in_balance(label, pred):
  with warnings.catch_warnings():  # That a class is predicted alone.
    warnings.simplefilter('ignore')
    return reference.balanced_accuracy_score(label, pred)


def reference_scores(label, prob):
  """All metrics by scikit-learn; NaN where it has no AUROC."""
  pred = prob.argmax(1)
  classes = prob.shape[1]
  auroc = np.nan
  if len(set(label)) == classes:
    parts = range(1, 2) if classes == 2 else range(classes)
    auroc = np.mean(
      [reference.roc_auc_score(label == c, prob[:, c]) for c in parts]
    )
  return {
    'accuracy': reference.accuracy_score(label, pred),
    'balanced_accuracy': in_balance(label, pred),
    'f1_macro': in_f1(label, pred, 'macro'),
    'f1_weighted': in_f1(label, pred, 'weighted'),
    'auroc': auroc,
  }


def bootstrap(label, prob, case, **options):
  """Percentile intervals of all metrics, shares too."""
  drawn = intervals.replicates(label, prob, case, **options)
  return {name: intervals.percentile(values) for name, values in drawn.items()}
