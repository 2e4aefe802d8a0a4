"""What tests do with torch modules: fill them, read them, feed them."""

import numpy as np
import torch


def randomized(module, gain=2.4):
  """The module with every norm's weights and statistics at random.

  Kernels grow by `gain`, that of He et al., without which nothing of a tile is
  left in the end of a network that has no shortcuts.
  """
  with torch.no_grad():
    for name, value in module.state_dict().items():
      if name.endswith('running_var'):
        value.uniform_(0.5, 2)
      elif name.endswith(('running_mean', 'bias')):
        value.normal_(0, 0.2)
      elif value.ndim == 1:
        value.uniform_(0.5, 1.5)
      elif value.ndim == 4:
        value.mul_(gain)
  return module


def state_of(module):
  return {name: v.numpy().copy() for name, v in module.state_dict().items()}


def to_torch(x):
  """Images or maps [..., H, W, C] as torch's [..., C, H, W]."""
  return torch.tensor(np.moveaxis(np.asarray(x), -1, -3))
