"""A small training run that tests can start in any arrangement of devices."""

import numpy as np

from data import plan as plans
from kmil_jax import checkpoint, epochs, fit, parallel, train
from kmil_jax.models import SPECS
from kmil_jax.types import Pairs, Plan, Recipe, Store

WIDTH, CLASSES, LENGTHS = 8, 3, (4, 8)


def make_store(num_bags=24, seed=0):
  """Bags of 1 to 8 instances, some of which tell their class."""
  rng = np.random.default_rng(seed)
  length = rng.integers(1, 9, num_bags).astype(np.int32)
  label = (np.arange(num_bags) % CLASSES).astype(np.int32)
  features = rng.normal(size=(length.sum() + LENGTHS[-1], WIDTH))
  offset = np.cumsum(length, dtype=np.int32) - length
  features[offset, label] += 3
  return Store(
    features=features.astype(np.float32),
    offset=offset,
    length=length,
    label=label,
  )


def run(
  tmp_path,
  *,
  model='dsmil',
  folds=(0, 1, 2),
  batch=1,
  epoch_count=3,
  streamed=False,
  keep=None,
  store=None,
):
  """Trains and returns the losses [epochs, R] and the chosen predictions."""
  store = store or make_store()
  num_bags = len(store.label)
  part = np.arange(num_bags) % 12
  trains = np.stack([(part != f) & (part != f + 1) for f in folds])
  validates = np.stack([part == f + 1 for f in folds])
  recipe = Recipe(learning_rate=1e-2, epochs=epoch_count, batch=batch)
  layout = parallel.layout(len(folds), batch)
  trainer = train.Trainer(
    SPECS[model], recipe, CLASSES, psum_axis=layout.psum_axis
  )

  def read(bucket, index):
    for b, bags in zip(bucket, index, strict=True):
      rows = store.offset[bags][:, None] + np.arange(LENGTHS[b])
      yield store.features[rows]

  if streamed:
    bare = store.replace(features=None)
    program = epochs.Streamed(trainer, layout, bare, read)
  else:
    program = epochs.Resident(trainer, layout, store, LENGTHS)

  def plan(epoch):
    bucket, index = plans.plan_epoch(
      store.length,
      LENGTHS,
      visit=trains.any(0) | (batch > 1),
      batch=batch,
      seed=0,
      epoch=epoch,
    )
    return Plan(epoch=np.int32(epoch), bucket=bucket, index=index)

  def pairs_of(part):
    run_of, index = np.nonzero(part)
    return Pairs(
      bucket=np.searchsorted(LENGTHS, store.length[index]).astype(np.int32),
      index=index.astype(np.int32),
      run=run_of.astype(np.int32),
    )

  losses = []
  checkpoints = checkpoint.Checkpoints(tmp_path)
  state = trainer.init(
    WIDTH,
    seed=np.zeros(len(folds)),
    fold=np.array(folds),
    trains=trains,
    keep=keep,
  )
  state, _ = fit.fit(
    program,
    layout,
    recipe,
    state,
    plan=plan,
    pairs=pairs_of(validates),
    label=store.label,
    num_classes=CLASSES,
    checkpoints=checkpoints,
    report=lambda epoch, loss, val, chosen: losses.append(loss),
  )
  checkpoints.close()
  everything = pairs_of(np.ones_like(trains))
  out = program.evaluate(
    layout.put(state.replace(params=state.best)), everything
  )
  return np.array(losses), out['prob'].reshape(len(folds), num_bags, CLASSES)
