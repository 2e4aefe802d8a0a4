"""Torch's side: every form in which a user would run these models well."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import copy
import functools
import os

import torch
from torch import nn
from torch.nn import functional

from experiments.benchmarks import contest
from experiments.benchmarks.bags import CLASSES, WIDTH, Cohort
from experiments.torch_baselines.abmil import ABMIL
from experiments.torch_baselines.dsmil import DSMIL
from experiments.torch_baselines.dtfd import DTFD
from experiments.torch_baselines.kmil import KMIL
from experiments.torch_baselines.transmil import TransMIL
from kmil_jax.types import Recipe

_MAKERS = {
  'abmil': ABMIL,
  'dsmil': DSMIL,
  'dtfd': DTFD,
  'kmil': KMIL,
  'transmil': lambda classes, width: TransMIL(width, classes),
}
Visits = Sequence[tuple[int, int]]  # Runs and the bags they see, in order.


def set_up() -> torch.device:
  """Chooses the device; there, products of float32 are TF32, as in JAX."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  if not torch.cuda.is_available():
    return torch.device('cpu')
  _set_tf32(True)
  return torch.device('cuda')


@contextlib.contextmanager
def exact() -> Iterator[None]:
  """Products of float32 in float32."""
  before = torch.backends.cudnn.allow_tf32
  _set_tf32(False)
  try:
    yield
  finally:
    _set_tf32(before and torch.cuda.is_available())


def _set_tf32(on: bool) -> None:
  torch.set_float32_matmul_precision('high' if on else 'highest')
  torch.backends.cudnn.allow_tf32 = on


def make(model: str, runs: int, seed: int) -> list[nn.Module]:
  """Returns the modules of all runs, on the host."""
  torch.manual_seed(seed)
  return [_MAKERS[model](CLASSES, WIDTH) for _ in range(runs)]


def trained(module: nn.Module) -> nn.Module:
  """Returns what a step trains: of KMIL, the second stage."""
  return module.classifier if isinstance(module, KMIL) else module


