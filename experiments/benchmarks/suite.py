"""The same work in torch and in kmil_jax, in one run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
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

from experiments.benchmarks import jax_side
from experiments.benchmarks.work import Work
from kmil_jax import cost, parallel, port
from kmil_jax.models import SPECS
from kmil_jax.models.dtfd import pseudo_bags
from kmil_jax.tasks.bags import num_rows
from kmil_jax.types import Store

try:
  import torch

  from experiments.benchmarks import torch_side
  from experiments.benchmarks.torch_models import MODELS
except ImportError:  # kmil_jax is timed alone.
  torch = None

WIDTH, CLASSES, FOLDS = 1024, 5, 10
BAGS = {'cpu': 60, 'gpu': 1036}  # Of an epoch; the paper's.
TILES, _SIDE = {'cpu': 64, 'gpu': 1024}, 128  # To encode, and their side.
# Before a row of the part and the model has been timed, in seconds.
_GUESS = {'step': 20, 'epoch': 100, 'encode': 30}
_PACKAGES = 'jax', 'jaxlib', 'flax', 'optax', 'torch', 'timm', 'numpy'
_TOLERANCE = 1e-3
# A call is several steps, up to so many multiply-adds of forward passes: the
# first touch of fresh memory is not to count.
_CALL, _MOST_STEPS = 6e10, 64
_ROWS = 8192  # Instances of different bags that a call visits, at least.
# Instances that torch takes of all runs at once, at most. More are slower than
# run by run, and need 10 GB and more.
_AT_ONCE = 2**16
_DRAWN = 2**16  # Rows of features that are drawn; more are these again.
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
  precision: str = 'float32'


def run(
  work: Work,
  log: Callable[[str], None],
  save: Callable[[dict[str, Any]], None] = lambda report: None,
  entries: Iterable[Entry] | None = None,
) -> dict[str, Any]:
  """Measures all rows, the small before the large.

  Args:
    work: what.
    log: is given a line for each row.
    save: is given the report so far, before the first row and after each.
    entries: rows, in order; those of `work` by default.

  Returns:
    The report, fit for JSON: `device`, `versions`, `date`, `settings`, `rows`,
    and `not_measured` with the reasons.

  Raises:
    ParityError: if the sides compute different things, and time has no limit.
  """
  began, took = time.monotonic(), {}
  faults = NoForm if work.seconds is None else Exception
  report = _machine() | {
    'settings': dataclasses.asdict(work) | {'load_average': os.getloadavg()[0]},
    'rows': [],
    'not_measured': [],
  }
  if torch:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    report['settings']['torch_threads'] = torch.get_num_threads()
    # The products of float32 are exact, as in JAX.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
  save(report)
  for entry in entries or _entries(work):
    row, start = dataclasses.asdict(entry), time.monotonic()
    kind = entry.part, entry.model
    guess = took.get(kind, _GUESS[entry.part])
    try:
      if work.seconds is not None and start - began + guess > work.seconds:
        left = max(work.seconds - (start - began), 0)
        raise NoForm(f'skipped: {left:.0f} s are left, it may take {guess:.0f}')
      _reset_peak()
      ours, theirs, steps = _sides(work, entry)
      told = {'counts': lambda: {}}

      def made(ours=ours, told=told):
        call, told['counts'] = ours()
        return call

      row |= contest(made, theirs, steps, work.repeats)
      row |= told['counts']() | {'torch_peak_MB': _peak_mb()}
      report['rows'].append(row)
      log(f'{entry}: {row["jax_s"]:.3g} s; {row["torch_forms"]}')
    except faults as e:
      reason = f'{type(e).__name__}: {e}'.splitlines()[0][:200]
      reason = str(e) if isinstance(e, NoForm) else reason
      report['not_measured'].append(row | {'reason': reason})
      log(f'{entry}: {reason}')
    else:
      took[kind] = max(time.monotonic() - start, took.get(kind, 0))
    save(report)
  return report


def _machine() -> dict[str, Any]:
  """Returns the device, and versions of what is installed."""
  versions = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'not installed'
  on_gpu = torch and torch.cuda.is_available()
  return {
    'device': {
      'torch': torch.cuda.get_device_name() if on_gpu else 'cpu',
      'jax': jax.local_devices()[0].device_kind,
      'jax_devices': jax.local_device_count(),
      'machine': platform.machine(),
      'cores': len(os.sched_getaffinity(0)),
    },
    'versions': versions,
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def _reset_peak() -> None:
  if torch and torch.cuda.is_available():
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def _peak_mb() -> float | None:
  """Returns what torch's allocator held at most since `_reset_peak`."""
  if not torch or not torch.cuda.is_available():
    return None
  return torch.cuda.max_memory_allocated() / 1e6


