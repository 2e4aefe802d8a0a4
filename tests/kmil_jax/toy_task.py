"""A task of its own: lines through points, of which the loop knows nothing."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import training_run

from kmil_jax import optim, parallel
from kmil_jax.programs import Program
from kmil_jax.train import Aux, Task
from kmil_jax.types import PatchRecipe, Recipe

COUNT, SIZE, LENGTH = 32, 4, 1
VALIDATION = np.arange(COUNT) % 4 == 0
RECIPE = PatchRecipe(
  learning_rate=0.1, epochs=5, batch=SIZE, schedule='cosine', select='loss'
)


@chex.dataclass(frozen=True)
class Lines:
  """R runs: where each starts, and the epoch from which its loss is NaN."""

  seed: chex.Array
  breaks: chex.Array


class Toy(Task):
  """Fits y = a x + b; every run leaves out points of its own."""

  tx = optim.make(Recipe(weight_decay=0.0))

  def init(self, run):
    return {'params': {'ab': jax.random.normal(jax.random.key(run.seed), (2,))}}

  def key(self, run, epoch, step):
    return epoch  # The loop hands on whatever it is.

  def batch(self, store, item, length):
    x, y = store
    return item, x[item], y[item]

  def weight(self, batch, run):
    index = batch[0]
    return jnp.where(index % 5 == run.seed % 5, 0.0, 1.0) * (index >= 0)

  def loss(self, variables, batch, run, key):
    _, x, y = batch
    a, b = variables['params']['ab']
    losses = jnp.where(key >= run.breaks, jnp.nan, (a * x + b - y) ** 2)
    return losses, Aux(hits=losses < 0.1, stats={})

  def predict(self, variables, batch, run):
    _, x, y = batch
    a, b = variables['params']['ab']
    return {'loss': (a * x + b - y) ** 2}


TASK = Toy()  # Programs are compiled once for a task.


@dataclasses.dataclass(frozen=True)
class ToyLoader:
  """Points in a random order; those to evaluate are given by their places."""

  streamed: bool

  @property
  def store(self):
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=COUNT))
    return x, np.float32(2 * x - 1 + 0.1 * rng.normal(size=COUNT))

  @property
  def lengths(self):
    return (None,) if self.streamed else (LENGTH,)

  def train(self, epoch, runs, layout):
    order = np.random.default_rng(epoch).permutation(np.where(~VALIDATION)[0])
    steps = np.int32(order).reshape(-1, SIZE)
    bucket = np.zeros(len(steps), np.int32)
    if not self.streamed:
      yield layout.share((bucket, steps))
      return
    for step in range(len(steps)):
      one = np.s_[step : step + 1]
      yield layout.share((bucket[one], steps[one]))

  def evaluate(self, examples, runs, layout):
    device, place = layout.owner(np.arange(len(runs)))
    run, place = parallel.deal(device, runs, place)
    local = parallel.local_devices()
    for step in range(run.shape[1]):
      one = np.s_[:, step : step + 1]
      index = np.broadcast_to(examples, (len(run), 1, len(examples)))
      chunk = index[local], np.maximum(place[one], 0)[local]
      yield (np.zeros_like(chunk[1]), *chunk), run[one][..., None], index


def validate(predictions, num_runs):
  loss = predictions['loss'].reshape(num_runs, -1).mean(1)
  return {'loss': loss} | dict.fromkeys(('f1_macro', 'accuracy', 'auroc'), loss)


def run(
  folder,
  *,
  seeds=(0, 1, 2),
  breaks=None,
  streamed=False,
  layout=parallel.RunsOverDevices,
  at_once=None,
  recipe=RECIPE,
  report=lambda history: None,
):
  """Trains and returns `loop.Result`."""
  runs = Lines(
    seed=np.uint32(seeds), breaks=np.int32(breaks or [99] * len(seeds))
  )
  program = Program(
    TASK, len(seeds), ToyLoader(streamed), layout=layout, at_once=at_once
  )
  return training_run.fit(
    folder,
    program,
    recipe,
    runs,
    validation=np.int32(np.where(VALIDATION)[0]),
    validate=validate,
    report=report,
  )
