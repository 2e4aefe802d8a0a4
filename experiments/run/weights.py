"""Reads weights, and notices where a file of this software was changed."""

import pathlib

import numpy as np

from data import weights
from data.weights import WeightsError
from kmil_jax import checksums


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a file of named weights; see `data.weights.read`.

  Raises:
    WeightsError: as that, or if the file is not the one that was written.
  """
  file = weights.file_of(path)
  if damaged := checksums.damage(file.parent, file.name):
    raise WeightsError(
      f'{damaged} was changed since it was written. Run the command that'
      f' trained {file} again, which trains it anew.'
    )
  return weights.read(file)
