"""The same work in torch and in kmil_jax, in one run."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import datetime
import functools
import importlib.metadata
import os
import platform
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import jax_side
from experiments.benchmarks.work import (
  CLASSES,
  WIDTH,
  Call,
  Entry,
  Forms,
  Visits,
  Work,
)
from experiments.encoding import encoder
from kmil_jax import cost, parallel
from kmil_jax.models import SPECS
from kmil_jax.models.dtfd import pseudo_bags
from kmil_jax.tasks.bags import num_rows
from kmil_jax.types import Store

try:
  import torch

  from experiments.benchmarks import torch_side
  from experiments.benchmarks.torch_models import MODELS

  LACKING = None
except (ImportError, OSError) as error:  # kmil_jax is timed alone.
  LACKING = error

FOLDS = 10
BAGS = {'cpu': 60, 'gpu': 300}  # Of an epoch.
TILES, _SIDE = {'cpu': 64, 'gpu': 1024}, 128  # To encode, and their side.
_TOLERANCE = 1e-3
# A call is several steps, up to so many multiply-adds of forward passes: the
# first touch of fresh memory is not to count.
_CALL, _MOST_STEPS = 6e10, 64
_ROWS = 8192  # Instances of different bags that a call visits, at least.
# Instances that torch takes of all runs at once, at most. More are slower than
# run by run, and need 10 GB and more.
_AT_ONCE = 2**16
_DRAWN = 2**16  # Instances that are drawn; further ones are the same again.
# Threads of the side that ran last spin for a moment and would take a core.
_REST = 0.02


class ParityError(Exception):
  """The sides compute different things: to time them would say nothing."""


def run(work: Work, log: Callable[[str], None]) -> dict[str, Any]:
  """Measures all rows, the small before the large.

  Args:
    work: what.
    log: is given a line for each row.

  Returns:
    The report, fit for JSON: that of `about`, and `rows`.

  Raises:
    ParityError: if the sides compute different things.
  """
  report = about(work) | {'rows': []}
  for entry in _entries(work):
    row, _ = measure(entry, work)
    log(f'{entry}: {row["jax_s"]:.3g} s; {row["torch_forms"]}')
    report['rows'].append(row)
  return report


def about(settings: Any) -> dict[str, Any]:
  """Returns `device`, `versions`, `date` and the `settings` of a script."""
  found = {d.name.lower(): d for d in importlib.metadata.distributions()}
  packages = 'jax', 'jaxlib', 'flax', 'optax', 'torch', 'timm', 'numpy'
  theirs = str(LACKING or torch_side.DEVICE)
  if theirs == 'cuda':
    theirs = torch.cuda.get_device_name()
  return {
    'device': {
      'torch': theirs,
      'jax': jax.local_devices()[0].device_kind,
      'jax_devices': jax.local_device_count(),
      'machine': platform.machine(),
      'cores': len(os.sched_getaffinity(0)),
    },
    'versions': {'python': platform.python_version()}
    | {name: found[name].version for name in packages if name in found},
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'settings': dataclasses.asdict(settings)
    | {'load_average': os.getloadavg()[0]},
  }


def measure(entry: Entry, work: Work) -> tuple[dict[str, Any], Call]:
  """Returns a row, and the call of kmil_jax that was timed.

  Args:
    entry: the row.
    work: of its settings those that the entry has not.

  Raises:
    ParityError: if the sides compute different things.
  """
  if not LACKING:
    torch.manual_seed(work.seed)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rounds = entry.precision == 'tf32'
    torch.backends.cuda.matmul.allow_tf32 = rounds
    torch.backends.cudnn.allow_tf32 = rounds
    torch_side.peak_mb()
  ours, theirs, steps = _sides(work, entry)
  row = dataclasses.asdict(entry) | contest(ours, theirs, steps, work.repeats)
  row['torch peak (MB)'] = None if LACKING else torch_side.peak_mb()
  return row, ours


def contest(
  ours: Call, theirs: Forms, steps: int, repeats: int
) -> dict[str, Any]:
  """Times kmil_jax and the fastest form of torch by turns.

  Args:
    ours: kmil_jax's side.
    theirs: make torch's; what fails drops out.
    steps: of a call.
    repeats: timings of each side.

  Returns:
    Columns of a row: seconds of a step, medians and the least, by side; torch's
    form, and seconds or the fault of all its forms; by how much each side's
    first call is longer; the ratio of the medians. If no form of torch works,
    its seconds are None, and its form is what came of them.
  """
  calls, compiling = {'jax': ours}, {'jax': _compiling(ours)}
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
  seconds = {side: [] for side in calls}
  for repeat in range(repeats):
    for side in list(calls)[:: -1 if repeat % 2 else 1]:
      seconds[side].append(_seconds(calls[side]) / steps)
  row = {f'torch_{name}s': None for name in ('', 'best_', 'compile_')}
  for side in calls:
    row[f'{side}_s'] = statistics.median(seconds[side])
    row[f'{side}_best_s'] = min(seconds[side])
    row[f'{side}_compile_s'] = compiling[side]
  return row | {
    'torch_form': fastest or '; '.join({*forms.values()}),
    'torch_forms': forms,
    'repeats': repeats,
    'ratio': row['torch_s'] and row['torch_s'] / row['jax_s'],
  }


def _compiling(call: Callable[[], None]) -> float:
  """Returns by how much the first call is longer than the second."""
  return max(_seconds(call) - _seconds(call), 0.0)


def _seconds(call: Callable[[], None]) -> float:
  time.sleep(_REST)
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def _entries(work: Work) -> Iterator[Entry]:
  for part in work.parts:
    if part == 'encode':
      yield Entry(part, encoder.DEFAULT, _of_device(TILES), 1)
      continue
    for n in sorted(work.instances):
      for runs in [FOLDS] if part == 'epoch' else sorted(work.runs):
        for model in work.models:
          yield Entry(part, model, n, runs)


def _of_device(numbers: Mapping[str, int]) -> int:
  return numbers['cpu' if parallel.platform() == 'cpu' else 'gpu']


def _sides(work: Work, entry: Entry) -> tuple[Call, Forms, int]:
  """Returns kmil_jax's side, what makes torch's, and steps of a call."""
  model, n, runs = entry.model, entry.instances, entry.runs
  rng = np.random.default_rng(work.seed)
  if entry.part == 'encode':
    tiles = rng.integers(0, 256, (n, _SIDE, _SIDE, 3), np.uint8)
    return *_encoders(entry, tiles), 1
  if entry.part == 'epoch':
    count, steps = entry.bags or _of_device(BAGS), 1
    order, trains = rng.permutation(count), training_parts(count)
    length = n * np.exp(0.5 * rng.standard_normal(count))
    length = np.clip(length, 8, max(work.instances))
    if entry.bags:
      length = np.resize((3 * n // 4, 5 * n // 4), count)
  else:
    network = SPECS[model].make(num_classes=CLASSES)
    step = cost.multiply_adds(network, n, WIDTH) * runs
    steps = int(np.clip(_CALL / step, 2, _MOST_STEPS))
    count = min(steps, max(2, _ROWS // n))
    order, trains = np.arange(steps) % count, np.ones((runs, count), bool)
    length = np.full(count, n)
  store = cohort(length, work.seed)
  keep = None
  if SPECS[model].chooser:
    keep = _kept(store, 1 if entry.bags else runs, rng)
  visits = Visits(model, store, keep, order, trains, entry.precision)
  if LACKING:
    return jax_side.steps(visits, None), _without(LACKING), steps
  modules = [MODELS[model](CLASSES, WIDTH).eval() for _ in range(runs)]
  weights = [torch_side.weights_of(model, module) for module in modules]
  if entry.precision == 'float32':
    check(model, modules[0], weights[0], store.features[: store.length[0]])
  forms = torch_side.Training(visits, modules).forms(
    together=1 < runs <= _AT_ONCE // n and entry.part != 'epoch',
    compiled=work.compile,
  )
  return jax_side.steps(visits, weights), forms, steps


def _encoders(entry: Entry, tiles: np.ndarray) -> tuple[Call, Forms]:
  """Returns kmil_jax's encoder, and what makes torch's."""
  name, precision = entry.model, entry.precision
  try:
    if LACKING:
      raise LACKING
    module, state = torch_side.network(name)
  except (ImportError, OSError) as error:
    ours = jax_side.encoding(name, tiles, None, precision)
    return ours, _without(error)
  ours = jax_side.encoding(name, tiles, state, precision)
  if precision == 'float32':
    # On the CPU: what the timed forms round is theirs to choose.
    some = tiles[:64]
    theirs = next(iter(torch_side.encoding(name, module, some).values()))()
    _check_equal(f'{name}: features', ours()[:64], theirs())
  module = module.to(torch_side.DEVICE)
  return ours, torch_side.encoding(name, module, tiles, precision)


def _without(error: Exception) -> Forms:
  """Returns a form of torch that fails for what is not installed."""

  def make():
    raise error

  return {'none': make}


def cohort(length: np.ndarray, seed: int) -> Store:
  """Returns random bags of these lengths, features in float32."""
  rng, length = np.random.default_rng(seed), length.astype(np.int32)
  drawn = min(length.sum(), _DRAWN), WIDTH
  again = np.arange(num_rows(length)) % drawn[0]
  return Store(
    features=rng.standard_normal(drawn, np.float32)[again],
    offset=np.cumsum(length, dtype=np.int32) - length,
    length=length,
    label=rng.integers(CLASSES, size=len(length)).astype(np.int32),
  )


def training_parts(count: int) -> np.ndarray:
  """Returns whether each fold trains on each bag, bool [10, n]: 8 of 10 do."""
  part, fold = np.arange(count) % FOLDS, np.arange(FOLDS)[:, None]
  return (part != fold) & (part != (fold + 1) % FOLDS)


def _kept(store: Store, runs: int, rng: np.random.Generator) -> np.ndarray:
  """Returns nine tenths of each bag, as KMIL's first stage keeps, [R, T]."""
  keep = np.zeros((runs, len(store.features)), bool)
  for start, size in zip(store.offset, store.length, strict=True):
    for run in keep:
      count = max(size * 9 // 10, 1)
      run[start + rng.choice(size, count, replace=False)] = True
  return keep


def check(
  model: str, module: Any, params: Mapping[str, Any], bag: np.ndarray
) -> None:
  """Compares log-probabilities of one bag [N, D], in float32.

  Args:
    model: of `SPECS`.
    module: torch's, in evaluation, on the host.
    params: kmil_jax's, from `torch_side.weights_of`.
    bag: features.

  Raises:
    ParityError: if one differs by more than 0.001.
  """
  network = SPECS[model].make(num_classes=CLASSES)
  mask = jnp.ones(len(bag), bool)
  apply = jax.jit(functools.partial(network.apply, train=False))
  ours = jax.nn.log_softmax(apply({'params': params}, bag, mask).logits)
  groups = []
  if model == 'dtfd':
    member, _ = pseudo_bags(jax.random.key(0), mask, module.pseudo_bags)
    groups = [torch.tensor(np.asarray(member).argmax(1))]
  with torch.inference_mode():
    theirs = module(torch.from_numpy(bag), *groups)[0].log_softmax(0)
  what = f'{model}, {len(bag)} instances: log-probabilities'
  _check_equal(what, ours, theirs.numpy())


def _check_equal(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
  difference = float(np.abs(ours - theirs).max())
  if not difference <= _TOLERANCE:
    raise ParityError(
      f'{what} of kmil_jax and torch differ by {difference:.2g}, more than'
      f' {_TOLERANCE}. Nothing is timed.'
    )
