"""Trains the runs of an experiment together, stage by stage."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from data import plan as plans
from data.splits import Split, SplitError
from experiments import choosing, progress
from experiments.feed import Feed
from kmil_jax import checkpoint, epochs, fit, parallel, selection, train
from kmil_jax.inference import Design
from kmil_jax.models import SPECS
from kmil_jax.models.kmil import Choice
from kmil_jax.types import Pairs, Plan, Recipe


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is trained and how."""

  model: str  # of SPECS
  recipe: Recipe
  chooser_recipe: Recipe  # of the first stage, where the model has one
  seed: int
  precision: str = 'float32'
  # Where the model has a first stage.
  choice: Choice = dataclasses.field(default_factory=Choice)
  combine: bool = False
  stream: bool | None = None  # None: where the features do not fit
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  tensorboard: bool = False  # event files beside metrics.jsonl

  @property
  def has_chooser(self) -> bool:
    return SPECS[self.model].chooser is not None

  def design(self, num_classes: int, width: int) -> Design:
    """Returns what predicts with the models so trained."""
    return Design(
      model=self.model,
      num_classes=num_classes,
      width=width,
      precision=self.precision,
      choice=self.choice,
      combine=self.combine,
      options=self.options,
    )


@dataclasses.dataclass(frozen=True)
class Run:
  """One fold under one choice of instances, and where its results go."""

  folder: pathlib.Path  # <results>/fold_<i>
  fold: int
  choice: Choice


@dataclasses.dataclass(frozen=True)
class Trained:
  """What training leaves of R runs."""

  trainer: train.Trainer
  params: Any  # [R, ...]
  chooser_params: Any  # [R, ...] of the first stage, None without one
  keep: np.ndarray | None  # bool [R, T], instances that each run sees
  best_epoch: np.ndarray  # [R]
  prob: dict[str, list[np.ndarray]]  # by part, per run [slides, C]


def train_runs(
  feed: Feed,
  splits: Sequence[Split],
  runs: Sequence[Run],
  settings: Settings,
  state_dir: pathlib.Path,
) -> Trained:
  """Trains all stages of a model for several runs in one program each.

  Runs of one fold that differ in their choice share its first stage.

  Args:
    feed: the cohort.
    splits: of all folds.
    runs: what to train; metrics.jsonl goes to each run's folder.
    settings: of all runs, but for the choices, which are the runs' own.
    state_dir: where unfinished training is kept.

  Returns:
    The chosen parameters of the runs and their validation and test
    predictions. Training that was killed goes on from its last checkpoint and
    returns the same.

  Raises:
    data.splits.SplitError: if the recipe selects by an AUROC that a validation
      part does not have.
  """
  folds = [run.fold for run in runs]
  keep = chooser_params = None
  if settings.has_chooser:
    # The folders of each fold; any of its runs will do for the rest.
    folders = {f: [r.folder for r in runs if r.fold == f] for f in folds}
    stage = chooser_stage(feed, settings, len(folders))
    done = _train_stage(
      stage, feed, splits, list(folders.items()), settings, state_dir
    )
    first = np.array([list(folders).index(f) for f in folds])
    chooser_params = jax.tree.map(lambda x: x[first], done.state.best)
    keep = choosing.choose(
      feed,
      stage.trainer,
      done.state.best,
      first,
      [run.choice for run in runs],
    )
    del done, stage  # Their copy of the features makes room for the model's.
  stage = model_stage(feed, settings, len(runs))
  named = [(run.fold, [run.folder]) for run in runs]
  done = _train_stage(stage, feed, splits, named, settings, state_dir, keep)
  parts = {
    part: [getattr(splits[f], part) for f in folds] for part in ('val', 'test')
  }
  best = done.state.replace(params=done.state.best)
  return Trained(
    trainer=stage.trainer,
    params=done.state.best,
    chooser_params=chooser_params,
    keep=keep,
    best_epoch=done.chosen.epoch,
    prob={
      part: evaluate(feed, stage, done.program, best, rows)
      for part, rows in parts.items()
    },
  )


@dataclasses.dataclass(frozen=True)
class Stage:
  """One of the models that are trained one after the other."""

  name: str  # 'chooser' or 'model'
  recipe: Recipe
  layout: epochs.Layout
  trainer: train.Trainer