def contest(
  ours: Callable[[], jax_side.Call],
  theirs: dict[str, Callable],
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
    NoForm: if there are forms of torch, but none works; what came of each.
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
  if theirs and fastest is None:
    raise NoForm(f'no form of torch works: {forms}')
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
    'torch_form': fastest or 'not installed',
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
  for precision in work.precisions:
    for part in work.parts:
      if part == 'encode':
        for name in jax_side.NETWORKS:
          yield encoded(work, name, precision)
        continue
      for n in sorted(work.instances):
        for runs in [FOLDS] if part == 'epoch' else sorted(work.runs):
          for model in work.models:
            yield Entry(part, model, n, runs, precision)


def encoded(work: Work, name: str, precision: str) -> Entry:
  """Returns the row of a network of tiles."""
  return Entry('encode', name, work.tiles or _usual(TILES), 1, precision)


def _usual(number: Mapping[str, int]) -> int:
  return number['cpu' if parallel.platform() == 'cpu' else 'gpu']


def _sides(
  work: Work, entry: Entry
) -> tuple[Callable[[], tuple], dict[str, Callable], int]:
  """Returns what makes kmil_jax's side, and torch's, and steps of a call."""
  model, n, runs = entry.model, entry.instances, entry.runs
  precision, rng = entry.precision, np.random.default_rng(work.seed)
  if torch:
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch.manual_seed(work.seed)
  if entry.part == 'encode':
    return *_encoding(entry, rng, torch and device), 1
  if entry.part == 'epoch':
    count, steps = work.bags or _usual(BAGS), 1
    order, trains = rng.permutation(count), training_parts(count)
    length = rng.integers(max(3 * n // 4, 1), 5 * n // 4 + 1, count)
  else:
    network = SPECS[model].make(num_classes=CLASSES)
    step = cost.multiply_adds(network, n, WIDTH) * runs
    steps = int(np.clip(_CALL / step, 2, _MOST_STEPS))
    count = min(steps, max(2, _ROWS // n))
    order, trains = np.arange(steps) % count, np.ones((runs, count), bool)
    length = np.full(count, n)
  store, keep, held, forms = (
    cohort(length, work.seed, precision),
    None,
    None,
    {},
  )
  if SPECS[model].chooser:
    keep = _kept(store)
  if torch:
    modules = [MODELS[model](CLASSES, WIDTH).eval() for _ in range(runs)]
    held = [weights_of(model, module) for module in modules]
    bag = store.features[: min(store.length[0], 256)].astype(np.float32)
    check(model, modules[0], held[0], bag)
    forms = torch_side.Visits(
      [module.to(device) for module in modules],
      store,
      keep,
      order,
      trains,
      precision,
    ).forms(
      together=1 < runs <= _AT_ONCE // n and entry.part != 'epoch',
      compiled=work.compile,
    )
  sizes = CLASSES, WIDTH
  ours = lambda: jax_side.steps(
    model, held, store, keep, order, trains, sizes, precision
  )
  return ours, forms, steps


def _encoding(
  entry: Entry, rng: np.random.Generator, device: Any
) -> tuple[Callable[[], tuple], dict[str, Callable]]:
  """Returns what makes kmil_jax's encoder, and torch's."""
  tiles = rng.integers(0, 256, (entry.instances, _SIDE, _SIDE, 3), np.uint8)
  try:
    module, state = torch_side.encoder(entry.model) if torch else (None, None)
  except ImportError:  # timm, or what reads the weights.
    module = state = None
  ours = jax_side.encoding(entry.model, tiles, state, entry.precision)
  made = lambda: (ours, dict)
  if module is None:
    return made, {}
  if entry.precision == 'float32':
    # On the CPU: what the timed forms round is theirs to choose.
    some = tiles[:4]
    theirs = next(iter(torch_side.encoding(module, some).values()))()
    _check_equal(f'{entry.model}: features', ours()[:4], theirs())
  forms = torch_side.encoding(module.to(device), tiles, entry.precision)
  return made, forms


def cohort(length: np.ndarray, seed: int, precision: str = 'float32') -> Store:
  """Returns random bags of these lengths."""
  rng, length = np.random.default_rng(seed), length.astype(np.int32)
  total, rows = length.sum(), num_rows(length)
  drawn = rng.standard_normal((min(total, _DRAWN), WIDTH), np.float32)
  drawn = drawn.astype(jnp.dtype(precision))
  features = np.zeros((rows, WIDTH), drawn.dtype)
  for start in range(0, total, len(drawn)):
    end = min(start + len(drawn), total)
    features[start:end] = drawn[: end - start]
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


def _kept(store: Store) -> np.ndarray:
  """Returns nine tenths of each bag, which KMIL's second stage sees, [T]."""
  keep = np.zeros(len(store.features), bool)
  for start, size in zip(store.offset, store.length, strict=True):
    keep[start : start + max(size * 9 // 10, 1)] = True
  return keep


def weights_of(model: str, module: Any) -> dict[str, Any]:
  """Returns a copy of a torch model's weights."""
  state = module.state_dict().items()
  state = {k: v.cpu().numpy().copy() for k, v in state}
  return port.from_torch(model, state)['params']


def check(
  model: str, module: Any, params: Mapping[str, Any], bag: np.ndarray
) -> None:
  """Compares log-probabilities of one bag [N, D], in exact float32.

  Args:
    model: of `SPECS`.
    module: torch's, in evaluation, on the host.
    params: kmil_jax's, from `weights_of`.
    bag: features.

  Raises:
    ParityError: if one differs by more than 0.001.
  """
  network, mask = (
    SPECS[model].make(num_classes=CLASSES),
    np.ones(len(bag), bool),
  )
  apply = lambda params: network.apply(
    {'params': params}, bag, mask, train=False
  )
  ours = jax.nn.log_softmax(jax.jit(apply)(params).logits)
  groups = []
  if model == 'dtfd':
    member, _ = pseudo_bags(jax.random.key(0), mask, module.pseudo_bags)
    groups = [torch.tensor(np.asarray(member).argmax(1))]
  with torch.inference_mode():
    theirs = module(torch.from_numpy(bag), *groups)[0].log_softmax(0)
  what = f'{model}, {len(bag)} instances: log-probabilities'
  _check_equal(what, np.asarray(ours), theirs.numpy())


def _check_equal(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
  size = max(1.0, float(np.abs(theirs).max()))
  difference = float(np.abs(ours - theirs).max()) / size
  if not difference <= _TOLERANCE:
    raise ParityError(
      f'{what} of kmil_jax and torch differ by {difference:.2g}, more than'
      f' {_TOLERANCE}. Nothing is timed.'
    )
