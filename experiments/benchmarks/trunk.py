"""The tile encoder on both sides."""

from collections.abc import Callable
import copy
import functools

import jax
import numpy as np
import torch
from torch import nn

from experiments.benchmarks import parity
from experiments.torch_baselines.resnet import Bottleneck, ResNet50
from kmil_jax import encoder, port


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
    self.variables = port.resnet50_trunk(state)
    parity.check_trunk(self.module, self.variables, self.tiles[:2])

  def params(self) -> int:
    return sum(x.size for x in jax.tree.leaves(self.variables['params']))

  def ours(self) -> Callable[[], None]:
    apply = jax.jit(encoder.apply_trunk, static_argnames='precision')
    arguments = jax.device_put((self.variables, self.tiles))
    return lambda: apply(
      *arguments, precision=self.precision
    ).block_until_ready()

  def forms(self, *, compile: bool) -> dict[str, Callable]:
    """As `torch_side.forms`."""
    contiguous, last = torch.contiguous_format, torch.channels_last
    forms = {
      'contiguous': (self.module, contiguous, None),
      'channels_last': (self.module, last, None),
      'channels_last, norms folded': (_folded(self.module), last, None),
      # The maps of all tiles at once leave a CPU's cache.
      'channels_last, norms folded, 4 tiles each': (
        _folded(self.module),
        last,
        lambda module: lambda x: torch.cat([module(y) for y in x.split(4)]),
      ),
    }
    if compile:
      forms['channels_last, norms folded, compiled'] = (
        _folded(self.module),
        last,
        torch.compile,
      )
    return {
      name: functools.partial(self._theirs, *form)
      for name, form in forms.items()
    }

  def _theirs(self, module, layout, wrap) -> Callable[[], None]:
    module = copy.deepcopy(module).to(memory_format=layout)
    call = wrap(module) if wrap else module
    x = torch.from_numpy(self.tiles.transpose(0, 3, 1, 2)).to(self.device)
    x = x.contiguous(memory_format=layout)
    low = self.precision == 'bfloat16'

    def run():
      with (
        torch.inference_mode(),
        torch.autocast(self.device.type, torch.bfloat16, enabled=low),
      ):
        call(x)
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
