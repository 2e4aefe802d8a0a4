"""Trains the folds of an experiment together, stage by stage."""

from collections.abc import Iterator, Sequence
from concurrent import futures
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import features as feature_files, plan as plans
from data.splits import Split
from experiments import progress
from experiments.cohort import Cohort
from kmil_jax import checkpoint, epochs, fit, parallel, selection, train
from kmil_jax.models import SPECS, kmil
from kmil_jax.types import ModelSpec, Pairs, Plan, Recipe, Store

# Share of a device's memory that features may take and stay resident.
_RESIDENT_SHARE = 0.5
_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


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


class Bench:
  """A cohort made ready for training: buckets, store and reader.

  Attributes:
    cohort: the cohort.
    buckets: padded lengths.
    store: NumPy; without features where they are streamed.
  """

  def __init__(self, cohort: Cohort, precision: str, stream: bool | None):
    self.cohort = cohort
    self.buckets = plans.bucket_lengths(cohort.length)
    self.dtype = _DTYPES[precision]
    length = cohort.length.astype(np.int32)
    rows = int(length.sum(dtype=np.int64)) + self.buckets[-1]
    size = rows * cohort.width * jnp.dtype(self.dtype).itemsize
    if stream is None:
      stream = size > _RESIDENT_SHARE * parallel.memory_bytes()
    self.store = Store(
      features=None if stream else self._load(rows),
      offset=np.cumsum(length, dtype=np.int32) - length,
      length=length,
      label=cohort.label,
    )

  @property
  def num_rows(self) -> int:
    """T: instances of the cohort and the zeros after the last bag."""
    return int(self.cohort.length.sum()) + self.buckets[-1]

  def bucket(self, index: np.ndarray) -> np.ndarray:
    """Returns the bucket of every bag."""
    found = np.searchsorted(self.buckets, self.cohort.length[index])
    return found.astype(np.int32)

  def read(self, bucket: np.ndarray, index: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the padded features [B, N, D] of steps; see `data.pipeline`."""
    if self.store.features is None:
      # It imports TensorFlow, which takes seconds.
      from data import pipeline

      yield from pipeline.bag_batches(
        self.cohort.paths, self.cohort.width, self.buckets, bucket, index
      )
      return
    for b, bags in zip(bucket, index, strict=True):
      rows = self.store.offset[bags][:, None] + np.arange(self.buckets[b])
      yield self.store.features[rows]

  def program(
    self, trainer: train.Trainer, layout: epochs.Layout
  ) -> epochs.Resident | epochs.Streamed:
    """Returns epochs of `trainer` over this cohort."""
    if self.store.features is None:
      return epochs.Streamed(trainer, layout, self.store, self.read)
    return epochs.Resident(trainer, layout, self.store, self.buckets)

  def _load(self, rows: int) -> np.ndarray:
    flat = np.zeros((rows, self.cohort.width), self.dtype)
    ends = np.cumsum(self.cohort.length, dtype=np.int64)

    def load(i):
      features = feature_files.read(self.cohort.paths[i]).features
      flat[ends[i] - len(features) : ends[i]] = features

    with futures.ThreadPoolExecutor() as pool:
      list(pool.map(load, range(len(ends))))
    return flat


def train_folds(
  bench: Bench,
  splits: Sequence[Split],
  folds: Sequence[int],
  settings: Settings,
  folder: pathlib.Path,
) -> Trained:
  """Trains all stages of a model for several folds in one program each.

  Args:
    bench: the cohort.
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
    chooser = _train_stage(stage, bench, splits, folds, folder)
    keep = _choose(bench, chooser, settings)
  stage = _Stage('model', spec, settings.recipe, settings)
  done = _train_stage(stage, bench, splits, folds, folder, keep)
  state = done.layout.put(done.state.replace(params=done.state.best))
  prob = {}
  for part in ('val', 'test'):
    pairs = _pairs(bench, [getattr(splits[f], part) for f in folds])
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
  bench: Bench,
  splits: Sequence[Split],
  folds: Sequence[int],
  folder: pathlib.Path,
  keep: np.ndarray | None = None,
) -> _Done:
  cohort, settings = bench.cohort, stage.settings
  layout = parallel.layout(len(folds), stage.recipe.batch)
  trainer = train.Trainer(
    stage.spec,
    stage.recipe,
    len(cohort.classes),
    psum_axis=layout.psum_axis,
    dtype=bench.dtype,
    combine=settings.combine and stage.name == 'model',
  )
  program = bench.program(trainer, layout)
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
      bench.buckets,
      visit=trains.any(0),
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
      pairs=_pairs(bench, [splits[f].val for f in folds]),
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
  saved.save(int(trained.best_epoch[run]), {'params': params})
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


def _choose(bench: Bench, chooser: _Done, settings: Settings) -> np.ndarray:
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

  bags = np.arange(len(bench.cohort.paths))
  keep = np.zeros((len(chooser.state.seed), bench.num_rows), bool)
  params = jax.device_put(chooser.state.best)
  read = bench.read(bench.bucket(bags), bags[:, None])
  for bag, x in zip(bags, read, strict=True):
    length, offset = bench.store.length[bag], bench.store.offset[bag]
    mask = np.arange(x.shape[1]) < length
    kept = np.asarray(keys(params, x[0], mask))
    keep[:, offset : offset + length] = kept[:, :length]
  return keep


def _pairs(bench: Bench, parts: Sequence[np.ndarray]) -> Pairs:
  """Pairs every run with the bags of its part, bool [n]."""
  run, index = np.nonzero(np.stack(parts))
  return Pairs(
    bucket=bench.bucket(index),
    index=index.astype(np.int32),
    run=run.astype(np.int32),
  )
