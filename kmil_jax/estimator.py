"""A bag model with the methods of scikit-learn's classifiers.

It stands in a module of its own, as scikit-learn takes a second to import.
"""

from collections.abc import Hashable, Sequence
from typing import Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from kmil_jax import library
from kmil_jax.types import Recipe


class BagClassifier(ClassifierMixin, BaseEstimator):
  """A bag model for `clone`, `cross_val_score`, `GridSearchCV` and their kin.

  `fit` trains `folds` models on the bags it is given, each validated on other
  patients; what it predicts is the mean of all.

  Attributes:
    classes_: names, in the order of probabilities.
    trained_: the `library.Trained`, which has the attention, too.
  """

  def __init__(
    self,
    model: str = 'kmil',
    *,
    folds: int = 3,
    seed: int = 2023,
    recipe: Recipe | None = None,
  ):
    """See `kmil_jax.fit` for all of them."""
    self.model = model
    self.folds = folds
    self.seed = seed
    self.recipe = recipe

  def fit(
    self,
    bags: Sequence[np.ndarray],
    y: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
  ) -> Self:
    """Trains the models.

    Args:
      bags: features of n bags, [N_i, D].
      y: class of each bag.
      groups: patient of each bag; by default every bag is a patient.

    Raises:
      ValueError: as of `kmil_jax.fit`.
    """
    self.trained_ = library.fit(bags, y, patients=groups, **self.get_params())
    self.classes_ = np.array(self.trained_.classes)
    return self

  def predict_proba(self, bags: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the probabilities of bags, [m, C]."""
    check_is_fitted(self)
    return self.trained_.predict(bags)

  def predict(self, bags: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the likeliest class of bags, [m]."""
    return self.classes_[self.predict_proba(bags).argmax(1)]
