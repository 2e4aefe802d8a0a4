"""Optimisers and schedules with PyTorch's meaning."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kmil_jax.types import Recipe, unknown

# Shao et al., NeurIPS 2021, released code.
_SYNC_EVERY = 6
_SYNC_SHARE = 0.5
# What `torch.nn.utils.clip_grad_norm_` adds to a norm before it divides.
_CLIP_EPSILON = 1e-6


def make(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
  """The optimiser of a recipe, whose learning rate is given at every step.

  `update(gradients, state, params, learning_rate=rate)` returns what to add to
  the parameters. 'adam' is `torch.optim.Adam`: its weight decay is an L2 term
  in the gradient. 'lookahead_radam' is rectified Adam (Liu et al., ICLR 2020)
  with decoupled decay of all but biases and norms, under `lookahead`.

  Args:
    recipe: its `optimizer`, `betas`, `weight_decay`, `clip` and `accumulate`.

  Raises:
    ValueError: for another optimiser.
  """
  decay = recipe.weight_decay
  steps = {
    'adam': [
      optax.add_decayed_weights(decay),
      optax.scale_by_adam(*recipe.betas),
    ],
    'lookahead_radam': [
      optax.scale_by_radam(*recipe.betas),
      optax.add_decayed_weights(decay, mask=_decayed),
    ],
  }
  if recipe.optimizer not in steps:
    raise unknown('optimizer', recipe.optimizer, steps)
  clip = [clip_modules(recipe.clip)] if recipe.clip else []
  tx = optax.chain(*clip, *steps[recipe.optimizer], _scale_by_given_rate())
  if recipe.optimizer == 'lookahead_radam':
    tx = lookahead(tx)
  if recipe.accumulate > 1:
    steps = optax.MultiSteps(tx, recipe.accumulate)
    # Its own `gradient_transformation` would drop the learning rate.
    tx = optax.GradientTransformationExtraArgs(steps.init, steps.update)
  return tx


def clip_modules(max_norm: float) -> optax.GradientTransformation:
  """Clips the gradient of every top-level module to a norm of its own.

    g <- g min(1, max_norm / (|g| + 1e-6))

  Zhang et al., CVPR 2022 (DTFD-MIL), released code: `clip_grad_norm_` once per
  module.

  Args:
    max_norm: largest Euclidean norm of one module's gradient.
  """

  def clip(module):
    scale = max_norm / (optax.tree.norm(module) + _CLIP_EPSILON)
    return jax.tree.map(lambda g: g * jnp.minimum(scale, 1), module)

  return optax.stateless(
    lambda grads, _: {name: clip(module) for name, module in grads.items()}
  )


def lookahead(
  inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
  """Every 6 steps, pulls fast weights half of the way back to slow ones.

    slow <- slow + (fast - slow) / 2,   fast <- slow

  Zhang et al., NeurIPS 2019, alg. 1. As in the code that TransMIL was released
  with, the slow weights are the fast ones of the first synchronisation, which
  so changes nothing; `optax.lookahead` starts from the initial weights.

  Args:
    inner: moves the fast weights.
  """

  def init(params):  # The inner state, slow weights, and steps taken.
    return inner.init(params), params, jnp.zeros([], jnp.int32)

  def update(grads, state, params, **extra):
    inner_state, slow, count = state
    updates, inner_state = inner.update(grads, inner_state, params, **extra)
    fast, count = optax.apply_updates(params, updates), count + 1
    sync, first = count % _SYNC_EVERY == 0, count == _SYNC_EVERY
    pull = lambda slow, fast: jnp.where(
      first, fast, slow + _SYNC_SHARE * (fast - slow)
    )
    pulled = jax.tree.map(pull, slow, fast)
    choose = lambda new, old: jnp.where(sync, new, old)
    moved = jax.tree.map(choose, pulled, fast)
    slow = jax.tree.map(choose, pulled, slow)
    updates = jax.tree.map(jnp.subtract, moved, params)
    return updates, (inner_state, slow, count)

  return optax.GradientTransformationExtraArgs(init, update)


def cosine(peak: float, floor: float, epoch: int, epochs: int) -> float:
  """Learning rate of one epoch under `torch`'s CosineAnnealingLR.

    floor + (peak - floor) (1 + cos(pi epoch / epochs)) / 2

  Args:
    peak: the rate of epoch 0.
    floor: the rate that epoch `epochs` would have.
    epoch: from 0.
    epochs: length of the annealing.

  Returns:
    The rate, constant within the epoch.
  """
  phase = (1 + math.cos(math.pi * epoch / epochs)) / 2
  return floor + (peak - floor) * phase


def orthogonal(key: jax.Array, params: Any) -> Any:
  """Draws every `weight` as an orthogonal matrix and sets biases to 0.

  The start of Li et al., CVPR 2021 (DSMIL), released code.

  Args:
    key: of the draw.
    params: of dense layers.
  """
  draw = jax.nn.initializers.orthogonal()

  def start(place, path, leaf):
    if path[-1].key == 'bias':
      return jnp.zeros_like(leaf)
    return draw(jax.random.fold_in(key, place), leaf.shape, leaf.dtype)

  leaves, tree = jax.tree.flatten_with_path(params)
  drawn = [start(place, *leaf) for place, leaf in enumerate(leaves)]
  return jax.tree.unflatten(tree, drawn)


def _scale_by_given_rate() -> optax.GradientTransformationExtraArgs:
  """Multiplies by minus the `learning_rate` that `update` is called with."""

  scale = lambda updates, state, params=None, *, learning_rate, **_: (
    jax.tree.map(lambda u: -learning_rate * u, updates),
    state,
  )
  empty = lambda params: optax.EmptyState()
  return optax.GradientTransformationExtraArgs(empty, scale)


def _decayed(params: Any) -> Any:
  """True on the leaves whose weights decay: neither biases nor norms."""
  decays = lambda path, _: path[-1].key not in ('bias', 'scale')
  return jax.tree.map_with_path(decays, params)
