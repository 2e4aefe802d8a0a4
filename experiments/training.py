"""Trains the runs of an experiment together, stage by stage."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from data.splits import Split, SplitError
from experiments import choosing, progress
from experiments.feed import Feed
from kmil_jax import checkpoint, loop, selection, train
from kmil_jax.inference import Design
from kmil_jax.models import SPECS
from kmil_jax.models.kmil import Choice
from kmil_jax.programs import Program
from kmil_jax.tasks.bags import BagRuns, BagTask
from kmil_jax.types import Recipe

# Of metrics.jsonl.
COLUMNS = (
  'train_loss',
  'val_loss',
  'val_accuracy',
  'val_f1_macro',
  'val_auroc',
  'best_epoch',
)


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
class FoldResults:
  """What training leaves of R runs."""

  task: BagTask  # of the model
  params: Any  # [R, ...]
  chooser_params: Any  # [R, ...] of the first stage, None without one
  keep: np.ndarray | None  # bool [R, T], instances that each run sees
  best_epoch: np.ndarray  # [R]
  lost: np.ndarray  # bool [R], diverged before an epoch could be kept
  diverged: list[dict[str, int]]  # per run, the epoch of each stage that did
  prob: dict[str, list[np.ndarray]]  # by part, per run [slides, C]


def train_runs(
  feed: Feed,
  splits: Sequence[Split],
  runs: Sequence[Run],
  settings: Settings,
  state_dir: pathlib.Path,
) -> FoldResults:
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
  # By stage, what it came to and its run for each of ours.
  results: dict[str, tuple[loop.Result, np.ndarray]] = {}
  if settings.has_chooser:
    # The folders of each fold; any of its runs will do for the rest.
    folders = {f: [r.folder for r in runs if r.fold == f] for f in folds}
    stage = chooser_stage(feed, settings)
    named = list(folders.items())
    # Its program, and copy of the features, makes room for the model's.
    result = _train_stage(stage, feed, splits, named, settings, state_dir)[0]
    first = np.array([list(folders).index(f) for f in folds])
    results[stage.name] = result, first
    params = result.variables['params']
    chooser_params = jax.tree.map(lambda x: x[first], params)
    choices = [run.choice for run in runs]
    keep = choosing.choose(feed, stage.task, params, first, choices)
  stage = model_stage(feed, settings)
  named = [(run.fold, [run.folder]) for run in runs]
  result, program, constants = _train_stage(
    stage, feed, splits, named, settings, state_dir, keep
  )
  results[stage.name] = result, np.arange(len(runs))
  models = program.put((result.variables, constants))
  parts = {
    part: [getattr(splits[f], part) for f in folds] for part in ('val', 'test')
  }
  failed = {name: r.failed[of] for name, (r, of) in results.items()}
  return FoldResults(
    task=stage.task,
    params=result.variables['params'],
    chooser_params=chooser_params,
    keep=keep,
    best_epoch=result.epoch,
    lost=np.any([r.lost[of] for r, of in results.values()], 0),
    diverged=[
      {name: int(epoch[r]) for name, epoch in failed.items() if epoch[r] >= 0}
      for r in range(len(runs))
    ],
    prob={
      part: evaluate(program, models, rows) for part, rows in parts.items()
    },
  )


@dataclasses.dataclass(frozen=True)
class Stage:
  """One of the models that are trained one after the other."""

  name: str  # 'chooser' or 'model'
  recipe: Recipe
  task: BagTask


def chooser_stage(feed: Feed, settings: Settings) -> Stage:
  """Returns the first stage of a model that has one."""
  spec = SPECS[SPECS[settings.model].chooser]
  recipe = settings.chooser_recipe
  cohort = feed.cohort
  task = BagTask(
    spec, recipe, len(cohort.classes), cohort.width, dtype=feed.dtype
  )
  return Stage('chooser', recipe, task)


def model_stage(feed: Feed, settings: Settings) -> Stage:
  """Returns the stage whose predictions count."""
  task = BagTask(
    SPECS[settings.model],
    settings.recipe,
    len(feed.cohort.classes),
    feed.cohort.width,
    dtype=feed.dtype,
    combine=settings.combine,
    options=settings.options,
  )
  return Stage('model', settings.recipe, task)


def evaluate(
  program: Program, models: list[Any], parts: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Returns the class probabilities [slides, C] of every run's own part.

  Args:
    program: over the cohort.
    models: variables and constants of R runs, from `program.put`.
    parts: bags of each run, R x bool [n].
  """
  out = program.evaluate(models, np.stack(parts))
  return [out['prob'][out['run'] == r] for r in range(len(parts))]


def _train_stage(
  stage: Stage,
  feed: Feed,
  splits: Sequence[Split],
  runs: Sequence[tuple[int, Sequence[pathlib.Path]]],
  settings: Settings,
  state_dir: pathlib.Path,
  keep: np.ndarray | None = None,
) -> tuple[loop.Result, Program, BagRuns]:
  """Trains one stage of runs given as (fold, folders)."""
  cohort, recipe = feed.cohort, stage.recipe
  folds = [fold for fold, _ in runs]
  if recipe.select in selection.NEED_AUROC:
    _check_validation(cohort.label, splits, folds, recipe.select)
  constants = BagRuns(
    seed=np.full(len(folds), settings.seed, np.uint32),
    fold=np.array(folds, np.uint32),
    trains=np.stack([splits[f].train for f in folds]),
    keep=keep,
  )
  program = feed.program(
    stage.task,
    len(folds),
    recipe,
    seed=settings.seed,
    trains=constants.trains,
  )
  saved = checkpoint.Checkpoints(state_dir / stage.name)
  shown = progress.Progress(
    [folders for _, folders in runs],
    {name: name for name in COLUMNS},
    recipe.epochs,
    name=f'{stage.name} x {len(runs)} run{"s" * (len(runs) > 1)}',
    stage=stage.name,
    tensorboard=settings.tensorboard,
  )
  try:
    result = loop.fit(
      program,
      recipe,
      constants,
      train.draw(stage.task, constants),
      validation=np.stack([splits[f].val for f in folds]),
      checkpoints=saved,
      report=shown.report,
    )
  finally:
    saved.close()
    shown.close()
  return result, program, constants


def _check_validation(
  label: np.ndarray, splits: Sequence[Split], folds: Sequence[int], select: str
) -> None:
  alone = [f for f in folds if len(set(label[splits[f].val])) < 2]
  if alone:
    raise SplitError(
      f'validation parts of folds {alone} hold one class, so no AUROC, by which'
      f' this recipe chooses the epoch ({select}); give --select=last'
    )
