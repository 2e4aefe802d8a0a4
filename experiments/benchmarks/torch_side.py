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

from kmil_jax.types import PatchRecipe, Recipe, Store

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
    keep: instances that the runs see, bool [T], gathered beforehand; None for
      all.
    order: bags that a call visits.
    trains: whether a run visits a bag, bool [R, n].
    precision: of the features and, by autocast, of the computation.
  """

  def __init__(
    self,
    models: Sequence[nn.Module],
    store: Store,
    keep: np.ndarray | None,
    order: np.ndarray,
    trains: np.ndarray,
    precision: str = 'float32',
  ):
    self.order, self.trains = order, trains
    self.runs = [_Loss(copy.deepcopy(model)).train() for model in models]
    self.device = next(self.runs[0].parameters()).device
    self.labels = torch.from_numpy(store.label).long().to(self.device)

    kind = getattr(torch, precision)
    keep = np.ones(len(store.features)) if keep is None else keep
    self.bags = []
    for start, size in zip(store.offset, store.length, strict=True):
      rows = start + np.flatnonzero(keep[start : start + size])
      bag = torch.from_numpy(store.features[rows].astype(np.float32))
      self.bags.append(bag.to(self.device, kind))
    self._cast = functools.partial(
      torch.autocast, self.device.type, kind, enabled=kind == torch.bfloat16
    )

  def forms(self, *, together: bool, compiled: bool) -> Forms:
    """Returns the runs in turn as 'loop' and at once as 'vmap', by name.

    Args:
      together: whether to offer the latter.
      compiled: whether to offer what `torch.compile` makes of both, too.
    """
    ragged = len(set(map(len, self.bags))) > 1
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
      _step(run.parameters(), functools.partial(call, run), self._cast)
      for run in self.runs
    ]

    def run():
      for bag in self.order:
        for r in np.flatnonzero(self.trains[:, bag]):
          step[r](self.bags[bag], self.labels[bag])
      self._wait()

    return run

  def _vmap(self, wrap: Callable) -> Call:
    """All runs as one, by `torch.func.vmap` over stacked weights."""
    params, _ = torch.func.stack_module_state(self.runs)
    base = copy.deepcopy(self.runs[0]).to('meta')

    def every(params, x, label):
      one = lambda params, x: torch.func.functional_call(
        base, params, (x, label)
      )
      every = torch.func.vmap(one, (0, None), randomness='different')
      return every(params, x).sum()

    call = functools.partial(wrap(every), params)
    step = _step(params.values(), call, self._cast)

    def run():
      for bag in self.order:
        step(self.bags[bag], self.labels[bag])
      self._wait()

    return run

  def _wait(self) -> None:
    """Waits for what the device computes."""
    if self.device.type == 'cuda':
      torch.cuda.synchronize(self.device)


def _step(params, call: Callable, cast: Callable) -> Callable:
  """Returns a step of Adam on the value of a call in the context `cast()`."""
  rate, decay = Recipe().learning_rate, Recipe().weight_decay
  adam = torch.optim.Adam(params, rate, weight_decay=decay, fused=True)

  def train(x, label):
    with cast():
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


def encoder(name: str) -> tuple[nn.Module, dict[str, np.ndarray]]:
  """Returns timm's network of `jax_side.NETWORKS`, and its state for `port`."""
  if name == 'resnet50_trunk':
    module = import_timm().create_model('resnet50').eval()
    state = {k: v.numpy() for k, v in module.state_dict().items()}
    # What follows the trunk.
    module.layer4 = module.norm = nn.Identity()
    return module, state
  from experiments.encoding import encoder
  from experiments.run import weights

  module = import_timm().create_model('tf_efficientnet_lite0').eval()
  state = weights.read(encoder.file_of_weights(name, None, '.'))
  own = zip(module.state_dict(), map(torch.tensor, state.values()), strict=True)
  module.load_state_dict(dict(own))
  return module, state


def encoding(
  module: nn.Module, tiles: np.ndarray, precision: str = 'float32'
) -> Forms:
  """Returns what encodes tiles, uint8 [T, S, S, 3], so many at a time.

  Args:
    module: from `encoder`, on the device; not compiled.
    tiles: to encode.
    precision: of the computation, by autocast.
  """
  module = module.to(memory_format=torch.channels_last)
  device = next(module.parameters()).device

  look = PatchRecipe()
  mean, std = (torch.tensor(x, device=device) for x in (look.mean, look.std))
  cast = functools.partial(
    torch.autocast, device.type, torch.bfloat16, precision == 'bfloat16'
  )

  @torch.inference_mode()
  def run(size):
    rows = []
    for some in torch.from_numpy(tiles).split(size):
      x = (some.to(device).float() / 255 - mean) / std
      with cast():
        x = module.forward_features(x.permute(0, 3, 1, 2))
      rows.append(x.float().mean((2, 3)).cpu().numpy())
    return np.concatenate(rows)

  return {
    f'{size} tiles': lambda size=size: functools.partial(run, size)
    for size in (*_BATCHES, *[256] * (device.type == 'cuda'))
  }
