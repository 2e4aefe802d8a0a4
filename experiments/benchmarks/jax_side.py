"""kmil_jax's side: the programs that training really runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from torch import nn

from experiments.encoding import encoder
from kmil_jax import parallel, port, train
from kmil_jax.inference import CHOOSER, MODEL, Design
from kmil_jax.models import SPECS
from kmil_jax.programs import Program
from kmil_jax.tasks.bags import BagLoader, BagRuns, BagTask
from kmil_jax.types import Recipe, Store

Call = Callable[[], None]


def weights_of(model: str, module: nn.Module) -> dict[str, Any]:
  """Returns a torch model's weights, by network of `Design.networks`."""
  chooser = SPECS[model].chooser
  parts = {MODEL: (model, module)}
  if chooser:
    parts = {CHOOSER: (chooser, module.chooser)}
    parts[MODEL] = (model, module.classifier)
  return {
    name: port.from_torch(kind, _state_of(part))['params']
    for name, (kind, part) in parts.items()
  }


def _state_of(module: nn.Module) -> dict[str, np.ndarray]:
  """Returns a copy of a torch module's state."""
  return {k: v.cpu().numpy().copy() for k, v in module.state_dict().items()}


class _InOrder(BagLoader):
  """Visits the bags `visit`, int [S], in their order."""

  def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    return self.bucket_of(self.visit), self.visit[:, None]


def steps(
  design: Design,
  weights: Sequence[Mapping[str, Any]],
  store: Store,
  keep: np.ndarray | None,
  order: np.ndarray,
  trains: np.ndarray,
) -> Call:
  """Returns what trains R runs on bags, as an epoch of a training does.

  Args:
    design: of the model.
    weights: of each run, from `weights_of`.
    store: the bags.
    keep: instances that each run sees, bool [R, T]; None for all.
    order: bags that a call visits.
    trains: which bags move each run, bool [R, n].
  """
  runs, recipe = len(weights), Recipe()
  constants = BagRuns(
    seed=np.zeros(runs, np.uint32),
    fold=np.arange(runs, dtype=np.uint32),
    trains=trains,
    keep=keep,
  )
  sizes = design.num_classes, design.width
  task = BagTask(SPECS[design.model], recipe, *sizes)
  loader = _InOrder(store, *sizes, visit=order)
  program = Program(task, runs, loader, layout=parallel.layout(recipe.batch))
  params = jax.tree.map(lambda *w: np.stack(w), *[w[MODEL] for w in weights])
  states = program.put(train.init(task, constants, {'params': params}))
  rate, everyone = np.full(runs, recipe.learning_rate), np.ones(runs, bool)

  def call():
    nonlocal states
    states, _ = program.train(states, 0, rate, everyone)
    jax.block_until_ready(states)

  return call


def encoding(tiles: np.ndarray) -> Callable[[], np.ndarray]:
  """Returns what encodes tiles, uint8 [T, S, S, 3], as `extract` does."""
  lite0 = encoder.make_encoder(
    encoder.DEFAULT, None, features_dir='.', cache_dir='.', sample=lambda: tiles
  )
  starts = range(0, len(tiles), size := encoder.default_batch())
  return lambda: np.concatenate(
    [lite0.encode(tiles[start : start + size]) for start in starts]
  )
