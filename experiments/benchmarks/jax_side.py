"""kmil_jax's side: the programs that training really runs."""

from collections.abc import Callable, Mapping, Sequence
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import augment, parallel, port, train
from kmil_jax.models import SPECS, cpu
from kmil_jax.models.efficientnet import EfficientNetLite0
from kmil_jax.models.resnet import ResNet50Trunk
from kmil_jax.programs import Program
from kmil_jax.tasks.bags import BagLoader, BagRuns, BagTask
from kmil_jax.types import Recipe, Store

Call = Callable[[], None]
# Of tiles, by their names in `port`.
NETWORKS = {
  'efficientnet_lite0': EfficientNetLite0,
  'resnet50_trunk': ResNet50Trunk,
}


class _InOrder(BagLoader):
  """Visits the bags `visit`, int [S], in their order."""

  def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    return self.bucket_of(self.visit), self.visit[:, None]


def steps(
  model: str,
  weights: Sequence[Mapping[str, Any]] | None,
  store: Store,
  keep: np.ndarray | None,
  order: np.ndarray,
  trains: np.ndarray,
  sizes: tuple[int, int],
  precision: str = 'float32',
) -> tuple[Call, Callable[[], dict[str, Any]]]:
  """Returns what trains R runs on bags, as an epoch of a training does.

  Args:
    model: of `SPECS`.
    weights: of each run; None to draw them.
    store: the bags.
    keep: instances that all runs see, bool [T]; None for all.
    order: bags that a call visits.
    trains: which bags move each run, bool [R, n].
    sizes: classes, and width of the features.
    precision: of the computation.

  Returns:
    The call; and what tells, after it, of the compiled program: `launches`, its
    fusions and calls of libraries, `jax_temp_MB` and `jax_peak_MB`.
  """
  runs, recipe = len(trains), Recipe()
  constants = BagRuns(
    seed=np.zeros(runs, np.uint32),
    fold=np.arange(runs, dtype=np.uint32),
    trains=trains,
    keep=None if keep is None else np.tile(keep, (runs, 1)),
  )
  dtype = jnp.dtype(precision)
  task = BagTask(SPECS[model], recipe, *sizes, dtype=dtype)
  loader = _InOrder(store, *sizes, visit=order)
  program = Program(task, runs, loader, layout=parallel.layout(recipe.batch))
  variables = train.draw(task, constants)
  if weights:
    params = jax.tree.map(lambda *w: np.stack(w), *weights)
    variables = {'params': params}
  states = program.put(train.init(task, constants, variables))
  rate, everyone = np.full(runs, recipe.learning_rate), np.ones(runs, bool)
  train_chunk, called = program._train, []

  def noted(*args):
    # JAX keeps what it compiled: to ask for it again costs nothing.
    called[:] = [train_chunk.lower(*args)]
    program._train = train_chunk
    return train_chunk(*args)

  program._train = noted

  def call():
    nonlocal states
    states, _ = program.train(states, 0, rate, everyone)
    jax.block_until_ready(states)

  def counts():
    compiled = called[0].compile()
    kernel = r' (?:fusion|custom-call)\('
    return {
      'launches': len(re.findall(kernel, compiled.as_text())),
      'jax_temp_MB': compiled.memory_analysis().temp_size_in_bytes / 1e6,
      'jax_peak_MB': parallel.peak_bytes(compiled) / 1e6,
    }

  return call, counts


def encoding(
  name: str,
  tiles: np.ndarray,
  state: Mapping[str, np.ndarray] | None,
  precision: str = 'float32',
) -> Callable[[], np.ndarray]:
  """Returns what encodes tiles, uint8 [T, S, S, 3], as `extract` does.

  Args:
    name: of `NETWORKS`.
    tiles: to encode.
    state: its weights by their public names; None to draw them.
    precision: of the computation.
  """
  network = NETWORKS[name](dtype=jnp.dtype(precision))
  if state:
    variables = port.from_torch(name, state)
  else:
    tile = np.zeros((1, *tiles.shape[1:]), np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), tile)
  one = lambda variables, x: network.apply(variables, augment.normalise(x))
  run = lambda variables, x: cpu.map_tiles(functools.partial(one, variables), x)
  encode = functools.partial(
    parallel.pmap_local(run), parallel.replicate(variables)
  )
  size = 16 if parallel.platform() == 'cpu' else 256
  starts = range(0, len(tiles), size * parallel.num_local_devices())
  return lambda: np.concatenate(
    [encode(tiles[start : start + starts.step]) for start in starts]
  )
