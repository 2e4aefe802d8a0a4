"""Trains weak models, mines a pool with them and trains strong ones."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib

import numpy as np

from data import labelled_tiles
from data.labelled_tiles import LabelledTiles, TileError
from experiments import hard_negatives_files
from experiments.hard_negatives_files import Model
from experiments.hard_negatives_settings import (
  POSITIVE,
  RANDOM,
  WEAK,
  Outcome,
  Setting,
  perturb,
)
from experiments.patches import tiles as patch_tiles
from experiments.run import results
from kmil_jax import mining, parallel


@dataclasses.dataclass(frozen=True)
class _Weak:
  """What a weak model says."""

  outcome: Outcome
  rows: np.ndarray  # of the validation part, its false positives
  queries: np.ndarray  # their features, [Q, F]
  pool: np.ndarray  # features, [M, F], mapped from a file


class Study:
  """Trainings on one split of the annotated tiles, done once each.

  The split is made before anything is mined and by annotated tiles alone;
  what is mined joins the training part.

  Attributes:
    train, val, test: annotated tiles.
    pool: tiles of slides without a positive; label 0.
    notes: what a reader should know of the trainings so far.

  Args:
    folder: of the experiment.
    annotated: tiles of two classes, the second positive.
    pool: see above; classes as `annotated`.
    fit: `training.train` but for folder, name, tiles and seed.
    fractions: of the parts.
    seed: of the split and of the perturbations.
    threshold: probability from which on a negative is a false positive.
    metric: whose count the random control has.
    leaking: as the released code of Lee et al. does: negatives are random, and
      annotated and chosen tiles are split anew, together.

  Raises:
    TileError: if the tiles cannot be split, the pool is empty, or some slides
      of it are annotated.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    annotated: LabelledTiles,
    pool: LabelledTiles,
    *,
    fit: Callable[..., Model],
    fractions: tuple[float, float, float],
    seed: int,
    threshold: float,
    metric: str,
    leaking: bool = False,
  ):
    if not len(pool):
      raise TileError('the pool holds no tile: nothing can be mined')
    if both := sorted(set(annotated.group) & set(pool.group)):
      raise TileError(
        f'{len(both)} patients or slides are annotated and in the pool:'
        f' {", ".join(both[:5])}; their tiles in the pool may be those of the'
        ' test part: leave them out'
      )
    self._split = functools.partial(
      patch_tiles.split, fractions=fractions, seed=seed
    )
    self._annotated, self.pool = annotated, pool
    parts = self._split(annotated)
    self.train, self.val, self.test = (annotated.take(rows) for rows in parts)
    self._folder, self._fit, self._seed = folder, fit, seed
    self._threshold, self._metric = threshold, metric
    self._leaking = leaking
    self._outcomes: dict[Setting, Outcome] = {}
    self._weak: dict[Setting, _Weak] = {}
    self._mined: dict[Setting, mining.Mined] = {}
    self.notes: list[str] = []

  def model(self, setting: Setting) -> Model:
    """Returns the model of a setting that was run: its folder is loaded."""
    train, val, _, _ = self._tiles(setting.canonical())
    return self._trained(setting.canonical(), train, val)

  def false_positives(self, setting: Setting) -> np.ndarray:
    """Returns the rows of the validation part that a weak model mines with."""
    return self._weak_of(setting).rows

  def outcome(self, setting: Setting) -> Outcome:
    """Trains, or loads, the model of a setting and tests it."""
    setting = setting.canonical()
    if setting not in self._outcomes:
      weak = self._weak_of(setting)
      # Without false positives nothing is added: the weak model is the result.
      if setting.choice == WEAK or not len(weak.rows):
        found = weak.outcome
      else:
        found = self._strong(setting, weak)
      self._outcomes[setting] = found
    return self._outcomes[setting]

  def mined(self, setting: Setting) -> mining.Mined:
    """Returns what a setting takes from the pool, none without queries."""
    setting = setting.canonical()
    if setting not in self._mined:
      self._mined[setting] = self._mine(setting)
    return self._mined[setting]

  def _strong(self, setting: Setting, weak: _Weak) -> Outcome:
    train, val, test, ids = self._tiles(setting)
    model = self._trained(setting, train, val)
    leaked = tuple(int(np.isin(part.id, ids).sum()) for part in (val, test))
    found = Outcome(
      *_columns(test),
      prob=model.predict(test)[0][:, POSITIVE],
      false_positives=len(weak.rows),
      mined=tuple(ids.tolist()),
      leaked=leaked,
    )
    self._write(setting, found)
    return found

  def _tiles(
    self, setting: Setting
  ) -> tuple[LabelledTiles, LabelledTiles, LabelledTiles, np.ndarray]:
    """Returns training, validation and test part, and the ids mined."""
    reduce = functools.partial(
      perturb, share=setting.share, of=setting.of, seed=self._seed
    )
    if setting.choice == WEAK:
      return reduce(self.train), self.val, self.test, np.array([], str)
    chosen = self.pool.take(self.mined(setting).index)
    if self._leaking:  # WRONG, and what the released code does.
      both = labelled_tiles.concatenate([self._annotated, chosen])
      train, val, test = (both.take(rows) for rows in self._split(both))
      return reduce(train), val, test, chosen.id
    train = labelled_tiles.concatenate([reduce(self.train), chosen])
    return train, self.val, self.test, chosen.id

  def _trained(
    self, setting: Setting, train: LabelledTiles, val: LabelledTiles
  ) -> Model:
    return self._fit(
      results.Folder(self._folder),
      str(setting.path()),
      train=train,
      val=val,
      seed=setting.seed,
    )

  def _mine(self, setting: Setting) -> mining.Mined:
    weak = self._weak_of(setting)
    if setting.choice != RANDOM:
      return mining.mine(
        weak.queries, weak.pool, setting.alpha, metric=setting.choice
      )
    rng = np.random.default_rng([self._seed, setting.seed, setting.alpha])
    if self._leaking:
      count = min(setting.alpha * len(weak.rows), len(self.pool))
    else:
      like = dataclasses.replace(setting, choice=self._metric)
      count = len(self.mined(like).index)
    chosen = rng.permutation(len(self.pool))[:count]
    return mining.Mined(chosen, np.full(count, np.nan), np.full(count, -1))

  def _weak_of(self, setting: Setting) -> _Weak:
    setting = setting.weak()
    if setting not in self._weak:
      train, val, test, _ = self._tiles(setting)
      model = self._trained(setting, train, val)
      prob, features = model.predict(val)
      alarm = prob[:, POSITIVE] >= self._threshold
      rows = np.flatnonzero((val.label != POSITIVE) & alarm)
      if not len(rows):
        highest = prob[val.label != POSITIVE, POSITIVE].max()
        self.notes.append(
          f'{setting.path()}: no negative of the validation part reaches'
          f' --threshold={self._threshold:g} (the highest: {highest:.3g}), so'
          ' that nothing is mined and the strong model is the weak one. Lower'
          ' the threshold, or annotate more negatives.'
        )
      outcome = Outcome(
        *_columns(test), prob=model.predict(test)[0][:, POSITIVE]
      )
      path = self._folder / setting.path() / 'pool_features.npy'
      pool = hard_negatives_files.pool_features(path, model, self.pool)
      self._weak[setting] = _Weak(outcome, rows, features[rows], pool)
      self._write(setting, outcome)
    return self._weak[setting]

  def _write(self, setting: Setting, found: Outcome) -> None:
    """Writes predictions, and what was mined, beside the model."""
    if not parallel.is_first():
      return
    folder = self._folder / setting.path()
    hard_negatives_files.write_predictions(folder, found)
    if setting.choice != WEAK:
      rows = self._weak_of(setting).rows
      hard_negatives_files.write_mined(
        folder, self.mined(setting), self.pool.id, self.val.id[rows]
      )


def _columns(tiles: LabelledTiles) -> tuple[np.ndarray, ...]:
  return tiles.id, tiles.group, tiles.label
