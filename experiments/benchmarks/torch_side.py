"""Torch's side: the forms in which a user would train these models well."""

from collections.abc import Callable, Sequence
import copy
import functools
import importlib
import sys
import types
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from experiments.benchmarks.work import Call, Forms, Visits
from experiments.encoding import encoder
from experiments.run import results
from kmil_jax import port
from kmil_jax.types import Recipe

_BATCHES = 4, 16, 64, 256  # Tiles that are encoded at a time.
_TORCHVISION = (
  *('', '.datasets', '.models', '.models.feature_extraction', '.ops'),
  *('.ops.misc', '.transforms', '.transforms.functional'),
)

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
_cast = lambda on: torch.autocast(DEVICE.type, torch.bfloat16, enabled=on)


def weights_of(model: str, module: nn.Module) -> dict[str, Any]:
  """Returns a torch model's weights."""
  return port.from_torch(model, _state_of(module))['params']


def _state_of(module: nn.Module) -> dict[str, np.ndarray]:
  """Returns a copy of a torch module's state."""
  return {k: v.cpu().numpy().copy() for k, v in module.state_dict().items()}


class _Loss(nn.Module):
  """The loss of a model as the value of a call, as `functional_call` needs."""

  def __init__(self, model: nn.Module):
    super().__init__()
    self.model = model

  def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    with _cast(x.dtype == torch.bfloat16):
      return self.model.loss(x, label)


def bags_of(visits: Visits) -> list[list[torch.Tensor]]:
  """Returns what each run sees of each bag, on the device."""
  keep, store = visits.keep, visits.store
  dtype = torch.bfloat16 if visits.precision == 'bfloat16' else torch.float32
  if keep is None:
    keep = np.ones((1, len(store.features)), bool)

  def bags(kept):
    for start, size in zip(store.offset, store.length, strict=True):
      rows = start + np.flatnonzero(kept[start : start + size])
      yield torch.from_numpy(store.features[rows]).to(DEVICE, dtype)

  return [list(bags(kept)) for kept in keep] * (len(visits.trains) // len(keep))


class Training:
  """R runs that visit bags.

  Args:
    visits: of the runs.
    models: theirs; copied.
  """

  def __init__(self, visits: Visits, models: Sequence[nn.Module]):
    self.visits, self.bags = visits, bags_of(visits)
    copies = [copy.deepcopy(model).to(DEVICE) for model in models]
    self.runs = [_Loss(model).train() for model in copies]
    self.labels = torch.from_numpy(visits.store.label).long().to(DEVICE)

  def forms(self, *, together: bool, compiled: bool) -> Forms:
    """Returns the runs in turn as 'loop' and at once as 'vmap', by name.

    Args:
      together: whether to offer the latter.
      compiled: whether to offer what `torch.compile` makes of both, too.
    """
    ragged = len(set(map(len, self.bags[0]))) > 1
    on_gpu = DEVICE.type == 'cuda' and not ragged
    mode = 'reduce-overhead' if on_gpu else 'default'  # CUDA graphs, or none.
    ways = {'': lambda call: call}
    if compiled:
      compiler = functools.partial(torch.compile, dynamic=ragged, mode=mode)
      ways[', compiled'] = compiler
    kinds = {'loop': self._loop} | ({'vmap': self._vmap} if together else {})
    return {
      kind + way: functools.partial(self._call, make, wrap)
      for way, wrap in ways.items()
      for kind, make in kinds.items()
    }

  def _call(self, make: Callable, wrap: Callable) -> Call:
    """Makes a form ready, of which every call visits all bags in order."""
    visit = make(wrap)

    def run():
      for bag in self.visits.order:
        visit(bag)
      if DEVICE.type == 'cuda':
        torch.cuda.synchronize()

    return run

  def _loop(self, wrap: Callable) -> Callable:
    """A module and an optimiser for each run."""
    call = wrap(lambda run, x, label: run(x, label))
    step = [
      _step(run.parameters(), functools.partial(call, run)) for run in self.runs
    ]

    def visit(bag):
      for r in np.flatnonzero(self.visits.trains[:, bag]):
        step[r](self.bags[r][bag], self.labels[bag])

    return visit

  def _vmap(self, wrap: Callable) -> Callable:
    """All runs as one, by `torch.func.vmap` over stacked weights."""
    params, _ = torch.func.stack_module_state(self.runs)
    base = copy.deepcopy(self.runs[0]).to('meta')
    bags, shared = self.bags[0], self.bags[0] is self.bags[-1]
    if not shared:
      bags = [torch.stack(views) for views in zip(*self.bags, strict=True)]

    def every(params, x, label):
      one = lambda params, x: torch.func.functional_call(
        base, params, (x, label)
      )
      axes = (0, None if shared else 0)
      return torch.func.vmap(one, axes, randomness='different')(params, x).sum()

    step = _step(params.values(), functools.partial(wrap(every), params))
    return lambda bag: step(bags[bag], self.labels[bag])


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


def peak_mb() -> float | None:
  """Returns how much of a GPU torch held at most since it was last asked."""
  if DEVICE.type != 'cuda':
    return None
  peak = torch.cuda.max_memory_allocated()
  torch.cuda.empty_cache()
  torch.cuda.reset_peak_memory_stats()
  return peak / 1e6


def import_timm() -> types.ModuleType:
  """Returns timm, which imports torchvision for what is not needed here.

  That is left empty: wheels that fit a CPU's torch are rare, and others fail.
  """
  if not {'timm', 'torchvision'} & sys.modules.keys():
    empty = mock.MagicMock()
    sys.modules.update({f'torchvision{name}': empty for name in _TORCHVISION})
  return importlib.import_module('timm')


def network(name: str) -> tuple[nn.Module, dict[str, np.ndarray]]:
  """Returns timm's network of an encoder, and its weights by public names."""
  if name == encoder.DEFAULT:
    module = import_timm().create_model('tf_efficientnet_lite0').eval()
    state = results.read_weights(encoder.file_of_weights(name, None, '.'))
    # Its own order is that of the file.
    tensors = map(torch.tensor, state.values())
    module.load_state_dict(dict(zip(module.state_dict(), tensors, strict=True)))
    return module, state
  module = import_timm().create_model('resnet50').eval()
  state = _state_of(module)
  module.layer4 = nn.Identity()  # What follows the trunk.
  return module, state


def encoding(
  name: str, module: nn.Module, tiles: np.ndarray, precision: str = 'float32'
) -> Forms:
  """Returns what encodes tiles, uint8 [T, S, S, 3], so many at a time.

  Args:
    name: of the encoder.
    module: from `network`, on the device; not compiled.
    tiles: to encode.
    precision: of the computation, by autocast.
  """
  module = module.to(memory_format=torch.channels_last)
  device, of = next(module.parameters()).device, encoder.network(name)
  mean, std = (255 * torch.tensor(x, device=device) for x in (of.mean, of.std))

  @torch.inference_mode()
  def run(size):
    rows = []
    for some in torch.from_numpy(tiles).split(size):
      x = ((some.to(device).float() - mean) / std).permute(0, 3, 1, 2)
      with _cast(precision == 'bfloat16'):
        x = module.forward_features(x)
      rows.append(x.float().mean((2, 3)).cpu().numpy())
    return np.concatenate(rows)

  return {
    f'{size} tiles': lambda size=size: functools.partial(run, size)
    for size in _BATCHES
    if size <= len(tiles)
  }
