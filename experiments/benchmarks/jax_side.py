"""kmil_jax's side: the programs that training really runs."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.work import CLASSES, WIDTH, Call, Visits
from experiments.encoding import encoder
from kmil_jax import parallel, port, train
from kmil_jax.models import SPECS
from kmil_jax.models.network import dtype_of
from kmil_jax.programs import Program
from kmil_jax.tasks.bags import BagLoader, BagRuns, BagTask
from kmil_jax.types import Recipe


class _InOrder(BagLoader):
  """Visits the bags `visit`, int [S], in their order."""

  def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    return self.bucket_of(self.visit), self.visit[:, None]


def runs_of(trains: np.ndarray, keep: np.ndarray | None) -> BagRuns:
  """Returns R runs; for the arguments see `Visits`."""
  runs = len(trains)
  return BagRuns(
    seed=np.zeros(runs, np.uint32),
    fold=np.arange(runs, dtype=np.uint32),
    trains=trains,
    keep=None if keep is None else np.resize(keep, (runs, keep.shape[1])),
  )


def steps(visits: Visits, weights: Sequence[Mapping[str, Any]] | None) -> Call:
  """Returns what trains R runs on bags, as an epoch of a training does.

  Args:
    visits: of the runs.
    weights: of each run; None to draw them.

  Returns:
    The call. After it, its attribute `compiled` returns the program.
  """
  precision, runs, recipe = visits.precision, len(visits.trains), Recipe()
  constants = runs_of(visits.trains, visits.keep)
  features = visits.store.features.astype(dtype_of(precision), copy=False)
  store = visits.store.replace(features=features)
  spec = SPECS[visits.model]
  task = BagTask(spec, recipe, CLASSES, WIDTH, precision=precision)
  loader = _InOrder(store, CLASSES, WIDTH, visit=visits.order)
  program = Program(task, runs, loader, layout=parallel.layout(recipe.batch))
  if weights:
    params = jax.tree.map(lambda *w: np.stack(w), *weights)
    variables = {'params': params}
  else:
    variables = train.draw(task, constants)
  states = program.put(train.init(task, constants, variables))
  rate, everyone = np.full(runs, recipe.learning_rate), np.ones(runs, bool)

  def call():
    nonlocal states
    states, _ = program.train(states, 0, rate, everyone)
    jax.block_until_ready(states)

  call.compiled = lambda: program.compiled(states)
  return call


def encoding(
  name: str,
  tiles: np.ndarray,
  state: Mapping[str, np.ndarray] | None,
  precision: str = 'float32',
) -> Call:
  """Returns what encodes tiles, uint8 [T, S, S, 3], as `extract` does.

  Args:
    name: of the encoder.
    tiles: to encode.
    state: its weights by their public names; None for any, as for the time.
    precision: of the computation.
  """
  of = encoder.network(name)
  if state:
    variables = port.from_torch(of.table, state)
  else:
    init = of.make(dtype=jnp.float32).init
    shapes = jax.eval_shape(init, jax.random.key(0), of.normalise(tiles[:1]))
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), shapes)
  encode = parallel.pmap_local(functools.partial(of.apply, precision=precision))
  variables = parallel.replicate(variables)
  starts = range(0, len(tiles), encoder.default_batch())
  return lambda: np.concatenate(
    [encode(variables, tiles[at : at + starts.step]) for at in starts]
  )
