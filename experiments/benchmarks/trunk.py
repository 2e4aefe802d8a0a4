"""The tile encoder on both sides."""

from collections.abc import Callable
import copy
import functools

import jax
import numpy as np
import torch
from torch import nn

from experiments import encoder
from experiments.benchmarks import contest, parity
from experiments.torch_baselines.resnet import Bottleneck, ResNet50
from kmil_jax import port


class Trunk:
  """Encodes a batch that is on the device already.

  Args:
    tiles: in the batch.
    size: of a tile, in pixels.
    device: torch's.
    precision: 'float32' or 'bfloat16'.
    seed: of weights and tiles.

  Raises:
    parity.ParityError: if the sides differ.
  """

  def __init__(
    self, tiles: int, size: int, device: torch.device, precision: str, seed: int
  ):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    self.tiles = rng.standard_normal((tiles, size, size, 3), np.float32)
    self.device, self.precision = device, precision
    self.module = ResNet50().eval().to(device)
    state = {k: v.cpu().numpy() for k, v in self.module.state_dict().items()}
    self.variables = port.from_torch('resnet50_trunk', state)
    parity.check_trunk(self.module, self.variables, self.tiles[:5])

  def params(self) -> int:
    return sum(x.size for x in jax.tree.leaves(self.variables['params']))

  def ours(self) -> Callable[[], None]:
    apply = functools.partial(encoder.apply_trunk, precision=self.precision)
    apply, arguments = jax.jit(apply), (self.variables, self.tiles)
    arguments = jax.device_put(arguments)
    return lambda: apply(*arguments).block_until_ready()

  def forms(self, *, compile: bool) -> dict[str, Callable]:
    """As `torch_side.forms`."""
    contiguous, last = torch.contiguous_format, torch.channels_last
    folded, every = _folded(self.module), len(self.tiles)
    forms = {
      'contiguous': (self.module, contiguous, every, False),
      'channels_last': (self.module, last, every, False),
      'norms folded': (folded, last, every, False),
    }
    few, middle = (), ()
    if self.device.type == 'cpu':  # The maps of all tiles leave its cache.
      few, middle = (1, 2, 4, 8), (4,)
    forms |= {f'norms folded, by {n}': (folded, last, n, False) for n in few}
    if compile:
      forms |= {
        f'norms folded, by {n}{contest.COMPILED}': (folded, last, n, True)
        for n in (every, *middle)
      }
    return {
      name: functools.partial(self._theirs, *form)
      for name, form in forms.items()
    }

  def _theirs(self, module, layout, size, compiled) -> Callable[[], None]:
    module = copy.deepcopy(module).to(memory_format=layout)
    call = torch.compile(module) if compiled else module
    x = torch.from_numpy(self.tiles.transpose(0, 3, 1, 2)).to(self.device)
    x = x.contiguous(memory_format=layout)
    low = self.precision == 'bfloat16'

    def run():
      with (
        torch.inference_mode(),
        torch.autocast(self.device.type, torch.bfloat16, enabled=low),
      ):
        for part in x.split(size):
          call(part)
      if self.device.type == 'cuda':
        torch.cuda.synchronize(self.device)

    return run


def _folded(module: ResNet50) -> ResNet50:
  """Returns a copy whose batch norms are part of the convolutions."""
  fold = torch.nn.utils.fusion.fuse_conv_bn_eval
  module = copy.deepcopy(module)
  module.conv1 = fold(module.conv1, module.bn1)
  module.bn1 = nn.Identity()
  for block in module.modules():
    if isinstance(block, Bottleneck):
      for i in (1, 2, 3):
        conv, norm = getattr(block, f'conv{i}'), getattr(block, f'bn{i}')
        setattr(block, f'conv{i}', fold(conv, norm))
        setattr(block, f'bn{i}', nn.Identity())
      if block.downsample is not None:
        block.downsample = nn.Sequential(fold(*block.downsample))
  return module
