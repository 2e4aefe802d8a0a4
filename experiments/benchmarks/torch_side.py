"""Torch's side: the forms in which a user would train these models well."""

from collections.abc import Callable, Sequence
import copy
import functools
import importlib
import sys
import types
from unittest import mock

import numpy as np
import torch
from torch import nn

from kmil_jax.types import Recipe, Store

_BATCHES = 4, 16, 64  # Tiles that are encoded at a time.
_TORCHVISION = (
  *('', '.datasets', '.models', '.models.feature_extraction', '.ops'),
  *('.ops.misc', '.transforms', '.transforms.functional'),
)

Call = Callable[[], None]
# By name, what makes a form ready to be timed.
Forms = dict[str, Callable[[], Call]]


class _Loss(nn.Module):
  """The loss of a model as the value of a call, as `functional_call` needs."""

  def __init__(self, model: nn.Module):
    super().__init__()
    self.model = model

  def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return self.model.loss(x, label)


class Visits:
  """R runs visit bags in training.

  Args:
    models: of the runs, on the device; copied.
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
    self.order, self.trains = order, trains
    self.runs = [_Loss(copy.deepcopy(model)).train() for model in models]
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
    ways = {'': lambda call: call}
    if compiled:
      compiler = functools.partial(torch.compile, dynamic=ragged, mode=mode)
      ways[', compiled'] = compiler
    kinds = {'loop': self._loop} | ({'vmap': self._vmap} if together else {})
    return {
      kind + way: functools.partial(make, wrap)
      for way, wrap in ways.items()
      for kind, make in kinds.items()
    }

  def _loop(self, wrap: Callable) -> Call:
    """A module and an optimiser for each run."""
    call = wrap(lambda run, x, label: run(x, label))
    step = [
      _step(run.parameters(), functools.partial(call, run)) for run in self.runs
    ]

    def run():
      for bag in self.order:
        for r in np.flatnonzero(self.trains[:, bag]):
          step[r](self.bags[r][bag], self.labels[bag])
      self._wait()

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
      return torch.func.vmap(one, axes, randomness='different')(params, x).sum()

    call = functools.partial(wrap(every), params)
    step = _step(params.values(), call)

    def run():
      for bag in self.order:
        step(bags[bag], self.labels[bag])
      self._wait()

    return run

  def _wait(self) -> None:
    """Waits for what the device computes."""
    if self.device.type == 'cuda':
      torch.cuda.synchronize(self.device)


def _step(params, call: Callable) -> Callable:
  """Returns a step of Adam on the value of a call."""
  rate, decay = Recipe().learning_rate, Recipe().weight_decay
  adam = torch.optim.Adam(params, rate, weight_decay=decay, fused=True)

  def train(x, label):
    loss = call(x, label)
    adam.zero_grad()
    loss.backward()
    adam.step()

  return train


def import_timm() -> types.ModuleType:
  """Returns timm, which imports torchvision for what is not needed here.

  That is left empty: wheels that fit a CPU's torch are rare, and others fail.
  """
  if not {'timm', 'torchvision'} & sys.modules.keys():
    empty = mock.MagicMock()
    sys.modules.update({f'torchvision{name}': empty for name in _TORCHVISION})
  return importlib.import_module('timm')


def lite0(weights: Sequence[np.ndarray]) -> nn.Module:
  """Returns timm's EfficientNet-Lite0 with these weights, in its own order."""
  module = import_timm().create_model('tf_efficientnet_lite0').eval()
  state = zip(module.state_dict(), map(torch.tensor, weights), strict=True)
  module.load_state_dict(dict(state))
  return module


def encoding(module: nn.Module, tiles: np.ndarray) -> Forms:
  """Returns what encodes tiles, uint8 [T, S, S, 3], so many at a time.

  Args:
    module: from `lite0`, on the device; not compiled.
    tiles: to encode.
  """
  module = module.to(memory_format=torch.channels_last)
  device = next(module.parameters()).device

  @torch.inference_mode()
  def run(size):
    rows = []
    for some in torch.from_numpy(tiles).split(size):
      x = (some.to(device).permute(0, 3, 1, 2).float() - 127) / 128
      rows.append(module.forward_features(x).mean((2, 3)).cpu().numpy())
    return np.concatenate(rows)

  return {
    f'{size} tiles': lambda size=size: functools.partial(run, size)
    for size in _BATCHES
  }
