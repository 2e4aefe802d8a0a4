"""A training epoch as pure functions of one device, with shapes to call them.

For tools that compile what is trained and look at the program: nothing is
computed, and no accelerator is needed to lower it for one; see
`models.cpu.lowering_for`.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import plan, programs, train
from kmil_jax.models import SPECS
from kmil_jax.tasks.bags import BagRuns, BagTask
from kmil_jax.types import Recipe, Store


@dataclasses.dataclass(frozen=True)
class Workload:
  """What is trained, on a cohort of which only the sizes matter."""

  model: str = 'dsmil'  # of SPECS; 'kmil' is its second stage
  runs: int = 10  # on one device
  precision: str = 'bfloat16'
  bags: int = 1036
  instances: tuple[int, ...] = (5000,)  # of the bags, in turn
  width: int = 1024
  classes: int = 5
  own_recipe: bool = False  # that of the model's authors


@dataclasses.dataclass(frozen=True)
class Epoch:
  """Functions of one device, and what they are called with, as shapes."""

  train: Callable[[Any, Any, Any], Any]  # (state, store, chunk)
  evaluate: Callable[[Any, Any, Any], Any]  # (model, store, pairs)
  state: Any  # [runs, ...]
  model: Any  # (variables, constants) of the runs
  store: Store
  chunk: Any  # bucket and bags of every step
  pairs: Any  # bucket, bag and run of each bag to evaluate
  buckets: tuple[int, ...]  # padded lengths


def epoch_of(work: Workload) -> Epoch:
  """Returns the epoch over a cohort of the workload's size."""
  spec = SPECS[work.model]
  recipe = spec.own if work.own_recipe else Recipe()
  dtype = jnp.dtype(work.precision)
  lengths = np.resize(work.instances, work.bags)
  buckets, rows = plan.bucket_lengths(lengths), plan.num_rows(lengths)
  shape = lambda kind, *sides: jax.ShapeDtypeStruct(sides, kind)
  ints = lambda *sides: shape(np.int32, *sides)
  task = BagTask(spec, recipe, work.classes, work.width, dtype=dtype)
  runs = BagRuns(
    seed=shape(np.uint32, work.runs),
    fold=shape(np.uint32, work.runs),
    trains=shape(np.bool_, work.runs, work.bags),
    # The second stage sees some instances only.
    keep=shape(np.bool_, work.runs, rows) if spec.chooser else None,
  )
  variables = jax.eval_shape(jax.vmap(task.init), runs)
  opt_state = jax.eval_shape(jax.vmap(task.tx.init), variables['params'])
  state = train.state_of(runs, variables, opt_state)
  train_chunk, evaluate_chunk = programs.chunk_functions(task, None, buckets)
  return Epoch(
    train=train_chunk,
    evaluate=evaluate_chunk,
    state=state,
    model=(variables, runs),
    store=Store(
      features=shape(dtype, rows, work.width),
      offset=ints(work.bags),
      length=ints(work.bags),
      label=ints(work.bags),
    ),
    chunk=(ints(work.bags), ints(work.bags, recipe.batch)),
    pairs=(ints(work.bags), ints(work.bags, 1), ints(work.bags)),
    buckets=buckets,
  )