def chooser_stage(feed: Feed, settings: Settings, num_runs: int) -> Stage:
  """Returns the first stage of a model that has one."""
  recipe = settings.chooser_recipe
  layout = parallel.layout(num_runs, recipe.batch)
  trainer = train.Trainer(
    SPECS[SPECS[settings.model].chooser],
    recipe,
    len(feed.cohort.classes),
    psum_axis=layout.psum_axis,
    dtype=feed.dtype,
  )
  return Stage('chooser', recipe, layout, trainer)


def model_stage(feed: Feed, settings: Settings, num_runs: int) -> Stage:
  """Returns the stage whose predictions count."""
  layout = parallel.layout(num_runs, settings.recipe.batch)
  trainer = train.Trainer(
    SPECS[settings.model],
    settings.recipe,
    len(feed.cohort.classes),
    psum_axis=layout.psum_axis,
    dtype=feed.dtype,
    combine=settings.combine,
    options=settings.options,
  )
  return Stage('model', settings.recipe, layout, trainer)


def evaluate(
  feed: Feed,
  stage: Stage,
  program: epochs.Resident | epochs.Streamed,
  state: train.RunState,
  parts: Sequence[np.ndarray],
) -> list[np.ndarray]:
  """Returns the class probabilities [slides, C] of every run's own part.

  Args:
    feed: the cohort.
    stage: of the state.
    program: of the stage over this cohort.
    state: R runs, NumPy, which are evaluated with their `params`.
    parts: bags of each run, R x bool [n].
  """
  pairs = _pairs(feed, parts)
  prob = program.evaluate(stage.layout.put(state), pairs)['prob']
  return [prob[pairs.run == r] for r in range(len(parts))]


@dataclasses.dataclass(frozen=True)
class _Done:
  """A stage after its last epoch; the state is NumPy."""

  program: epochs.Resident | epochs.Streamed
  state: train.RunState
  chosen: selection.Selection


def _train_stage(
  stage: Stage,
  feed: Feed,
  splits: Sequence[Split],
  runs: Sequence[tuple[int, Sequence[pathlib.Path]]],
  settings: Settings,
  state_dir: pathlib.Path,
  keep: np.ndarray | None = None,
) -> _Done:
  """Trains one stage of runs given as (fold, folders)."""
  cohort, recipe = feed.cohort, stage.recipe
  folds = [fold for fold, _ in runs]
  if recipe.select in selection.NEED_AUROC:
    _check_validation(cohort.label, splits, folds, recipe.select)
  program = feed.program(stage.trainer, stage.layout)
  trains = np.stack([splits[f].train for f in folds])
  state = stage.trainer.init(
    cohort.width,
    seed=np.full(len(folds), settings.seed),
    fold=np.array(folds),
    trains=trains,
    keep=keep,
  )

  def plan(epoch):
    bucket, index = plans.plan_epoch(
      cohort.length,
      feed.buckets,
      # Batches of several bags must not depend on which folds are trained.
      visit=trains.any(0) | (recipe.batch > 1),
      batch=recipe.batch,
      seed=settings.seed,
      epoch=epoch,
    )
    return Plan(epoch=np.int32(epoch), bucket=bucket, index=index)

  saved = checkpoint.Checkpoints(state_dir / stage.name)
  shown = progress.Progress(
    [folders for _, folders in runs],
    stage.name,
    recipe.epochs,
    settings.tensorboard,
  )
  try:
    state, chosen = fit.fit(
      program,
      stage.layout,
      recipe,
      state,
      plan=plan,
      pairs=_pairs(feed, [splits[f].val for f in folds]),
      label=cohort.label,
      num_classes=len(cohort.classes),
      checkpoints=saved,
      report=shown.report,
    )
  finally:
    saved.close()
    shown.close()
  return _Done(program, state, chosen)


def _check_validation(
  label: np.ndarray, splits: Sequence[Split], folds: Sequence[int], select: str
) -> None:
  alone = [f for f in folds if len(set(label[splits[f].val])) < 2]
  if alone:
    raise SplitError(
      f'validation parts of folds {alone} hold one class, so no AUROC, by which'
      f' this recipe chooses the epoch ({select}); give --select=last'
    )


def _pairs(feed: Feed, parts: Sequence[np.ndarray]) -> Pairs:
  """Pairs every run with the bags of its part, bool [n]."""
  run, index = np.nonzero(np.stack(parts))
  return Pairs(
    bucket=feed.bucket(index),
    index=index.astype(np.int32),
    run=run.astype(np.int32),
  )
