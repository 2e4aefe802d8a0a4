"""Files of the study of hard negatives: features, predictions, choices."""

import pathlib
from typing import Any, Protocol

import numpy as np

from data.files import replacing
from data.labelled_tiles import LabelledTiles
from experiments import files
from experiments.hard_negatives_settings import Outcome
from kmil_jax import mining, parallel

_CHUNK = 4096  # Tiles whose features are in memory at once.


class Model(Protocol):
  """A trained patch classifier, as `training.Trained`."""

  def predict(self, tiles: LabelledTiles) -> tuple[np.ndarray, np.ndarray]: ...


def pool_features(
  path: pathlib.Path, model: Model, pool: LabelledTiles
) -> np.ndarray:
  """Returns the pool's features, computed once and mapped from a file."""
  if not parallel.agree(path.exists()):
    chunks = (
      model.predict(pool.take(np.arange(i, min(i + _CHUNK, len(pool)))))[1]
      for i in range(0, len(pool), _CHUNK)
    )
    first = next(chunks)
    with replacing(path) as part:
      shape = (len(pool), first.shape[1])
      file = np.lib.format.open_memmap(part, 'w+', np.float32, shape)
      file[: len(first)], done = first, len(first)
      for some in chunks:
        file[done : done + len(some)] = some
        done += len(some)
      file.flush()
  parallel.wait_for_all('pool')
  return np.load(path, mmap_mode='r')


def write_predictions(folder: pathlib.Path, found: Outcome) -> None:
  """Writes predictions.csv: what a model says of its test part."""
  columns = (found.id, found.group, found.label, found.prob)
  lines: list[Any] = [('tile', 'group', 'label', 'prob_positive')]
  lines += zip(*(c.tolist() for c in columns), strict=True)
  files.write_csv(folder / 'predictions.csv', lines)


def write_mined(
  folder: pathlib.Path, mined: mining.Mined, pool: np.ndarray, asked: np.ndarray
) -> None:
  """Writes mined.csv: tiles of the pool that were chosen, and why.

  Args:
    folder: of the training.
    mined: what was chosen; at random where the query is -1.
    pool: ids of the pool, [M].
    asked: ids of the false positives, [Q].
  """
  lines: list[Any] = [('tile', 'distance', 'false_positive')]
  for i, d, q in zip(mined.index, mined.distance, mined.query, strict=True):
    lines.append(
      (pool[i], '' if q < 0 else f'{d:.6g}', asked[q] if q >= 0 else '')
    )
  files.write_csv(folder / 'mined.csv', lines)
