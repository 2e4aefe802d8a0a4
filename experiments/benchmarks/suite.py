"""The whole comparison: which entries there are, and what came of them."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools

import numpy as np
import torch

from experiments.benchmarks import (
  bags,
  ceilings,
  contest,
  jax_side,
  machine,
  parity,
  timing,
  torch_side,
  work,
)
from experiments.benchmarks.trunk import Trunk
from kmil_jax import parallel
from kmil_jax.models import SPECS, cpu

MODELS = ('kmil', 'abmil', 'dsmil', 'transmil', 'dtfd')
PARTS = ('step', 'inference', 'trunk', 'epoch')
# A call is of several steps, as many as a tenth of the ceiling takes so many
# seconds for: the first touch of fresh memory is not to count.
_CALL_S = 12.0
_MOST_STEPS = 64
_ROWS = 8192  # Instances of different bags that a call visits, at least.


# What training may take; features, and torch, are there too.
_MEMORY_SHARE = 0.4


class _TooLarge(Exception):
  """The device's memory does not hold it."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What to measure."""

  models: Sequence[str] = MODELS
  instances: Sequence[int] = (256, 1024, 4096, 16384)
  runs: Sequence[int] = (1, 10)
  repeats: int = 5
  precision: str = 'float32'
  parts: Sequence[str] = PARTS
  budget_s: float | None = None
  compile_s: float = 120.0  # For a form of torch to get warm; 0: no compiler.
  cohort: int | None = None  # Bags of an epoch; None: 60, or 300 on a GPU.
  tile: int = 256
  tiles: int | None = None  # Of a batch; None: 16, or 256 on a GPU.
  seed: int = 0
  cached_programs: bool = False  # True hides what compiling costs.


@dataclasses.dataclass(frozen=True)
class Entry:
  part: str
  model: str
  instances: int  # Of a bag, on average in an epoch; tiles of the trunk.
  runs: int


def run(settings: Settings, log: Callable[[str], None]) -> dict:
  """Measures everything that the budget allows, the small before the large.

  Args:
    settings: what.
    log: is told of the progress.

  Returns:
    The report, fit for JSON: `device`, `versions`, `date`, `settings`,
    `ceilings`, `rows`, and `not_measured` with the reasons.

  Raises:
    parity.ParityError: if the sides compute different things.
  """
  device = torch_side.set_up()
  bench = _Bench(settings, device)
  rows, works, missing = [], [], []
  # What was compiled in an earlier process would cost nothing now.
  with machine.compiling(settings.cached_programs):
    for entry in _entries(settings, device):
      try:
        row, useful = bench.row(entry)
      except (timing.OutOfTime, contest.NoForm, _TooLarge) as error:
        missing.append(dataclasses.asdict(entry) | {'reason': str(error)})
        continue
      log(f'{entry}: {row["ratio"]:.2f}; {row["torch_forms"]}')
      rows.append(row)
      works.append(useful)
  # Once more: something else may have kept the device busy.
  top = bench.top.or_better(ceilings.measure(settings.precision, device))
  for row, useful in zip(rows, works, strict=True):
    row['fraction'], row['bound'] = top.fraction(useful, row['jax_s'])
  return {
    **machine.describe(device),
    'settings': dataclasses.asdict(settings) | machine.products(device),
    'ceilings': dataclasses.asdict(top),
    'rows': rows,
    'not_measured': missing,
  }


