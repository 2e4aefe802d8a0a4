"""One step of R runs of any task: their state, gradients and update.

A run is one training: a fold, a seed, a setting. Every leaf of a state has the
runs as its first axis. A task knows a single run; this module adds the runs,
the devices, the weights and the optimiser.
"""

from collections.abc import Callable
import functools
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

Variables = dict[str, Any]  # 'params' and 'batch_stats'
SUMS = ('hits', 'count', 'loss', 'weight')  # Of `gradients`.


@chex.dataclass(frozen=True)
class Aux:
  """What a task returns besides the losses of B examples."""

  hits: chex.Array  # [B] bool, examples classified correctly
  stats: Any  # batch statistics after the step, {} without batch norms


class Task(Protocol):
  """What is trained, as pure functions of one run.

  `run` holds what tells runs apart (seed, fold, training part), `store` what
  all runs share and stays on the device, `item` what a step reads, and `batch`
  the B examples made of store and item. Compiled programs are shared by all
  programs of one task object.
  """

  tx: optax.GradientTransformationExtraArgs  # takes `learning_rate`

  def init(self, run: Any) -> Variables:
    """Draws the variables of one run from its constants alone."""

  def key(self, run: Any, epoch: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the key of a step; nothing random is saved."""

  def fetch(
    self, store: Any, item: Any, longest: int | None, *, same: bool
  ) -> Any:
    """Returns the item with what other devices hold of it, if any does.

    Args:
      store: see above.
      item: of this device.
      longest: of the padded lengths; None where nothing is cut.
      same: whether the item is that of all devices.
    """
    return item

  def batch(self, store: Any, item: Any, length: int | None) -> Any:
    """Makes a batch, padded to `length` where examples are cut from `store`."""

  def weight(self, batch: Any, run: Any) -> jax.Array:
    """How much each example counts, [B]; 0 for fillers and other runs'."""

  def loss(
    self, variables: Variables, batch: Any, run: Any, key: jax.Array
  ) -> tuple[jax.Array, Aux]:
    """Returns the loss of every example, [B], before it is weighted."""

  def predict(
    self, variables: Variables, batch: Any, run: Any
  ) -> dict[str, jax.Array]:
    """Evaluates examples; arrays [B, ...] by name."""

  def in_turn(self, num_runs: int, batch: Any) -> bool:
    """Whether runs are taken one after the other rather than all at once.

    Only for tasks without collectives: runs of weight 0 are skipped.
    """
    return False


@chex.dataclass(frozen=True)
class State:
  """R runs between two steps."""

  params: Any  # [R, ...]
  batch_stats: Any  # [R, ...], {} without batch norms
  opt_state: Any  # [R, ...]
  best: Variables  # [R, ...] of the epoch that validation chose
  step: chex.Array  # [R] int32, updates so far
  epoch: chex.Array  # [R] int32, from 0
  learning_rate: chex.Array  # [R] float32, of this epoch
  active: chex.Array  # [R] bool, False once a run has stopped
  run: Any  # [R, ...] the task's constants

  @property
  def variables(self) -> Variables:
    return {'params': self.params, 'batch_stats': self.batch_stats}


def draw(
  task: Task, runs: Any, options: dict[str, Any] | None = None
) -> Variables:
  """Draws the variables of R runs, each from its own constants; NumPy.

  Args:
    task: what is trained.
    runs: the constants of R runs, NumPy leaves [R, ...].
    options: of the compiler.
  """
  # Of the class: traced once for a task, however often it is drawn.
  drawn = jax.jit(type(task).init, static_argnums=0, compiler_options=options)
  return _each(functools.partial(drawn, task), runs)


def init(task: Task, runs: Any, variables: Variables) -> State:
  """Returns R runs before their first step, NumPy leaves [R, ...]."""
  variables, size = {'batch_stats': {}, **variables}, count(runs)
  return State(
    **variables,
    opt_state=_each(jax.jit(task.tx.init), variables['params']),
    best=variables,
    step=np.zeros(size, np.int32),
    epoch=np.zeros(size, np.int32),
    learning_rate=np.zeros(size, np.float32),
    active=np.ones(size, bool),
    run=runs,
  )


def count(runs: Any) -> int:
  """Returns R, the length of the first axis of all leaves."""
  return len(jax.tree.leaves(runs)[0])


def _each(f: Callable, runs: Any) -> Any:
  """Returns `f` of one run after the other; NumPy leaves [R, ...]."""
  one = lambda r: jax.device_get(f(jax.tree.map(lambda x: x[r], runs)))
  out = [one(r) for r in range(count(runs))]
  return jax.tree.map(lambda *x: np.stack(x), *out)


def gradients(
  task: Task, state: State, batch: Any, axis: str | None
) -> tuple[Any, Any, dict[str, jax.Array]]:
  """Gradients of every run's mean loss over the batches of all devices.

    psum(sum_b w_b l_b) / psum(sum_b w_b)

  The loss of an example of weight 0 is selected away, whatever it is; its
  gradient must be finite.

  Args:
    task: what is trained.
    state: R runs.
    batch: of this device, B examples.
    axis: the device axis over which examples are spread, or None.

  Returns:
    Gradients [R, ...], batch statistics [R, ...] and sums over the examples of
    all devices, [R] each: the weighted `loss`, the `weight`, the `hits` and the
    `count` of examples whose weight is above 0.
  """
  psum = lambda tree: jax.lax.psum(tree, axis) if axis else tree
  weight = jax.vmap(task.weight, (None, 0))(batch, state.run)
  weight = jnp.where(state.active[:, None], weight, 0)  # [R, B]
  total = psum(weight.sum(1))
  in_turn = task.in_turn(len(total), batch)

  def one_run(variables, run, epoch, step, weight, total):
    params, key = variables['params'], task.key(run, epoch, step)

    def mean_loss(params):
      losses, aux = task.loss({**variables, 'params': params}, batch, run, key)
      summed = jnp.where(weight > 0, losses * weight, 0).sum()
      # Weights may sum to less than 1.
      return summed / jnp.where(total > 0, total, 1), aux

    loss_and_gradients = jax.value_and_grad(mean_loss, has_aux=True)
    if not in_turn:
      return loss_and_gradients(params)
    shapes = jax.eval_shape(loss_and_gradients, params)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.cond(
      weight.any(), loss_and_gradients, lambda _: zeros, params
    )

  columns = (state.variables, state.run, state.epoch, state.step, weight, total)
  (loss, aux), grads = over(one_run, columns, in_turn=in_turn)
  counted = weight > 0
  sums = {'hits': (aux.hits & counted).sum(1), 'count': counted.sum(1)}
  loss, grads, sums = psum((loss, grads, sums))
  return grads, aux.stats, sums | {'loss': loss * total, 'weight': total}


def update(
  task: Task, state: State, grads: Any, stats: Any, weight: jax.Array
) -> State:
  """Moves the runs whose `weight` [R] is above 0 along their gradients.

  Variables, moments and step counts of the others stay as they are.
  """

  def one_run(state, grads, stats, weight):
    updates, opt_state = task.tx.update(
      grads, state.opt_state, state.params, learning_rate=state.learning_rate
    )
    new = {
      'params': optax.apply_updates(state.params, updates),
      'batch_stats': stats,
      'opt_state': opt_state,
      'step': state.step + 1,
    }
    choose = lambda new, old: jnp.where(weight > 0, new, old)
    old = {name: state[name] for name in new}
    return state.replace(**jax.tree.map(choose, new, old))

  return jax.vmap(one_run)(state, grads, stats, weight)


def keep_best(state: State, improved: jax.Array, failed: jax.Array) -> State:
  """Copies variables to `best` where `improved`, back where `failed`, [R]."""

  def choose(where, new, old):
    shape = lambda x: where.reshape(where.shape + (1,) * (x.ndim - where.ndim))
    return jax.tree.map(lambda a, b: jnp.where(shape(a), a, b), new, old)

  best = choose(improved, state.variables, state.best)
  return state.replace(best=best, **choose(failed, best, state.variables))


def over(f: Callable, columns: tuple, *, in_turn: bool) -> Any:
  """Maps `f(*column)` over the first axis of columns; one of 1 vanishes.

  `vmap` would make grouped convolutions of it and a loop would slow them down.
  """
  if count(columns) == 1:
    out = f(*jax.tree.map(lambda x: x[0], columns))
    return jax.tree.map(lambda x: x[None], out)
  if in_turn:
    return jax.lax.map(lambda column: f(*column), columns)
  return jax.vmap(f)(*columns)
