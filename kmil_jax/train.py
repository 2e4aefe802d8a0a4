"""Training many runs at once: their state, one step, one evaluation.

A run is a fold with a seed and a setting. Every leaf of a state has the runs as
its first axis; a bag is read once and moves exactly the runs that train on it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kmil_jax import optim
from kmil_jax.models import cpu, kmil
from kmil_jax.types import Bags, ModelSpec, Prediction, Recipe, Store


@chex.dataclass(frozen=True)
class RunState:
  """R runs; n bags, T instances of the cohort and their zero rows."""

  params: Any  # [R, ...]
  opt_state: Any  # [R, ...]
  best: Any  # [R, ...] parameters of the epoch that validation chose
  learning_rate: chex.Array  # [R] float32, of this epoch
  active: chex.Array  # [R] bool, False once a run has stopped
  seed: chex.Array  # [R] uint32
  fold: chex.Array  # [R] uint32
  trains: chex.Array  # [R, n] bool, the training part of each run
  keep: chex.Array | None  # [R, T] bool, instances seen; None for all


class Trainer:
  """The pure functions that train one model by one recipe.

  Attributes:
    model: Flax module of one bag.
    psum_axis: name of the device axis over which bags are spread, or None.

  `combine` averages the bag's probabilities with those of the highest instance;
  `options` are further arguments of the model.
  """

  def __init__(
    self,
    spec: ModelSpec,
    recipe: Recipe,
    num_classes: int,
    *,
    psum_axis: str | None = None,
    dtype: Any = None,
    combine: bool = False,
    options: Mapping[str, Any] = MappingProxyType({}),
  ):
    self.model: nn.Module = spec.make(
      num_classes=num_classes, dtype=dtype, **options
    )
    self.psum_axis = psum_axis
    self._spec = spec
    self._combine = combine
    self._orthogonal = recipe.orthogonal
    self._tx = optim.make(recipe)

  def init(
    self,
    width: int,
    *,
    seed: np.ndarray,
    fold: np.ndarray,
    trains: np.ndarray,
    keep: np.ndarray | None = None,
  ) -> RunState:
    """Draws R runs; each depends on its own seed and fold alone.

    Args:
      width: D of the features.
      seed: [R].
      fold: [R].
      trains: bags each run trains on, bool [R, n].
      keep: instances each run sees, bool [R, T], or None for all.
    """

    def init_one(seed, fold):
      # Epochs count from 0: the last of all keys is the initialisation's.
      key = jax.random.fold_in(_run_key(seed, fold), np.uint32(2**32 - 1))
      x, mask = jnp.zeros((1, width)), jnp.ones(1, bool)
      params = self.model.init(key, x, mask, train=False)['params']
      if self._orthogonal:
        params = optim.orthogonal(key, params)
      return params, self._tx.init(params)

    seed, fold = np.uint32(seed), np.uint32(fold)
    params, opt_state = jax.device_get(jax.jit(jax.vmap(init_one))(seed, fold))
    return RunState(
      params=params,
      opt_state=opt_state,
      best=params,
      learning_rate=np.zeros(len(seed), np.float32),
      active=np.ones(len(seed), bool),
      seed=seed,
      fold=fold,
      trains=np.asarray(trains),
      keep=keep,
    )

  def gradients(
    self, state: RunState, bags: Bags, offset: jax.Array, epoch: jax.Array
  ) -> tuple[Any, jax.Array, jax.Array]:
    """What the bags ask of every run that trains on them.

    Args:
      state: R runs.
      bags: of this device, [B, N, D].
      offset: first instance of each bag in `state.keep`, [B].
      epoch: from 0; with seed, fold and bag it determines the dropout.

    Returns:
      The gradient of each run's mean loss, [R, ...], the summed loss [R] and
      the number of bags that the run trained on, [R]; over all devices.
    """
    chex.assert_rank([bags.features, bags.mask, offset], [3, 2, 1])
    length = bags.mask.shape[1]
    runs_in_turn = cpu.one_by_one(self._spec, len(state.seed), length)
    bags_in_turn = runs_in_turn and cpu.one_by_one(self._spec, *bags.mask.shape)
    index = jnp.maximum(bags.index, 0)
    member = state.trains[:, index] & (bags.index >= 0) & state.active[:, None]
    count = self._psum(member.astype(jnp.float32).sum(1))  # [R]
    kept = None
    if state.keep is not None:
      cut = lambda keep, start: jax.lax.dynamic_slice(keep, (start,), (length,))
      of_bags = jax.vmap(cut, (None, 0))
      kept = jax.vmap(of_bags, (0, None))(state.keep, offset)  # [R, B, N]

    def one_run(run):
      params, seed, fold, kept, member, count = run
      seen = bags.mask if kept is None else bags.mask & kept
      key = jax.random.fold_in(_run_key(seed, fold), epoch)

      def loss_fn(params):
        def bag_loss(bag):
          x, mask, label, index = bag
          prediction = self.model.apply(
            {'params': params},
            x,
            mask,
            train=True,
            rngs={'dropout': jax.random.fold_in(key, index)},
          )
          return self._spec.loss(prediction, mask, label)

        each = bags.features, seen, bags.label, index
        losses = cpu.map_first(bag_loss, each, in_turn=bags_in_turn)
        # Sum, then divide by the bags of all devices; psum the gradient.
        return jnp.where(member, losses, 0).sum() / jnp.maximum(count, 1)

      loss_and_grads = jax.value_and_grad(loss_fn)
      if not runs_in_turn:
        return loss_and_grads(params)
      nothing = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
      return jax.lax.cond(
        member.any(), loss_and_grads, lambda _: nothing, params
      )

    runs = (state.params, state.seed, state.fold, kept, member, count)
    loss, grads = self._psum(cpu.map_first(one_run, runs, in_turn=runs_in_turn))
    return grads, loss * count, count

  def update(self, state: RunState, grads: Any, count: jax.Array) -> RunState:
    """Moves the runs whose `count` [R] is above 0 along their gradients.

    Parameters, moments and step counts of the others stay as they are.
    """

    def one_run(run, grads, count):
      updates, opt_state = self._tx.update(
        grads, run.opt_state, run.params, learning_rate=run.learning_rate
      )
      params = optax.apply_updates(run.params, updates)
      params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(count > 0, new, old),
        (params, opt_state),
        (run.params, run.opt_state),
      )
      return run.replace(params=params, opt_state=opt_state)

    return jax.vmap(one_run)(state, grads, count)

  def evaluate(
    self,
    run: RunState,
    x: jax.Array,
    mask: jax.Array,
    label: jax.Array,
    offset: jax.Array,
  ) -> dict[str, jax.Array]:
    """Evaluates one run, without its axis, on one bag.

    Args:
      run: one run.
      x: [N, D].
      mask: True on real instances, [N].
      label: class, [].
      offset: first instance of the bag in `run.keep`, [].

    Returns:
      `prob` [C] and `loss` [].
    """
    mask = _seen(run, mask, offset)
    prediction = self.model.apply({'params': run.params}, x, mask, train=False)
    return {
      'prob': (
        kmil.combined_prob(prediction, mask)
        if self._combine
        else jax.nn.softmax(prediction.logits)
      ),
      'loss': self._spec.loss(prediction, mask, label),
    }

  def predict(self, params: Any, x: jax.Array, mask: jax.Array) -> Prediction:
    """Returns what R runs [R, ...] say of one bag [N, D], [R, ...]."""
    return cpu.map_folds(
      self._spec,
      lambda p: self.model.apply({'params': p}, x, mask, train=False),
      params,
    )

  def _psum(self, tree: Any) -> Any:
    return jax.lax.psum(tree, self.psum_axis) if self.psum_axis else tree


def take(store: Store, index: jax.Array, length: int) -> Bags:
  """Cuts bags out of a store.

  Args:
    store: with its features.
    index: bags, [B]; -1 gives a filler whose content is that of bag 0.
    length: N, at least the longest of the bags.
  """
  real = jnp.maximum(index, 0)
  width = store.features.shape[-1]
  features = jax.vmap(
    lambda start: jax.lax.dynamic_slice(
      store.features, (start, 0), (length, width)
    )
  )(store.offset[real])
  return label_bags(store, features, index)


def label_bags(store: Store, features: jax.Array, index: jax.Array) -> Bags:
  """Completes features [B, N, D] of the bags `index` [B] to `Bags`."""
  real = jnp.maximum(index, 0)
  mask = jnp.arange(features.shape[1]) < store.length[real][:, None]
  return Bags(
    features=features, mask=mask, label=store.label[real], index=index
  )


def keep_best(state: RunState, improved: jax.Array) -> RunState:
  """Copies the parameters of the runs in `improved` [R] to `best`."""

  def choose(new, old):
    shape = improved.shape + (1,) * (new.ndim - improved.ndim)
    return jnp.where(improved.reshape(shape), new, old)

  return state.replace(best=jax.tree.map(choose, state.params, state.best))


def _run_key(seed: jax.Array, fold: jax.Array) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), fold)


def _seen(run: RunState, mask: jax.Array, offset: jax.Array) -> jax.Array:
  """Restricts a bag's mask [N] to the instances that the run sees."""
  if run.keep is None:
    return mask
  return mask & jax.lax.dynamic_slice(run.keep, (offset,), mask.shape)
