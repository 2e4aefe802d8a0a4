"""Torch's side: the forms in which a user would run these models well."""

from collections.abc import Callable, Mapping, Sequence
import copy
import functools
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx.experimental import optimization

from experiments.benchmarks.torch_models import Trunk
from kmil_jax.types import Recipe, Store

Call = Callable[[], None]
# By name, what makes a form ready to be timed.
Forms = dict[str, Callable[[], Call]]


class _Timed(nn.Module):
  """Loss of a model in training, else its logits and, if any, attention."""

  def __init__(self, model: nn.Module):
    super().__init__()
    self.model = model

  def forward(self, x: torch.Tensor, label: torch.Tensor):
    if self.training:
      return self.model.loss(x, label)
    return tuple(y for y in self.model(x) if y is not None)


class Visits:
  """R runs visit bags, in training or for predictions.

  Args:
    models: of the runs, on the device, in training or evaluation; copied.
    store: the bags.
    keep: instances that each run sees, bool [R, T], gathered beforehand; None
      for all.
    order: bags that a call visits.
    trains: whether a run visits a bag, bool [R, n].
  """

  def __init__(
    self,
    models: Sequence[nn.Module],
    store: Store,
    keep: np.ndarray | None,
    order: np.ndarray,
    trains: np.ndarray,
  ):
    self.training, self.order, self.trains = models[0].training, order, trains
    self.runs = [
      _Timed(copy.deepcopy(model)).train(self.training) for model in models
    ]
    self.device = next(self.runs[0].parameters()).device
    self.labels = torch.from_numpy(store.label).long().to(self.device)

    def bags(kept):
      for start, size in zip(store.offset, store.length, strict=True):
        rows = start + np.flatnonzero(kept[start : start + size])
        yield torch.from_numpy(store.features[rows]).to(self.device)

    if keep is None:
      self.bags = [list(bags(np.ones(len(store.features))))] * len(models)
    else:
      self.bags = [list(bags(kept)) for kept in keep]

  def forms(self, *, together: bool, compiled: bool) -> Forms:
    """Returns the runs in turn as 'loop' and at once as 'vmap', by name.

    Args:
      together: whether to offer the latter.
      compiled: whether to offer what `torch.compile` makes of both, too.
    """
    ragged = len(set(map(len, self.bags[0]))) > 1
    on_gpu = self.device.type == 'cuda' and not ragged
    mode = 'reduce-overhead' if on_gpu else 'default'  # CUDA graphs, or none.
    kinds = {'loop': self._loop} | ({'vmap': self._vmap} if together else {})
    return _ways(kinds, compiled, dynamic=ragged, mode=mode)

  def _loop(self, wrap: Callable) -> Call:
    """A module and an optimiser for each run."""
    call = wrap(lambda run, x, label: run(x, label))
    visit = [
      self._visit(run.parameters(), functools.partial(call, run))
      for run in self.runs
    ]

    def run():
      for bag in self.order:
        for r in np.flatnonzero(self.trains[:, bag]):
          visit[r](self.bags[r][bag], self.labels[bag])
      wait(self.device)

    return run

  def _vmap(self, wrap: Callable) -> Call:
    """All runs as one, by `torch.func.vmap` over stacked weights."""
    params, _ = torch.func.stack_module_state(self.runs)
    base = copy.deepcopy(self.runs[0]).to('meta')
    shared = self.bags[0] is self.bags[-1]
    bags = self.bags[0]
    if not shared:
      bags = [torch.stack(views) for views in zip(*self.bags, strict=True)]

    def every(params, x, label):
      one = lambda params, x: torch.func.functional_call(
        base, params, (x, label)
      )
      axes = (0, None if shared else 0)
      out = torch.func.vmap(one, axes, randomness='different')(params, x)
      return out.sum() if self.training else out

    call = functools.partial(wrap(every), params)
    visit = self._visit(params.values(), call)

    def run():
      for bag in self.order:
        visit(bags[bag], self.labels[bag])
      wait(self.device)

    return run

  def _visit(self, params, call: Callable) -> Callable:
    """Returns a call in inference, in training a step of Adam on its value."""
    if not self.training:

      def predict(x, label):
        with torch.inference_mode():
          call(x, label)

      return predict
    rate, decay = Recipe().learning_rate, Recipe().weight_decay
    adam = torch.optim.Adam(params, rate, weight_decay=decay, fused=True)

    def train(x, label):
      loss = call(x, label)
      adam.zero_grad()
      loss.backward()
      adam.step()

    return train


def trunk_forms(trunk: Trunk, tiles: np.ndarray, *, compiled: bool) -> Forms:
  """Returns ways to encode tiles [T, S, S, 3], norms folded, by name.

  Args:
    trunk: in evaluation, on the device.
    tiles: a batch; CPUs may take few at a time, whose maps stay in the cache.
    compiled: whether to offer what `torch.compile` makes, too.
  """
  device = next(trunk.parameters()).device
  folded = optimization.fuse(trunk).to(memory_format=torch.channels_last)
  x = torch.from_numpy(tiles.transpose(0, 3, 1, 2)).to(device)
  x = x.contiguous(memory_format=torch.channels_last)

  def make(size, wrap) -> Call:
    call = wrap(folded)

    @torch.inference_mode()
    def run():
      for part in x.split(size):
        call(part)
      wait(device)

    return run

  sizes = (len(tiles), 2, 4) if device.type == 'cpu' else (len(tiles),)
  kinds = {f'by {size}': functools.partial(make, size) for size in sizes}
  return _ways(kinds, compiled)


def _ways(
  kinds: Mapping[str, Callable], compiled: bool, **options: Any
) -> Forms:
  """Returns what makes each kind as it is and, if asked for, compiled."""
  ways = {'': lambda f: f}
  if compiled:
    ways[', compiled'] = functools.partial(torch.compile, **options)
  return {
    kind + way: functools.partial(make, wrap)
    for way, wrap in ways.items()
    for kind, make in kinds.items()
  }


def wait(device: torch.device) -> None:
  """Waits for what a device computes."""
  if device.type == 'cuda':
    torch.cuda.synchronize(device)
