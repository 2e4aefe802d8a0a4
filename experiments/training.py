"""Trains the folds of an experiment together, stage by stage."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from data import plan as plans
from data.splits import Split
from experiments import progress
from experiments.feed import Feed
from kmil_jax import checkpoint, epochs, fit, parallel, selection, train
from kmil_jax.models import SPECS, kmil
from kmil_jax.types import ModelSpec, Pairs, Plan, Recipe


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is trained and how."""

  model: str  # of SPECS
  recipe: Recipe
  chooser_recipe: Recipe  # of the first stage, where the model has one
  seed: int
  precision: str = 'float32'
  score: str = 'var'
  drop: str = 'lowest'
  drop_per_mille: int = 100
  combine: bool = False
  stream: bool | None = None  # None: where the features do not fit


@dataclasses.dataclass(frozen=True)
class Trained:
  """What training leaves of R folds."""

  trainer: train.Trainer
  params: Any  # [R, ...]
  keep: np.ndarray | None  # bool [R, T], instances that each fold sees
  best_epoch: np.ndarray  # [R]
  prob: dict[str, list[np.ndarray]]  # by part, per fold [slides, C]


def train_folds(
  feed: Feed,
  splits: Sequence[Split],
  folds: Sequence[int],
  settings: Settings,
  folder: pathlib.Path,
) -> Trained:
  """Trains all stages of a model for several folds in one program each.

  Args:
    feed: the cohort.
    splits: of all folds.
    folds: those to train, each a run.
    settings: what and how.
    folder: of the experiment; checkpoints and metrics.jsonl go there.

  Returns:
    The chosen parameters of the folds and their validation and test
    predictions. A run that was killed goes on from its last checkpoint and
    returns the same.
  """
  spec = SPECS[settings.model]
  keep = None
  if spec.chooser:
    stage = _Stage(
      'chooser', SPECS[spec.chooser], settings.chooser_recipe, settings
    )
    chooser = _train_stage(stage, feed, splits, folds, folder)
    keep = _choose(feed, chooser, settings)
    del chooser  # Its copy of the features makes room for the model's.
  stage = _Stage('model', spec, settings.recipe, settings)
  done = _train_stage(stage, feed, splits, folds, folder, keep)
  state = done.layout.put(done.state.replace(params=done.state.best))
  prob = {}
  for part in ('val', 'test'):
    pairs = _pairs(feed, [getattr(splits[f], part) for f in folds])
    evaluated = done.program.evaluate(state, pairs)['prob']
    prob[part] = [evaluated[pairs.run == r] for r in range(len(folds))]
  return Trained(
    trainer=done.trainer,
    params=done.state.best,
    keep=keep,
    best_epoch=done.chosen.epoch,
    prob=prob,
  )


@dataclasses.dataclass(frozen=True)
class _Stage:
  """One of the models trained one after the other."""

  name: str
  spec: ModelSpec
  recipe: Recipe
  settings: Settings


@dataclasses.dataclass(frozen=True)
class _Done:
  """A stage after its last epoch; the state is NumPy."""

  trainer: train.Trainer
  layout: epochs.Layout
  program: epochs.Resident | epochs.Streamed
  state: train.RunState
  chosen: selection.Selection


def _train_stage(
  stage: _Stage,
  feed: Feed,
  splits: Sequence[Split],
  folds: Sequence[int],
  folder: pathlib.Path,
  keep: np.ndarray | None = None,
) -> _Done:
  cohort, settings = feed.cohort, stage.settings
  layout = parallel.layout(len(folds), stage.recipe.batch)
  trainer = train.Trainer(
    stage.spec,
    stage.recipe,
    len(cohort.classes),
    psum_axis=layout.psum_axis,
    dtype=feed.dtype,
    combine=settings.combine and stage.name == 'model',
  )
  program = feed.program(trainer, layout)
  trains = np.stack([splits[f].train for f in folds])
  state = trainer.init(
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
      visit=trains.any(0) | (stage.recipe.batch > 1),
      batch=stage.recipe.batch,
      seed=settings.seed,
      epoch=epoch,
    )
    return Plan(epoch=np.int32(epoch), bucket=bucket, index=index)

  saved = checkpoint.Checkpoints(state_folder(folder, folds) / stage.name)
  shown = progress.Progress(folder, folds, stage.name, stage.recipe.epochs)
  try:
    state, chosen = fit.fit(
      program,
      layout,
      stage.recipe,
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
  return _Done(trainer, layout, program, state, chosen)


def save_model(folder: pathlib.Path, trained: Trained, run: int) -> None:
  """Keeps one fold's parameters in `<folder>/checkpoints`."""
  params = jax.tree.map(lambda x: x[run], trained.params)
  saved = checkpoint.Checkpoints(folder / 'checkpoints')
  epoch = np.int64(trained.best_epoch[run])
  saved.save(0, {'params': params, 'epoch': epoch})
  saved.close()


def state_folder(folder: pathlib.Path, folds: Sequence[int]) -> pathlib.Path:
  """Where the unfinished training of these folds is kept."""
  return folder / 'state' / ('folds_' + '_'.join(map(str, folds)))


def unfinished(folder: pathlib.Path) -> list[list[int]]:
  """Returns the folds of every training that was killed in this folder."""
  return [
    [int(x) for x in path.name.split('_')[1:]]
    for path in sorted((folder / 'state').glob('folds_*'))
  ]


def _choose(feed: Feed, chooser: _Done, settings: Settings) -> np.ndarray:
  """Returns the key instances of every run and bag, bool [R, T]."""

  @jax.jit
  def keys(params, x, mask):
    logits = chooser.trainer.predict(params, x, mask).instance_logits
    return jax.vmap(
      lambda logits: kmil.key_instances(
        kmil.instance_scores(logits, settings.score),
        mask,
        settings.drop_per_mille,
        settings.drop,
      )
    )(logits)

  bags = np.arange(len(feed.cohort.paths))
  keep = np.zeros((len(chooser.state.seed), feed.num_rows), bool)
  params = jax.device_put(chooser.state.best)
  read = feed.read(feed.bucket(bags), bags[:, None])
  for bag, x in zip(bags, read, strict=True):
    length, offset = feed.store.length[bag], feed.store.offset[bag]
    mask = np.arange(x.shape[1]) < length
    kept = np.asarray(keys(params, x[0], mask))
    keep[:, offset : offset + length] = kept[:, :length]
  return keep


def _pairs(feed: Feed, parts: Sequence[np.ndarray]) -> Pairs:
  """Pairs every run with the bags of its part, bool [n]."""
  run, index = np.nonzero(np.stack(parts))
  return Pairs(
    bucket=feed.bucket(index),
    index=index.astype(np.int32),
    run=run.astype(np.int32),
  )