class Bags:
  """The bags of a cohort on the device, and what each run sees of them.

  KMIL's second stage finds its key instances gathered beforehand, a copy for
  every run.
  """

  def __init__(
    self, cohort: Cohort, device: torch.device, dtype: torch.dtype, choosers=()
  ):
    self.label = torch.from_numpy(cohort.label).long().to(device)
    bags = [
      torch.from_numpy(cohort.bag(i)).to(device)
      for i in range(len(cohort.length))
    ]
    self.x = [[x.to(dtype) for x in bags]]
    if choosers:
      self.x = [
        [x[module.key_instances(x)].to(dtype) for x in bags]
        for module in choosers
      ]

  def of(self, run: int, bag: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns features [N, D] and label of what a run sees."""
    return self.x[run if len(self.x) > 1 else 0][bag], self.label[bag]

  def of_all(self, bag: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns features [N, D], or [R, N, D] where runs differ, and label."""
    if len(self.x) == 1:
      return self.of(0, bag)
    return self.stacked[bag], self.label[bag]

  @functools.cached_property
  def stacked(self) -> list[torch.Tensor]:
    return [torch.stack(views) for views in zip(*self.x, strict=True)]


class _Loss(nn.Module):
  """What a model is trained by; DTFD's two tiers share no gradient.

  Their two optimisers, of one rate, are one optimiser of the sum.
  """

  def __init__(self, model: nn.Module):
    super().__init__()
    self.model = trained(model)

  def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    if isinstance(self.model, TransMIL):
      return functional.cross_entropy(self.model(x)[0], label)
    return self.model.loss(x, label)


class _Logits(nn.Module):
  """Logits, and the attention where the model gives one."""

  def __init__(self, model: nn.Module):
    super().__init__()
    self.model = model

  def forward(self, x: torch.Tensor, _) -> tuple[torch.Tensor, ...]:
    return tuple(y for y in self.model(x) if y is not None)


class Steps:
  """Training steps of R runs in any form; see `forms`.

  Args:
    modules: of the runs, on the device; copied.
    bags: on the device.
    visits: what a call does.
    precision: 'float32', or 'bfloat16' for autocast.
  """

  train = True

  def __init__(self, modules, bags: Bags, visits: Visits, precision: str):
    wrap = _Loss if self.train else _Logits
    self.modules = [
      wrap(copy.deepcopy(m)).train(self.train).requires_grad_(self.train)
      for m in modules
    ]
    self.bags, self.visits = bags, visits
    self.device = bags.label.device
    self.autocast = lambda: torch.autocast(
      self.device.type, torch.bfloat16, enabled=precision == 'bfloat16'
    )

  def loop(self, wrap: Callable = lambda f: f) -> Callable[[], None]:
    """Returns the runs one after the other, a module and optimiser each."""
    call = wrap(lambda module, x, label: module(x, label))
    advances = [
      self._advance(m.parameters(), functools.partial(call, m))
      for m in self.modules
    ]

    def run():
      for r, bag in self.visits:
        advances[r](*self.bags.of(r, bag))
      self._wait()

    return run

  def vmap(self, wrap: Callable = lambda f: f) -> Callable[[], None]:
    """Returns all runs in one, by `torch.func.vmap` over stacked weights."""
    params, _ = torch.func.stack_module_state(self.modules)
    base = copy.deepcopy(self.modules[0]).to('meta')

    def every(params, x, label):
      one = lambda params, x: torch.func.functional_call(
        base, params, (x, label)
      )
      axes = (0, 0 if x.ndim == 3 else None)
      out = torch.func.vmap(one, axes, randomness='different')(params, x)
      return out.sum() if self.train else out

    call = wrap(every)
    advance = self._advance(params.values(), functools.partial(call, params))
    order = [bag for r, bag in self.visits if r == 0]

    def run():
      for bag in order:
        advance(*self.bags.of_all(bag))
      self._wait()

    return run

  def _advance(self, params, loss: Callable) -> Callable:
    """Returns a step of Adam on `loss(x, label)`, a function of `params`."""
    recipe = Recipe()
    optimizer = torch.optim.Adam(
      params,
      lr=recipe.learning_rate,
      weight_decay=recipe.weight_decay,
      fused=True,
    )

    def advance(x, label):
      with self.autocast():
        value = loss(x, label)
      optimizer.zero_grad()
      value.backward()
      optimizer.step()

    return advance

  def _wait(self) -> None:
    if self.device.type == 'cuda':
      torch.cuda.synchronize(self.device)


class Inference(Steps):
  """Forward passes of R runs in any form; see `forms`."""

  train = False

  def _advance(self, params, loss: Callable) -> Callable:
    del params

    def advance(x, label):
      with torch.inference_mode(), self.autocast():
        return loss(x, label)

    return advance


def forms(
  work: Steps, *, together: bool, ragged: bool, compile: bool
) -> dict[str, Callable[[], Callable[[], None]]]:
  """Returns by name what makes each form; some may not work or not help.

  Args:
    work: steps or inference.
    together: whether several runs do the same, so that they may be one.
    ragged: whether bags differ in length, so that CUDA graphs do not fit.
    compile: whether to offer what `torch.compile` makes.
  """
  ways = {'': lambda f: f}
  if compile:
    ways[contest.COMPILED] = functools.partial(torch.compile, dynamic=ragged)
    if work.device.type == 'cuda' and not ragged:
      ways[f'{contest.COMPILED}, CUDA graphs'] = functools.partial(
        torch.compile, dynamic=False, mode='reduce-overhead'
      )
  kinds = {'loop': work.loop} | ({'vmap': work.vmap} if together else {})
  return {
    kind + way: functools.partial(make, wrap)
    for way, wrap in ways.items()
    for kind, make in kinds.items()
  }
