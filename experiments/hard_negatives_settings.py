"""What one training of the study of hard negatives is, and what it yields."""

import dataclasses
import pathlib

import numpy as np

from data.labelled_tiles import LabelledTiles
from kmil_jax import mining

WEAK, RANDOM = 'weak', 'random'
CHOICES = (WEAK, *mining.METRICS, RANDOM)
POSITIVE = 1  # Place of the positive class.


@dataclasses.dataclass(frozen=True)
class Setting:
  """One training.

  Attributes:
    seed: of parameters, order and augmentation.
    choice: 'weak', without negatives of the pool; or by which metric they are
      chosen; or 'random', as many as the study's metric chooses.
    alpha: negatives per false positive.
    share: per cent of the annotated training part that is used.
    of: 'all' tiles or the 'positives' alone are reduced to that share.
  """

  seed: int
  choice: str = WEAK
  alpha: int = 20
  share: int = 100
  of: str = 'all'

  def weak(self) -> 'Setting':
    """The setting of the weak model that mines for this one."""
    return dataclasses.replace(self, choice=WEAK, alpha=0).canonical()

  def canonical(self) -> 'Setting':
    """The setting with what makes no difference as it is by default."""
    return dataclasses.replace(
      self,
      of='all' if self.share == 100 else self.of,
      alpha=0 if self.choice == WEAK else self.alpha,
    )

  def path(self) -> pathlib.Path:
    """Its folder within the experiment's."""
    last = self.choice if self.choice == WEAK else f'{self.choice}_{self.alpha}'
    return pathlib.Path(f'seed_{self.seed}', f'{self.of}_{self.share}', last)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a model says of its test part, and what it was trained on."""

  id: np.ndarray  # [n]
  group: np.ndarray  # [n]
  label: np.ndarray  # [n]
  prob: np.ndarray  # [n], of the positive class
  false_positives: int = 0  # of the weak model, that mined
  mined: tuple[str, ...] = ()  # ids of the pool's tiles that were chosen
  leaked: tuple[int, int] = (0, 0)  # of those, in validation and test part


def perturb(
  tiles: LabelledTiles, share: int, of: str, seed: int
) -> LabelledTiles:
  """Returns a random share of the tiles, or of the positives and all others.

  Unlike Lee et al., each class is reduced by itself, and keeps a tile at least;
  a smaller share is a subset of a larger one.

  Args:
    tiles: the annotated training part.
    share: per cent.
    of: 'all' or 'positives'.
    seed: of the draw.
  """
  if share == 100:
    return tiles
  kept = []
  for c in range(len(tiles.classes)):
    rows = np.flatnonzero(tiles.label == c)
    if len(rows) and (of == 'all' or c == POSITIVE):
      count = max(1, round(len(rows) * share / 100))
      rows = np.random.default_rng([seed, c]).permutation(rows)[:count]
    kept.append(rows)
  return tiles.take(np.sort(np.concatenate(kept)))
