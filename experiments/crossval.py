"""Completes the runs of an experiment: trains what is left, keeps what came."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import pathlib
import re
import shutil
from typing import Any

import numpy as np

from data import splits as split_files
from experiments import (
  feed,
  maps,
  predictions,
)
from experiments.cohort import Cohort
from experiments.run import progress
from kmil_jax import checkpoint, folds, parallel, selection
from kmil_jax.folds import Fold
from kmil_jax.models.kmil import Choice
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(folds.Settings):
  """What is trained and how, and how its features are fed and shown."""

  stream: bool | None = None  # None: where the features do not fit
  tensorboard: bool = False  # event files beside metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Run:
  """One fold under one choice of instances, and where its results go."""

  folder: pathlib.Path  # <results>/fold_<i>
  fold: int
  choice: Choice


def train_folds(
  cohort: Cohort,
  splits: Sequence[split_files.Split],
  runs: Sequence[Run],
  requested: Sequence[int],
  settings: Settings,
  folder: pathlib.Path,
  *,
  attention: bool,
) -> None:
  """Trains those of the requested runs that are not done.

  A run is done when its folder holds `predictions.csv`. A training that was
  killed goes on with the runs it began with. A run that diverged is recorded,
  see `progress.raise_if_diverged`; it has no predictions if it did so before an
  epoch could be kept.

  Args:
    cohort: to train and test on.
    splits: of all folds.
    runs: all of the experiment.
    requested: places in `runs`.
    settings: of all runs, but for the choices, which are the runs' own.
    folder: unfinished training is kept in its `state`.
    attention: also stores what the models see in the test slides.

  Raises:
    data.splits.SplitError: if the recipe selects by an AUROC that a validation
      part does not have.
    FloatingPointError: if no run of the experiment has an epoch to keep.
  """
  todo = _to_train(runs, requested, folder)
  if not todo:
    return
  chosen = [runs[i] for i in todo]
  _check_validation(cohort, splits, chosen, settings)
  bags = feed.load(cohort, settings.precision, settings.stream)
  state_dir = folder / 'state' / _name(todo)
  trained = folds.train_folds(
    bags,
    [
      Fold(run.fold, **vars(splits[run.fold]), choice=run.choice)
      for run in chosen
    ],
    settings,
    _watch(chosen, state_dir, settings.tensorboard),
  )
  for r, run in enumerate(chosen):
    if parallel.is_first():
      progress.record_divergence(run.folder, trained.diverged[r])
    if trained.lost[r]:
      continue
    # All processes: Orbax waits for each of them.
    folds.save(run.folder, trained, r)
    if parallel.is_first():
      if attention:
        test = splits[run.fold].test
        maps.write(run.folder, cohort, bags, test, trained, r)
      parts = {
        part: of_part(cohort, rows, trained.prob[part][r])
        for part, rows in (
          ('val', splits[run.fold].val),
          ('test', splits[run.fold].test),
        )
      }
      # Last: a run with predictions is done.
      path = run.folder / 'predictions.csv'
      predictions.write(path, run.fold, parts, cohort.classes)
  parallel.wait_for_all('trained')
  if not any((run.folder / 'predictions.csv').exists() for run in runs):
    progress.raise_if_diverged([run.folder for run in runs])
  if parallel.is_first():
    for name, places in _unfinished(folder).items():
      if not _left(runs, places):
        shutil.rmtree(folder / 'state' / name)
    if not _unfinished(folder):
      shutil.rmtree(folder / 'state', ignore_errors=True)


def _watch(
  runs: Sequence[Run], state_dir: pathlib.Path, tensorboard: bool
) -> folds.Watch:
  """Keeps a stage's checkpoints in `state_dir`, and shows its progress."""

  @contextlib.contextmanager
  def watch(
    stage: str, recipe: Recipe, serves: list[list[int]]
  ) -> Iterator[Any]:
    saved = checkpoint.Checkpoints(state_dir / stage)
    shown = progress.Progress(
      [[runs[r].folder for r in ours] for ours in serves],
      {name: name for name in COLUMNS},
      recipe.epochs,
      name=f'{stage} x {len(serves)} run{"s" * (len(serves) > 1)}',
      stage=stage,
      tensorboard=tensorboard,
    )
    try:
      yield saved, shown.report
    finally:
      saved.close()
      shown.close()

  return watch


def _check_validation(
  cohort: Cohort,
  splits: Sequence[split_files.Split],
  runs: Sequence[Run],
  settings: Settings,
) -> None:
  selects = [recipe.select for recipe in settings.recipes.values()]
  selects = [s for s in selects if s in selection.NEED_AUROC]
  alone = [
    fold
    for fold in dict.fromkeys(run.fold for run in runs)
    if len(set(cohort.label[splits[fold].val])) < 2
  ]
  if selects and alone:
    raise split_files.SplitError(
      f'validation parts of folds {alone} hold one class, so no AUROC, by which'
      f' this recipe chooses the epoch ({selects[0]}); give --select=last'
    )


def of_part(
  cohort: Cohort, rows: np.ndarray, prob: np.ndarray
) -> predictions.Predictions:
  """Names the slides `rows`, bool [n], whose probabilities are `prob`."""
  table = cohort.manifest
  return predictions.Predictions(
    case=table.case[rows],
    slide=table.slide[rows],
    label=cohort.label[rows],
    prob=prob,
  )


def _to_train(
  runs: Sequence[Run], requested: Sequence[int], folder: pathlib.Path
) -> list[int]:
  """Returns the runs that are not done, or those of a killed training."""
  todo = _left(runs, requested)
  if len(todo) < len(requested) and parallel.is_first():
    print(f'done before: {len(requested) - len(todo)} of {len(requested)} runs')
  for places in _unfinished(folder).values() if todo else []:
    if set(todo) <= set(places) <= set(requested):
      todo = places
      break
  # Writing may have begun: what process 0 saw counts.
  chosen = parallel.agree(np.isin(requested, todo))
  return [i for i, train in zip(requested, chosen, strict=True) if train]


def _left(runs: Sequence[Run], places: Sequence[int]) -> list[int]:
  return [
    i for i in places if not (runs[i].folder / 'predictions.csv').exists()
  ]


def _unfinished(folder: pathlib.Path) -> dict[str, list[int]]:
  """Returns the runs of every training that was killed, by its folder."""
  unfinished = {}
  for path in sorted((folder / 'state').glob('runs_*')):
    places = []
    for first, last in re.findall(r'(\d+)(?:-(\d+))?', path.name):
      places += range(int(first), int(last or first) + 1)
    unfinished[path.name] = places
  return unfinished


def _name(places: Sequence[int]) -> str:
  """Names a training by its runs: runs_0-9, or runs_0-2_5."""
  spans: list[list[int]] = []
  for i in places:
    if spans and i == spans[-1][-1] + 1:
      spans[-1][1:] = [i]
    else:
      spans.append([i])
  return 'runs_' + '_'.join('-'.join(map(str, span)) for span in spans)
