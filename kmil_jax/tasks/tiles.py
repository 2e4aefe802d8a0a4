"""Patch classifiers: batches of tiles, spread over devices."""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import re
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kmil_jax import augment, losses, optim, parallel
from kmil_jax.models import network
from kmil_jax.models.batch_norm import BatchNorm
from kmil_jax.parallel import Layout
from kmil_jax.programs import Chunk, Evaluation, Program
from kmil_jax.train import Aux, Task, Variables
from kmil_jax.types import PatchRecipe, Recipe, Tiles

_NO_MODULE = '(?!)'  # Matches nothing.
# Steps, and devices, count from 0: the last of all keys is of another draw.
_LAST = np.uint32(2**32 - 1)


class PatchError(ValueError):
  """A training that cannot be; its message names what to change."""


@chex.dataclass(frozen=True)
class TileRuns:
  """What tells R runs apart."""

  seed: chex.Array  # [R] uint32, of the draw, augmentation and dropout


class TileTask(Task):
  """A patch classifier trained by one recipe.

  Attributes:
    model: Flax module of T tiles.

  Args:
    make: of `models.CLASSIFIERS`.
    recipe: its loss, optimiser, weights of classes, augmentation and how tiles
      are normalised.
    num_classes: C; 2 if the recipe is binary.
    shape: of what the network takes, [S, S, channels]; tiles are resized.
    precision: of the computation, see `network.build`.
    freeze: modules that stay as they are, a regular expression that is matched
      from the beginning of their paths, as `layer1_0/bn1`; '' for none. They
      keep their parameters; their batch norms keep, and normalise with, the
      running statistics.

  Raises:
    PatchError: if the recipe weighs another number of classes or does not fit
      the channels, or `freeze` is no regular expression.
  """

  def __init__(
    self,
    make: Callable[..., nn.Module],
    recipe: PatchRecipe,
    num_classes: int,
    shape: tuple[int, int, int],
    *,
    precision: str = 'float32',
    freeze: str = '',
  ):
    weights = recipe.class_weight or (1.0,) * num_classes
    if len(weights) != num_classes:
      raise PatchError(
        f'{len(weights)} class weights were given for {num_classes} classes.'
        ' Give one for each.'
      )
    self._policy, channels = augment.PRESETS[recipe.augment], shape[2]
    if self._policy.colour[0] and channels != 3:
      raise PatchError(
        f'Tiles have {channels} channel(s), and --augment={recipe.augment}'
        ' changes colours, of RGB alone. Choose another.'
      )
    for name in ('mean', 'std'):
      if len(values := getattr(recipe, name)) != channels:
        raise PatchError(f'{name} {values}: tiles have {channels} channel(s).')
    self._mean, self._std = recipe.mean, recipe.std
    make = functools.partial(
      make,
      num_classes=1 if recipe.binary else num_classes,
      axis_name=parallel.AXIS,
    )
    self.model = network.build(make, precision)
    try:
      self._freeze = re.compile(freeze or _NO_MODULE)
    except re.error as error:
      raise PatchError(f'freeze={freeze!r}: {error}') from error
    self.tx = optax.chain(
      optim.make(Recipe(betas=recipe.betas, weight_decay=recipe.weight_decay)),
      # The decay would move them.
      optax.masked(optax.set_to_zero(), self._frozen),
    )
    self._class_weight = np.float32(weights)
    self._shape = shape

  def init(self, run: TileRuns) -> Variables:
    key = jax.random.fold_in(jax.random.key(run.seed), _LAST)
    variables = self.model.init(key, jnp.zeros((1, *self._shape)))
    self._check_frozen(variables['params'])
    return variables

  def key(self, run: TileRuns, epoch: Any, step: jax.Array) -> jax.Array:
    """Returns a key of seed and step."""
    return jax.random.fold_in(jax.random.key(run.seed), step)

  def batch(self, store: Any, item: Tiles, length: int | None) -> Tiles:
    return item

  def weight(self, batch: Tiles, run: TileRuns) -> jax.Array:
    return jnp.asarray(self._class_weight)[batch.label] * batch.weight

  def loss(
    self, variables: Variables, batch: Tiles, run: TileRuns, key: jax.Array
  ) -> tuple[jax.Array, Aux]:
    """Returns the cross-entropies; batch norms see the batch of all devices.

    Augmentation depends on the place of a tile in that batch.
    """
    image, device = batch.image, jax.lax.axis_index(parallel.AXIS)
    place = device * len(image) + jnp.arange(len(image))
    changes = jax.random.fold_in(key, _LAST)
    size = self._shape[0]
    image = augment.apply(image, changes, place, self._policy, size)
    params = variables['params']
    params = jax.tree.map(
      lambda frozen, p: jax.lax.stop_gradient(p) if frozen else p,
      self._frozen(params),
      params,
    )
    with nn.intercept_methods(self._freeze_norms):
      prediction, mutated = self.model.apply(
        {**variables, 'params': params},
        self.normalise(image),
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.fold_in(key, device)},
      )
    loss = losses.tile_cross_entropy(prediction, batch.label)
    prob = losses.tile_probabilities(prediction.logits)
    stats = mutated.get('batch_stats', {})
    return loss, Aux(hits=prob.argmax(-1) == batch.label, stats=stats)

  def predict(
    self, variables: Variables, batch: Tiles, run: TileRuns
  ) -> dict[str, jax.Array]:
    """Evaluates T tiles, each by itself.

    Returns:
      `prob` [T, C], `features` [T, F], and `loss`, its `weight` in the recipe
      and `label`, [T] each.
    """
    image = self.normalise(batch.image)
    prediction = self.model.apply(variables, image, train=False)
    return {
      'prob': losses.tile_probabilities(prediction.logits),
      'features': prediction.features,
      'loss': losses.tile_cross_entropy(prediction, batch.label),
      'weight': self.weight(batch, run),
      'label': batch.label,
    }

  def normalise(self, image: jax.Array) -> jax.Array:
    """Returns tiles as the network takes them, [T, S, S, C] float32."""
    return augment.normalise(image, self._mean, self._std, self._shape[0])

  def _frozen(self, params: Any) -> Any:
    """Returns True for the leaves of modules that `freeze` matches."""

    def of(path, _):
      module = '/'.join(key.key for key in path[:-1])
      return self._freeze.match(module) is not None

    return jax.tree_util.tree_map_with_path(of, params)

  def _check_frozen(self, params: Any) -> None:
    """Raises unless some modules are trained and, of `freeze`, some are not."""
    frozen = jax.tree.leaves(self._frozen(params))
    pattern = self._freeze.pattern
    if all(frozen):
      raise PatchError(
        f'freeze={pattern!r} leaves nothing to train. Match fewer modules.'
      )
    if pattern != _NO_MODULE and not any(frozen):
      raise PatchError(
        f'freeze={pattern!r} matches the beginning of no module. Those at the'
        f' top are {", ".join(sorted(params))}.'
      )

  def _freeze_norms(self, call: Any, args: Any, kwargs: Any, context: Any):
    """Has frozen batch norms act as in evaluation."""
    module = context.module
    if isinstance(module, BatchNorm):
      if self._freeze.match('/'.join(module.path)):
        kwargs = {**kwargs, 'use_running_average': True}
    return call(*args, **kwargs)


