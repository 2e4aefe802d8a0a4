"""Epochs as device programs, over features that fit the device or do not."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import parallel, train
from kmil_jax.train import RunState
from kmil_jax.types import Pairs, Plan, Store

Layout = parallel.RunsOverDevices | parallel.BagsOverDevices


class Resident:
  """Features stay on the device; an epoch is one program.

  The program scans over the steps and switches between the padded lengths, so
  it compiles once whatever the bags.

  Args:
    trainer: what to train.
    layout: how runs or bags are spread over devices.
    store: of the cohort, NumPy.
    lengths: the padded lengths, ascending.
  """

  def __init__(
    self,
    trainer: train.Trainer,
    layout: Layout,
    store: Store,
    lengths: tuple[int, ...],
  ):
    self._layout = layout
    self._store = parallel.replicate(store)

    def train_epoch(state, store, plan):
      def gradients_of(length):
        def gradients(state, index):
          bags = train.take(store, index, length)
          offset = store.offset[jnp.maximum(index, 0)]
          return trainer.gradients(state, bags, offset, plan.epoch)

        return gradients

      branches = [gradients_of(length) for length in lengths]

      def body(state, step):
        bucket, index = step
        grads, loss, count = jax.lax.switch(bucket, branches, state, index)
        return trainer.update(state, grads, count), (loss, count)

      state, (loss, count) = jax.lax.scan(
        body, state, (plan.bucket, plan.index)
      )
      return state, loss.sum(0) / jnp.maximum(count.sum(0), 1)

    def evaluate(state, store, pairs):
      def pair_of(length):
        def one(index, run):
          bags = train.take(store, index[None], length)
          return _evaluate_pair(trainer, store, state, bags, run)

        return one

      branches = [pair_of(length) for length in lengths]

      def body(_, pair):
        # Fillers are -1: any branch will do.
        bucket, index, run = jax.tree.map(lambda x: jnp.maximum(x, 0), pair)
        return None, jax.lax.switch(bucket, branches, index, run)

      return jax.lax.scan(body, None, pairs)[1]

    self._train = layout.pmap_train(train_epoch)
    self._evaluate = layout.pmap_eval(evaluate)

  def train(self, state: RunState, plan: Plan) -> tuple[RunState, np.ndarray]:
    """Trains one epoch; returns the state and the mean loss per run, [R]."""
    state, loss = self._train(state, self._store, self._layout.split_plan(plan))
    return state, self._layout.gather(loss)

  def evaluate(self, state: RunState, pairs: Pairs) -> dict[str, np.ndarray]:
    """Returns `prob` [P, C] and `loss` [P] of the pairs, in their order."""
    device, run = self._layout.owner(pairs.run)
    slot, *dealt = parallel.deal(device, pairs.bucket, pairs.index, run)
    out = self._evaluate(state, self._store, tuple(dealt))
    return {name: value[device, slot] for name, value in out.items()}


class Streamed:
  """Features come from the host, step by step, in the same order.

  Args:
    trainer: what to train.
    layout: how runs or bags are spread over devices.
    store: of the cohort, without features.
    read: given buckets [S] and bags [S, B], yields the features [B, N, D] of
      every step, padded to the bucket's length; fillers may hold anything
      finite.
  """

  def __init__(
    self,
    trainer: train.Trainer,
    layout: Layout,
    store: Store,
    read: Callable[[np.ndarray, np.ndarray], Iterator[np.ndarray]],
  ):
    self._layout = layout
    self._store = parallel.replicate(store)
    self._read = read

    def step(state, store, batch):
      features, index, epoch = batch
      bags = train.label_bags(store, features, index)
      offset = store.offset[jnp.maximum(index, 0)]
      grads, loss, count = trainer.gradients(state, bags, offset, epoch)
      return trainer.update(state, grads, count), (loss, count)

    def evaluate(state, store, batch):
      features, index, run = batch
      bags = train.label_bags(store, features[None], index[None])
      return _evaluate_pair(trainer, store, state, bags, run)

    self._train = layout.pmap_train(step)
    self._evaluate = layout.pmap_eval(evaluate)

  def train(self, state: RunState, plan: Plan) -> tuple[RunState, np.ndarray]:
    """As `Resident.train`."""
    loss, count = 0, 0
    local = self._layout.split_plan(plan)
    steps = local.index.shape[-2]
    flat = np.moveaxis(local.index, -2, 0).reshape(steps, -1)
    for s, features in enumerate(self._read(plan.bucket, flat)):
      index = local.index[..., s, :]
      epoch = np.broadcast_to(np.int32(plan.epoch), local.index.shape[:-2])
      features = features.reshape(index.shape + features.shape[1:])
      state, (loss_s, count_s) = self._train(
        state, self._store, (features, index, epoch)
      )
      # Waits for the step: steps that pile up deadlock simulated devices.
      loss += self._layout.gather(loss_s)
      count += self._layout.gather(count_s)
    return state, loss / np.maximum(count, 1)

  def evaluate(self, state: RunState, pairs: Pairs) -> dict[str, np.ndarray]:
    """As `Resident.evaluate`."""
    device, run = self._layout.owner(pairs.run)
    # The owner's answer counts; the other devices run along.
    repeat = lambda x: np.stack([x] * jax.local_device_count())
    steps = self._read(pairs.bucket, pairs.index[:, None])
    rows = []
    for p, features in enumerate(steps):
      batch = repeat(features[0]), repeat(pairs.index[p]), repeat(run[p])
      out = self._evaluate(state, self._store, batch)
      rows.append([out['prob'][device[p]], out['loss'][device[p]]])
    prob, loss = zip(*rows, strict=True)
    return {'prob': np.stack(prob), 'loss': np.stack(loss)}


def _evaluate_pair(trainer, store, state, bags, run):
  """Evaluates run `run` of `state` on the only bag of `bags`."""
  one = jax.tree.map(lambda x: x[run], state)
  offset = store.offset[bags.index[0]]
  return trainer.evaluate(
    one, bags.features[0], bags.mask[0], bags.label[0], offset
  )
