"""Models at work on one bag, whether of a results folder or of a file."""

from collections.abc import Mapping, Sequence
import pathlib

import jax
import numpy as np

from experiments.prediction.card import Card
from kmil_jax import export


class Predictor:
  """What the models of R folds say of bags, one at a time.

  Attributes:
    card: of the models.
  """

  def __init__(
    self,
    card: Card,
    predict: export.Predict,
    weights: Mapping[str, np.ndarray],
    lengths: Sequence[int] | None = None,
    least: int = 1,
  ):
    """Puts the weights on the device.

    Args:
      card: of the models.
      predict: see `kmil_jax.inference.Design.predict`.
      weights: what it takes.
      lengths: that bags can be padded to; None for any.
      least: length that bags are padded to at least.
    """
    self.card = card
    self._predict = predict
    self._weights = jax.device_put(dict(weights))
    self._lengths = lengths
    self._least = least

  def __call__(self, features: np.ndarray) -> dict[str, np.ndarray]:
    """Predicts one bag.

    Args:
      features: float32 [N, D].

    Returns:
      `prob` [R, C], before any temperature, `attention` [R, N, A],
      `instance_prob` [R, N, C] and `kept` [R, N].

    Raises:
      ExportError: if the bag is longer than the model's file takes.
      FloatingPointError: if a probability is not finite.
    """
    count = len(features)
    length = export.padded_length(count, self._lengths, self._least)
    x = np.zeros((length, features.shape[1]), np.float32)
    x[:count] = features
    said = jax.device_get(self._predict(self._weights, x, np.int32(count)))
    if not np.isfinite(said['prob']).all():
      raise FloatingPointError('the probabilities are not finite')
    return {
      name: value if name == 'prob' else value[:, :count]
      for name, value in said.items()
    }


def of_run(folder: pathlib.Path, fold: int | None) -> Predictor:
  """Returns the models of a results folder; see `run_folder.read`."""
  # It imports all models; a file of one does without.
  from experiments.prediction import run_folder

  card, design, weights = run_folder.read(folder, fold)
  return Predictor(card, jax.jit(design.predict), weights)


def of_file(path: pathlib.Path) -> Predictor:
  """Returns the models of a file of experiments.export.

  Raises:
    ExportError: if it is damaged, or another JAX's.
    PredictionError: if another version wrote its card.
  """
  archive = export.read(path)
  card = Card.from_json(path, archive.card)
  return Predictor(
    card,
    archive.predict(),
    archive.weights,
    archive.lengths(),
    # Programs count on as many rows; see `inference.Design.lower`.
    card.settings.get('total_instances', 1),
  )
