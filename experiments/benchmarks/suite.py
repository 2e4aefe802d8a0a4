"""The same work in torch and in kmil_jax, in one run."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from experiments.benchmarks import jax_side, torch_side
from experiments.benchmarks.torch_models import KMIL, MODELS
from experiments.benchmarks.work import Work
from experiments.encoding import encoder
from experiments.run import weights
from kmil_jax import cost, inference
from kmil_jax.inference import Design
from kmil_jax.models.dtfd import pseudo_bags
from kmil_jax.tasks.bags import num_rows
from kmil_jax.types import Store

WIDTH, CLASSES, FOLDS = 1024, 5, 10
BAGS = {'cpu': 60, 'cuda': 300}  # Of an epoch.
TILES, _SIDE = {'cpu': 64, 'cuda': 1024}, 128  # To encode, and their side.
_TOLERANCE = 1e-3
# A call is several steps, up to so many multiply-adds of forward passes: the
# first touch of fresh memory is not to count.
_CALL, _MOST_STEPS = 6e10, 64
_ROWS = 8192  # Instances of different bags that a call visits, at least.
# Instances that torch takes of all runs at once, at most. More are slower than
# run by run, and need 10 GB and more.
_AT_ONCE = 2**16
# Threads of the side that ran last spin for a moment and would take a core.
_REST = 0.02


class ParityError(Exception):
  """The sides compute different things: to time them would say nothing."""


class NoForm(Exception):
  """No form of torch works."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """A row of the table."""

  part: str
  model: str
  instances: int  # Of a bag, on average in an epoch.
  runs: int


def run(work: Work, log: Callable[[str], None]) -> dict[str, Any]:
  """Measures all rows, the small before the large.

  Args:
    work: what.
    log: is given a line for each row.

  Returns:
    The report, fit for JSON: `device`, `versions`, `date`, `settings`, `rows`,
    and `not_measured` with the reasons.

  Raises:
    ParityError: if the sides compute different things.
  """
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  # On GPUs, products of float32 are TF32, as in JAX.
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
  device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
  rows, missing = [], []
  for entry in _entries(work, device):
    row = dataclasses.asdict(entry)
    try:
      row |= contest(*_sides(work, entry, device), work.repeats)
    except NoForm as e:
      missing.append(row | {'reason': str(e)})
      continue
    log(f'{entry}: {row["ratio"]:.2f}; {row["torch_forms"]}')
    rows.append(row)
  packages = 'jax', 'jaxlib', 'flax', 'optax', 'torch', 'numpy'
  return {
    'device': {
      'torch': torch.cuda.get_device_name() if device.type != 'cpu' else 'cpu',
      'jax': jax.local_devices()[0].device_kind,
      'jax_devices': jax.local_device_count(),
      'machine': platform.machine(),
      'cores': len(os.sched_getaffinity(0)),
    },
    'versions': {'python': platform.python_version()}
    | {name: importlib.metadata.version(name) for name in packages},
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'settings': dataclasses.asdict(work)
    | {
      'torch_threads': torch.get_num_threads(),
      'load_average': os.getloadavg()[0],
    },
    'rows': rows,
    'not_measured': missing,
  }


def contest(
  ours: Callable[[], jax_side.Call],
  theirs: torch_side.Forms,
  steps: int,
  repeats: int,
) -> dict[str, Any]:
  """Times kmil_jax and the fastest form of torch by turns.

  Args:
    ours: makes kmil_jax's side.
    theirs: make torch's; what fails drops out.
    steps: of a call.
    repeats: timings of each side.

  Returns:
    Columns of a row: seconds of a step, medians and the least, by side; torch's
    form, and seconds or the fault of all its forms; by how much each side's
    first call is longer; the ratio of the medians.

  Raises:
    NoForm: if no form of torch works, with what came of each.
  """
  calls, compiling = {'jax': ours()}, {}
  compiling['jax'] = _compiling(calls['jax'])
  forms, fastest = {}, None
  for form, make in theirs.items():
    try:
      call = make()
      longer = _compiling(call)
      forms[form] = min(_seconds(call), _seconds(call)) / steps
    # Whatever a compiler raises, the other forms are still there.
    except Exception as e:
      forms[form] = f'{type(e).__name__}: {e}'.splitlines()[0][:120]
      continue
    if fastest is None or forms[form] < forms[fastest]:
      fastest, calls['torch'], compiling['torch'] = form, call, longer
  if fastest is None:
    raise NoForm(f'no form of torch works: {forms}')
  seconds = {side: [] for side in calls}
  for repeat in range(repeats):
    for side in list(calls)[:: -1 if repeat % 2 else 1]:
      seconds[side].append(_seconds(calls[side]) / steps)
  row = {}
  for side in calls:
    row[f'{side}_s'] = statistics.median(seconds[side])
    row[f'{side}_best_s'] = min(seconds[side])
    row[f'{side}_compile_s'] = compiling[side]
  return row | {
    'torch_form': fastest,
    'torch_forms': forms,
    'repeats': repeats,
    'ratio': row['torch_s'] / row['jax_s'],
  }


def _compiling(call: Callable[[], None]) -> float:
  """Returns by how much the first call is longer than the second."""
  return max(_seconds(call) - _seconds(call), 0.0)


def _seconds(call: Callable[[], None]) -> float:
  time.sleep(_REST)
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def _entries(work: Work, device: torch.device) -> Iterator[Entry]:
  for part in work.parts:
    if part == 'encode':
      yield Entry(part, encoder.DEFAULT, TILES[device.type], 1)
      continue
    for n in sorted(work.instances):
      for runs in [FOLDS] if part == 'epoch' else sorted(work.runs):
        for model in work.models:
          yield Entry(part, model, n, runs)


def _sides(
  work: Work, entry: Entry, device: torch.device
) -> tuple[Callable[[], jax_side.Call], torch_side.Forms, int]:
  """Returns what makes kmil_jax's side, and torch's, and steps of a call."""
  model, n, runs = entry.model, entry.instances, entry.runs
  rng = np.random.default_rng(work.seed)
  if entry.part == 'encode':
    tiles = rng.integers(0, 256, (n, _SIDE, _SIDE, 3), np.uint8)
    state = weights.read(encoder.file_of_weights(model, None, '.'))
    module = torch_side.lite0(list(state.values()))
    ours = jax_side.encoding(tiles)
    # On the CPU: what the timed forms round is theirs to choose.
    theirs = next(iter(torch_side.encoding(module, tiles).values()))()
    _check_equal(f'{model}: features', ours(), theirs())
    return lambda: ours, torch_side.encoding(module.to(device), tiles), 1
  design = Design(model=model, num_classes=CLASSES, width=WIDTH)
  if entry.part == 'epoch':
    count, steps = BAGS[device.type], 1
    order, trains = rng.permutation(count), training_parts(count)
    length = n * np.exp(0.5 * rng.standard_normal(count))
    length = np.clip(length, 8, max(work.instances))
  else:
    step = cost.multiply_adds(design.networks()['model'], n, WIDTH) * runs
    steps = int(np.clip(_CALL / step, 2, _MOST_STEPS))
    count = min(steps, max(2, _ROWS // n))
    order, trains = np.arange(steps) % count, np.ones((runs, count), bool)
    length = np.full(count, n)
  store = cohort(length, work.seed)
  torch.manual_seed(work.seed)
  modules = [MODELS[model](CLASSES, WIDTH).eval() for _ in range(runs)]
  held = [jax_side.weights_of(model, module) for module in modules]
  check(design, modules[0], held[0], store.features[: store.length[0]])
  keep = None
  if model == 'kmil':
    keep = np.stack([_kept(module, store) for module in modules])
    modules = [module.classifier for module in modules]
  forms = torch_side.Visits(
    [module.to(device) for module in modules],
    store,
    keep,
    order,
    trains,
  ).forms(
    together=1 < runs <= _AT_ONCE // n and entry.part != 'epoch',
    compiled=work.compile,
  )
  ours = lambda: jax_side.steps(design, held, store, keep, order, trains)
  return ours, forms, steps


def cohort(length: np.ndarray, seed: int) -> Store:
  """Returns random bags of these lengths, features in float32."""
  rng, length = np.random.default_rng(seed), length.astype(np.int32)
  features = np.zeros((num_rows(length), WIDTH), np.float32)
  rng.standard_normal(out=features[: length.sum()], dtype=np.float32)
  return Store(
    features=features,
    offset=np.cumsum(length, dtype=np.int32) - length,
    length=length,
    label=rng.integers(CLASSES, size=len(length)).astype(np.int32),
  )


def training_parts(count: int) -> np.ndarray:
  """Returns whether each fold trains on each bag, bool [10, n]: 8 of 10 do."""
  part, fold = np.arange(count) % FOLDS, np.arange(FOLDS)[:, None]
  return (part != fold) & (part != (fold + 1) % FOLDS)


def _kept(module: KMIL, store: Store) -> np.ndarray:
  """Returns the instances that the first stage keeps, bool [T]."""
  keep = np.zeros(len(store.features), bool)
  for start, size in zip(store.offset, store.length, strict=True):
    bag = torch.from_numpy(store.features[start : start + size])
    keep[start + module.key_instances(bag).numpy()] = True
  return keep


def check(
  design: Design, module: nn.Module, weights: Mapping[str, Any], bag: np.ndarray
) -> None:
  """Compares log-probabilities of one bag [N, D], in exact float32.

  Args:
    design: of the model.
    module: torch's, in evaluation, on the host.
    weights: kmil_jax's, from `jax_side.weights_of`.
    bag: features.

  Raises:
    ParityError: if one differs by more than 0.001.
  """
  with jax.default_matmul_precision('highest'):
    ours = design.predictor(inference.stack([weights]))(bag)['prob'][0]
  groups = []
  if design.model == 'dtfd':
    mask = jnp.ones(len(bag), bool)
    member, _ = pseudo_bags(jax.random.key(0), mask, module.pseudo_bags)
    groups = [torch.tensor(np.asarray(member).argmax(1))]
  with torch.inference_mode():
    theirs = module(torch.from_numpy(bag), *groups)[0].log_softmax(0)
  what = f'{design.model}, {len(bag)} instances: log-probabilities'
  _check_equal(what, np.log(ours), theirs.numpy())


def _check_equal(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
  difference = float(np.abs(ours - theirs).max())
  if not difference <= _TOLERANCE:
    raise ParityError(
      f'{what} of kmil_jax and torch differ by {difference:.2g}, more than'
      f' {_TOLERANCE}. Nothing is timed.'
    )
