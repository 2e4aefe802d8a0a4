"""Training one patch classifier: its state, one step, one prediction."""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kmil_jax import freezing, optim, parallel, patch_losses
from kmil_jax.encoder import PRECISIONS
from kmil_jax.types import PatchRecipe, PatchSpec, Tiles

Variables = dict[str, Any]  # 'params' and, where there is any, 'batch_stats'


class PatchError(ValueError):
  """A training that cannot be; says what to change."""


@chex.dataclass(frozen=True)
class TileState:
  """A patch classifier between two steps; equal on all devices."""

  params: Any
  batch_stats: Any  # empty without batch norms
  opt_state: Any
  step: chex.Array  # [] int32, steps taken
  seed: chex.Array  # [] uint32
  learning_rate: chex.Array  # [] float32, of this epoch

  @property
  def variables(self) -> Variables:
    return {'params': self.params, 'batch_stats': self.batch_stats}


class PatchTrainer:
  """The pure functions that train one classifier by one recipe.

  What differs between trainings of equal shapes, seed and learning rate, is in
  the state: they share their compiled programs.

  Attributes:
    model: Flax module of T tiles.

  Args:
    spec: of `models.CLASSIFIERS`.
    recipe: its loss, optimiser and weights of classes.
    num_classes: C.
    precision: of the computation, a key of `PRECISIONS`.
    freeze: which modules stay as they are, see `freezing`; '' for none.

  Raises:
    PatchError: if the recipe is binary and the classes are not two, or weighs
      another number of them.
  """

  def __init__(
    self,
    spec: PatchSpec,
    recipe: PatchRecipe,
    num_classes: int,
    *,
    precision: str = 'float32',
    freeze: str = '',
  ):
    if recipe.binary and num_classes != 2:
      raise PatchError(
        f'one logit tells two classes apart, and here are {num_classes}'
      )
    weights = recipe.class_weight
    if weights is not None and len(weights) != num_classes:
      raise PatchError(
        f'{len(weights)} class weights were given for {num_classes} classes'
      )
    self.model: nn.Module = spec.make(
      num_classes=1 if recipe.binary else num_classes,
      dtype=PRECISIONS[precision],
      axis_name=parallel.AXIS,
    )
    self._class_weight = weights
    self._freeze = freeze
    self._tx = optim.adam(recipe.betas, recipe.weight_decay)

    def draw(key, shape):
      # In training mode, where auxiliary heads are there.
      keys = {'params': key, 'dropout': key}
      return self.model.init(keys, jnp.zeros((2, *shape)), train=True)

    self._draw = jax.jit(draw, static_argnums=1)

  def draw(self, shape: tuple[int, int, int], seed: int) -> Variables:
    """Draws variables by the model's own initializers.

    Args:
      shape: of a tile, [S, S, C].
      seed: of the draw.

    Returns:
      The variables, NumPy.
    """
    # Steps count from 0: the last of all keys is the initialisation's.
    key = jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1))
    return jax.tree.map(np.array, self._draw(key, shape))

  def init(self, variables: Variables, seed: int) -> TileState:
    """Returns the state before the first step, NumPy.

    Args:
      variables: to start from, NumPy.
      seed: of dropout.

    Raises:
      freezing.FreezeError: if the modules to freeze are none, or all.
    """
    params = variables['params']
    if self._freeze:
      freezing.check(params, self._freeze)
    return TileState(
      params=params,
      batch_stats=variables.get('batch_stats', {}),
      # Adam's moments and count begin at 0.
      opt_state=jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(self._tx.init, params),
      ),
      step=np.int32(0),
      seed=np.uint32(seed),
      learning_rate=np.float32(0),
    )

  def step(
    self, state: TileState, tiles: Tiles
  ) -> tuple[TileState, dict[str, jax.Array]]:
    """One step on this device's tiles, under `parallel.AXIS`.

    Gradients are summed over devices and divided by the weight of all tiles;
    batch norms see the whole batch. Dropout depends on seed, step and device.

    Returns:
      The state, and of the whole batch the sum `loss` of weighted losses, its
      `weight`, the number of `hits` and of `tiles`; equal on all devices.
    """
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS))
    still = freezing.leaves(state.params, self._freeze)

    def loss_fn(params):
      params = jax.tree.map(
        lambda frozen, p: jax.lax.stop_gradient(p) if frozen else p,
        still,
        params,
      )
      with freezing.still_norms(self._freeze):
        prediction, mutated = self.model.apply(
          {'params': params, 'batch_stats': state.batch_stats},
          tiles.image,
          train=True,
          mutable=['batch_stats'],
          rngs={'dropout': key},
        )
      loss, weight = patch_losses.classification(
        prediction, tiles.label, self._class_weight
      )
      weight *= tiles.weight
      # Sum, then divide by the weight on all devices; psum the gradient.
      total = jax.lax.psum(weight.sum(), parallel.AXIS)
      stats = mutated.get('batch_stats', {})
      return (loss * weight).sum() / total, (stats, prediction.logits, total)

    (loss, (stats, logits, total)), grads = jax.value_and_grad(
      loss_fn, has_aux=True
    )(state.params)
    hit = patch_losses.probabilities(logits).argmax(-1) == tiles.label
    loss, grads, hits, count = jax.lax.psum(
      (loss, grads, (hit * tiles.weight).sum(), tiles.weight.sum()),
      parallel.AXIS,
    )
    updates, opt_state = self._tx.update(
      grads, state.opt_state, state.params, learning_rate=state.learning_rate
    )
    # The decay would move them.
    updates = jax.tree.map(
      lambda frozen, u: jnp.zeros_like(u) if frozen else u, still, updates
    )
    new = state.replace(
      params=optax.apply_updates(state.params, updates),
      batch_stats=stats,
      opt_state=opt_state,
      step=state.step + 1,
    )
    told = {'loss': loss * total, 'weight': total, 'hits': hits, 'tiles': count}
    return new, told

  def predict(self, variables: Variables, tiles: Tiles) -> dict[str, jax.Array]:
    """Evaluates T tiles, each by itself.

    Returns:
      `prob` [T, C], `features` [T, F], and the `loss` [T] with the `weight`
      [T] that the recipe gives to the tile's class.
    """
    prediction = self.model.apply(variables, tiles.image, train=False)
    loss, weight = patch_losses.classification(
      prediction, tiles.label, self._class_weight
    )
    return {
      'prob': patch_losses.probabilities(prediction.logits),
      'features': prediction.features,
      'loss': loss,
      'weight': weight,
    }
