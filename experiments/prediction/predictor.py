"""Models at work on one bag, whether of a results folder or of a file."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib

import jax
import numpy as np

from experiments.prediction.card import Card
from kmil_jax import export


@dataclasses.dataclass(frozen=True)
class Predictor:
  """What the models of R folds say of bags, one at a time."""

  card: Card
  predict: Callable[[np.ndarray], dict[str, np.ndarray]]  # of a bag [N, D]

  def __call__(self, features: np.ndarray) -> dict[str, np.ndarray]:
    """Predicts one bag.

    Args:
      features: float32 [N, D].

    Returns:
      See `kmil_jax.export.predict_bag`; `prob` is before any temperature.

    Raises:
      ExportError: if the bag is longer than the model's file takes.
      FloatingPointError: if a probability is not finite.
    """
    output = self.predict(features)
    if not np.isfinite(output['prob']).all():
      raise FloatingPointError('the probabilities are not finite')
    return output


def of_run(folder: pathlib.Path, fold: int | None) -> Predictor:
  """Returns the models of a results folder; see `run_folder.read`."""
  # It imports all models; a file of one does without.
  from experiments.prediction import run_folder

  card, design, weights = run_folder.read(folder, fold)
  return Predictor(card, design.predictor(weights))


def of_file(path: pathlib.Path) -> Predictor:
  """Returns the models of a file of experiments.export.

  Raises:
    ExportError: if it is damaged, or another JAX's.
    PredictionError: if another version wrote its card.
  """
  archive = export.read(path)
  card = Card.from_json(path, archive.card)
  predict = functools.partial(
    export.predict_bag,
    archive.predict(),
    jax.device_put(archive.weights),
    lengths=archive.lengths(),
    # Programs count on as many rows; see `inference.Design.lower`.
    least=card.settings.get('total_instances', 1),
  )
  return Predictor(card, predict)
