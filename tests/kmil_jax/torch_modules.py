"""The torch twins of networks, and what tests do with torch modules."""

import functools

import numpy as np
import torch
from torch_networks import (
  bag_models,
  googlenet,
  mobilenet,
  node_cnn,
  resnet,
  reverse_distillation,
)

from experiments.benchmarks import torch_models

# make(num_classes, width), by the names of SPECS.
BAG_MODELS = {
  'abmil': torch_models.ABMIL,
  'abmil_plain': bag_models.ABMILPlain,
  'abmil_ilse': bag_models.ABMILIlse,
  'abmil_ilse_plain': bag_models.ABMILIlsePlain,
  'dsmil': torch_models.DSMIL,
  'dsmil_value': bag_models.DSMILValue,
  'dtfd': bag_models.DTFD,
  'dtfd_gated': functools.partial(bag_models.DTFD, gated=True),
  'kmil': torch_models.DSMIL,  # KMIL's second stage.
  'transmil': torch_models.TransMIL,
}
# make(classes=, channels=), by the names of CLASSIFIERS; and where 'node_cnn'
# sees tiles of other sides than 16, size=.
CLASSIFIERS = {
  'googlenet': googlenet.GoogLeNet,
  'mobilenet_v2': mobilenet.MobileNetV2,
  'node_cnn': functools.partial(node_cnn.NodeCNN, size=16, channels=3),
  **{
    name: functools.partial(resnet.network, name)
    for name in ('resnet18', 'resnet50', 'resnet101')
  },
}
ENCODERS = {
  'resnet50_trunk': resnet.trunk,
  'teacher': reverse_distillation.Teacher,
  'student': reverse_distillation.Student,
}


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
