"""A small training run that tests can start in any arrangement of devices."""

import contextlib

import numpy as np

from kmil_jax import checkpoint, loop, parallel, train
from kmil_jax.models import SPECS
from kmil_jax.tasks.bags import BagLoader, BagRuns, BagTask
from kmil_jax.types import Recipe, Store

WIDTH, CLASSES, LONGEST = 8, 3, 16


def make_store(num_bags=24, seed=0):
  """Bags of 1 to 16 instances, some of which tell their class."""
  rng = np.random.default_rng(seed)
  length = rng.integers(1, LONGEST + 1, num_bags).astype(np.int32)
  label = (np.arange(num_bags) % CLASSES).astype(np.int32)
  features = rng.normal(size=(length.sum() + LONGEST, WIDTH))
  offset = np.cumsum(length, dtype=np.int32) - length
  features[offset, label] += 3
  return Store(
    features=features.astype(np.float32),
    offset=offset,
    length=length,
    label=label,
  )


def parts(folds, num_bags):
  """Training and validation parts of folds, bool [R, n] each."""
  part = np.arange(num_bags) % 12
  trains = np.stack([(part != f) & (part != f + 1) for f in folds])
  return trains, np.stack([part == f + 1 for f in folds])


def loader_of(store, streamed=False, spread=False):
  """Returns the bags of a store."""

  def stream(bucket, index):
    for b, bags in zip(bucket, index, strict=True):
      rows = store.offset[bags][:, None] + np.arange(loader.buckets[b])
      yield store.features[rows]

  held = store.replace(features=None) if streamed else store
  if spread:
    shares = parallel.Spread.zeros(store.features.shape, np.float32)
    shares.write(0, store.features)
    held = store.replace(features=shares)
  width = store.features.shape[1]
  loader = BagLoader(held, CLASSES, width, stream)
  return loader


def fit(folder, program, recipe, runs, variables=None, **options):
  """Trains any task with checkpoints in a folder; returns `loop.Result`."""
  variables = variables or train.draw(program.task, runs)
  with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
    return loop.fit(
      program, recipe, runs, variables, checkpoints=checkpoints, **options
    )


def run(
  tmp_path,
  *,
  model='dsmil',
  folds=(0, 1, 2),
  batch=1,
  epoch_count=3,
  streamed=False,
  spread=False,
  keep=None,
  store=None,
  report=lambda history: None,
):
  """Trains; returns `loop.Result` and the chosen predictions [R, n, C]."""
  store = store or make_store()
  trains, validates = parts(folds, len(store.label))
  recipe = Recipe(learning_rate=1e-2, epochs=epoch_count, batch=batch)
  task = BagTask(SPECS[model], recipe, CLASSES, WIDTH)
  loader = loader_of(store, streamed, spread)
  program = loader.program(task, len(folds), recipe, trains=trains)
  runs = BagRuns(
    seed=np.zeros(len(folds), np.uint32),
    fold=np.uint32(folds),
    trains=trains,
    keep=keep,
  )
  result = fit(
    tmp_path, program, recipe, runs, validation=validates, report=report
  )
  models = program.put((result.variables, runs))
  out = program.evaluate(models, np.ones_like(trains))
  return result, out['prob'].reshape(len(folds), -1, CLASSES)
