"""kmil_jax's side: the programs that training and evaluation really run."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn

from experiments.benchmarks.bags import CLASSES, WIDTH, Cohort
from kmil_jax import parallel, plan, port, train
from kmil_jax.models import SPECS, cpu, kmil
from kmil_jax.programs import Program
from kmil_jax.tasks.bags import BagLoader, BagRuns, BagTask
from kmil_jax.types import Recipe, Store


def params_of(model: str, module: nn.Module) -> dict[str, Any]:
  """Returns a torch model's weights: of each of KMIL's stages, else of it."""

  def ported(name, module):
    # Copies: torch goes on training its own.
    state = {k: v.cpu().numpy().copy() for k, v in module.state_dict().items()}
    return port.from_torch(name, state)['params']

  if SPECS[model].chooser is None:
    return ported(model, module)
  return {
    'chooser': ported(SPECS[model].chooser, module.chooser),
    'model': ported(model, module.classifier),
  }


def forward(model: str, dtype: Any = None) -> Callable:
  """Returns the model as a function of parameters, x [N, D] and mask [N].

  It returns a `Prediction`; that of KMIL's second stage.
  """
  apply = SPECS[model].make(num_classes=CLASSES, dtype=dtype).apply
  if SPECS[model].chooser is None:
    return lambda params, x, mask: apply(
      {'params': params}, x, mask, train=False
    )
  chooser = SPECS[SPECS[model].chooser].make(num_classes=CLASSES, dtype=dtype)

  def both(params, x, mask):
    first = chooser.apply({'params': params['chooser']}, x, mask, train=False)
    keep = kmil.chosen(first.instance_logits, mask, kmil.Choice())
    return apply({'params': params['model']}, x, keep, train=False)

  return both


class Steps:
  """Visits bags of a cohort with all runs, as training does.

  Args:
    model: of SPECS.
    params: of every run, from `params_of`.
    cohort: the bags.
    order: those that a call visits, in this order.
    trains: which bags move each run, bool [R, n].
    dtype: of the features and of products.
  """

  def __init__(
    self,
    model: str,
    params: Sequence[Any],
    cohort: Cohort,
    order: np.ndarray,
    trains: np.ndarray,
    dtype: Any,
  ):
    runs = len(params)
    recipe = Recipe()
    task = BagTask(SPECS[model], recipe, CLASSES, WIDTH, dtype=dtype)
    store, _ = store_of(cohort, dtype)
    keep = None
    if SPECS[model].chooser is not None:
      keep = _kept(model, params, store, cohort)
      params = [run['model'] for run in params]
    constants = BagRuns(
      seed=np.zeros(runs, np.uint32),
      fold=np.arange(runs, dtype=np.uint32),
      trains=trains,
      keep=keep,
    )
    layout = parallel.layout(recipe.batch)
    loader = _InOrder(store, CLASSES, WIDTH, visit=np.int32(order))
    self._program = Program(task, runs, loader, layout=layout)
    state = train.init(task, constants, {'params': _stack(params)})
    self._states = self._program.put(state)
    self._rate = np.full(runs, recipe.learning_rate)

  def __call__(self) -> None:
    everyone = np.ones(len(self._rate), bool)
    self._states, _ = self._program.train(self._states, 0, self._rate, everyone)
    jax.block_until_ready(self._states)


class _InOrder(BagLoader):
  """Visits the bags `visit`, int [S], in their order."""

  def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    return self.bucket_of(self.visit), self.visit[:, None]


class Inference:
  """Predicts bags of one length with all runs, in one program.

  Args:
    model: of SPECS.
    params: of every run, from `params_of`.
    cohort: the bags.
    order: those that a call visits, in this order.
    attention: whether to return it too.
    dtype: of the features and of products.
  """

  def __init__(
    self,
    model: str,
    params: Sequence[Any],
    cohort: Cohort,
    order: np.ndarray,
    attention: bool,
    dtype: Any,
  ):
    store, (length,) = store_of(cohort, dtype)
    apply = forward(model, dtype)
    task = BagTask(SPECS[model], Recipe(), CLASSES, WIDTH, dtype=dtype)

    @jax.jit
    def program(params, store, order):
      def one(_, index):
        bag = task.batch(store, index[None], length)
        x, mask = bag.features[0], bag.mask[0]
        out = cpu.map_folds(
          SPECS[model], lambda fold: apply(fold, x, mask), params
        )
        return None, (out.logits, out.attention if attention else None)

      return jax.lax.scan(one, None, order)[1]

    arguments = jax.device_put((_stack(params), store, order))
    self._run = lambda: program(*arguments)

  def __call__(self) -> None:
    jax.block_until_ready(self._run())


def store_of(cohort: Cohort, dtype: Any) -> tuple[Store, tuple[int, ...]]:
  """Returns a cohort as training keeps it, and its padded lengths."""
  buckets = plan.bucket_lengths(cohort.length)
  rows = plan.num_rows(cohort.length)
  features = np.zeros((rows, WIDTH), dtype)
  features[: len(cohort.features)] = cohort.features
  store = Store(
    features=features,
    offset=cohort.offset,
    length=cohort.length,
    label=cohort.label,
  )
  return store, buckets


def _kept(model, params, store, cohort):
  """Returns the key instances of every run and bag, bool [R, T]."""
  chooser = SPECS[SPECS[model].chooser].make(num_classes=CLASSES)

  @jax.jit
  def keys(params, x, mask):
    said = chooser.apply({'params': params}, x, mask, train=False)
    return kmil.chosen(said.instance_logits, mask, kmil.Choice())

  buckets = plan.bucket_lengths(cohort.length)
  keep = np.zeros((len(params), len(store.features)), bool)
  for i, (start, size) in enumerate(
    zip(cohort.offset, cohort.length, strict=True)
  ):
    length = buckets[np.searchsorted(buckets, size)]
    x, mask = store.features[start : start + length], np.arange(length) < size
    for r, run in enumerate(params):
      kept = np.asarray(keys(run['chooser'], x, mask))[: cohort.length[i]]
      keep[r, start : start + size] = kept
  return keep


def _stack(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def dtype_of(precision: str) -> Any:
  return {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}[precision]