class _Bench:
  """Measures entries on one device."""

  def __init__(self, settings: Settings, device: torch.device):
    self._settings, self._device = settings, device
    self._budget = timing.Budget(settings.budget_s)
    self.top = ceilings.measure(settings.precision, device)
    self._checked = set()

  def row(self, entry: Entry) -> tuple[dict, work.Work]:
    measure = {
      'step': self._equal, 'inference': self._equal,
      'trunk': self._trunk, 'epoch': self._epoch,
    }[entry.part]  # fmt: skip
    if excess := self._excess(entry, _at_once(entry)):
      raise _TooLarge(excess)
    with self._budget.alarm():
      ours, theirs, useful, calls = measure(entry)
    result = contest.hold(
      ours,
      theirs,
      repeats=self._settings.repeats,
      budget=self._budget,
      limit=self._settings.compile_s or np.inf,
    )
    names = ('torch_s', 'jax_s', 'torch_best_s', 'jax_best_s')
    row = dataclasses.asdict(entry) | dataclasses.asdict(result)
    row |= {name: getattr(result, name) / calls for name in names}
    row['torch_forms'] = {
      form: seconds / calls if isinstance(seconds, float) else seconds
      for form, seconds in result.torch_forms.items()
    }
    row['ratio'] = row['torch_s'] / row['jax_s']
    return row, useful

  def _equal(self, entry: Entry):
    """Steps or inference on bags of one length; a call is several."""
    n, runs = entry.instances, entry.runs
    modules, params = self._models(entry.model, runs)
    size = _size(modules[0])
    count = work.step if entry.part == 'step' else work.inference
    useful = count(entry.model, n, runs, size, self._itemsize)
    steps = _CALL_S * 0.1 * self.top.flops / useful.flops
    steps = int(np.clip(steps, 2, _MOST_STEPS))
    distinct = min(steps, max(2, _ROWS // n))
    cohort = bags.equal_bags(distinct, n, self._settings.seed)
    self._check(entry, modules[0], params[0], cohort)
    order = np.arange(steps, dtype=np.int32) % distinct
    visits = [(r, b) for b in order for r in range(runs)]
    if entry.part == 'step':
      trains = np.ones((runs, distinct), bool)
      ours = lambda: jax_side.Steps(
        entry.model, params, cohort, order, trains, self._dtype
      )
    else:
      ours = lambda: jax_side.Inference(
        entry.model,
        params,
        cohort,
        order,
        entry.model != 'transmil',  # Torch's gives no attention.
        self._dtype,
      )
    theirs = self._torch(entry, modules, cohort, visits)
    return ours, theirs, useful, steps

  def _epoch(self, entry: Entry):
    """An epoch of ten-fold cross-validation; a call is one."""
    count = self._settings.cohort or (60 if self._device.type == 'cpu' else 300)
    longest = max(self._settings.instances)
    cohort = bags.ragged_bags(
      count, entry.instances, longest, self._settings.seed
    )
    modules, params = self._models(entry.model, entry.runs)
    self._check(entry, modules[0], params[0], cohort)
    trains = bags.training_parts(count)
    order = np.random.default_rng(self._settings.seed).permutation(count)
    size = _size(modules[0])
    each = [
      work.step(entry.model, int(n), int(r), size, self._itemsize)
      for n, r in zip(cohort.length, trains.sum(0), strict=True)
    ]
    useful = work.Work(sum(w.flops for w in each), sum(w.bytes for w in each))
    visits = [(r, b) for r in range(entry.runs) for b in order if trains[r, b]]
    ours = lambda: jax_side.Steps(
      entry.model, params, cohort, order, trains, self._dtype
    )
    return ours, self._torch(entry, modules, cohort, visits), useful, 1

  def _trunk(self, entry: Entry):
    trunk = Trunk(
      entry.instances,
      self._settings.tile,
      self._device,
      self._settings.precision,
      self._settings.seed,
    )
    useful = work.trunk(
      entry.instances, self._settings.tile, trunk.params(), self._itemsize
    )
    forms = trunk.forms(compile=self._settings.compile_s > 0)
    return trunk.ours, forms, useful, 1

  def _models(self, model: str, runs: int):
    modules = torch_side.make(model, runs, self._settings.seed)
    params = [jax_side.params_of(model, module) for module in modules]
    return [module.to(self._device) for module in modules], params

  def _check(self, entry, module, params, cohort):
    """Compares the sides on the first bag, once per model and length."""
    bag = cohort.bag(0)
    if (entry.model, len(bag)) not in self._checked:
      parity.check_logits(entry.model, module, params, bag)
      self._checked.add((entry.model, len(bag)))

  def _excess(self, entry: Entry, at_once: int) -> str | None:
    """Says by how much training so many runs at once is too large, or None."""
    if entry.part not in ('step', 'epoch'):
      return None
    needed = work.memory(entry.model, entry.instances, at_once)
    there = parallel.memory_bytes()
    if needed <= _MEMORY_SHARE * there:
      return None
    return (
      f'would take about {needed / 2**30:.0f} GiB beside the features, more'
      f' than {_MEMORY_SHARE:.0%} of {there / 2**30:.0f} GiB'
    )

  def _torch(self, entry, modules, cohort, visits):
    train = entry.part != 'inference'
    on_device = torch_side.Bags(
      cohort,
      self._device,
      getattr(torch, self._settings.precision),
      modules if train and entry.model == 'kmil' else (),
    )
    kind = torch_side.Steps if train else torch_side.Inference
    forms = torch_side.forms(
      kind(modules, on_device, visits, self._settings.precision),
      together=entry.runs > 1 and entry.part != 'epoch',
      ragged=entry.part == 'epoch',
      compile=self._settings.compile_s > 0,
    )
    if excess := self._excess(entry, entry.runs):
      for form in [name for name in forms if name.startswith('vmap')]:
        forms[form] = functools.partial(_refuse, excess)
    return forms

  @property
  def _dtype(self):
    return jax_side.dtype_of(self._settings.precision)

  @property
  def _itemsize(self):
    return np.dtype(self._dtype).itemsize


def _at_once(entry: Entry) -> int:
  """Returns how many runs kmil_jax trains at once."""
  if entry.model not in SPECS:
    return 1
  spec, runs = SPECS[entry.model], entry.runs
  return 1 if cpu.one_by_one(spec, runs, entry.instances) else runs


def _refuse(why: str):
  raise MemoryError(why)


def _entries(settings: Settings, device: torch.device) -> Iterator[Entry]:
  for part in settings.parts:
    if part == 'trunk':
      tiles = settings.tiles or (16 if device.type == 'cpu' else 256)
      yield Entry('trunk', 'resnet50', tiles, 1)
      continue
    for n in sorted(settings.instances):
      for runs in [bags.FOLDS] if part == 'epoch' else sorted(settings.runs):
        for model in settings.models:
          yield Entry(part, model, n, runs)


def _size(module: torch.nn.Module) -> int:
  """Parameters of the model, of KMIL's of its second stage."""
  return sum(p.numel() for p in torch_side.trained(module).parameters())