# The batches of an epoch, equal in all processes.
Batches = Callable[[int], Iterator[Tiles]]


@dataclasses.dataclass(frozen=True)
class TileLoader:
  """Batches that the host sends; see `programs.Loader`.

  Examples to evaluate are a function that returns their batches in order;
  fillers, of weight 0, complete the last.

  Attributes:
    batches: of an epoch, of a size that divides over the devices; a pure
      function. None to evaluate alone.
  """

  batches: Batches | None = None
  store = None
  lengths = (None,)

  def train(
    self, epoch: int, runs: np.ndarray, layout: Layout
  ) -> Iterator[Chunk]:
    for tiles in self.batches(epoch):
      yield _chunk(tiles, layout)

  def evaluate(
    self,
    examples: Callable[[], Iterator[Tiles]],
    runs: np.ndarray,
    layout: Layout,
  ) -> Iterator[Evaluation]:
    first = 0
    for tiles in examples():
      size = len(tiles.label)
      rows = np.where(tiles.weight > 0, np.arange(first, first + size), -1)
      index = rows.reshape(parallel.num_devices(), 1, -1)
      bucket, item = _chunk(tiles, layout)
      chunk = bucket, item, np.zeros_like(bucket)
      yield chunk, np.full(index.shape, runs[0]), index
      first += size


def program(task: TileTask, batches: Batches | None = None) -> Program:
  """Returns epochs of one run over batches that spread over devices."""
  layout = parallel.ExamplesOverDevices
  return Program(task, 1, TileLoader(batches), layout=layout)


def _chunk(tiles: Tiles, layout: Layout) -> Chunk:
  one_step = jax.tree.map(lambda x: np.asarray(x)[None], tiles)
  return layout.share((np.zeros(1, np.int32), one_step))
