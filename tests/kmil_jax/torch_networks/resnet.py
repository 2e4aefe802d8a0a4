"""timm's residual networks, whose parameters have torchvision's names."""

import timm_networks
import torch


def network(
  name: str, classes: int = 1000, channels: int = 3
) -> torch.nn.Module:
  """Returns what maps tiles [T, C, S, S] to logits and features [T, F]."""
  make = timm_networks.create_model
  module = make(name, num_classes=classes, in_chans=channels)

  def forward(x):
    features = module.forward_features(x).mean((2, 3))
    return module.fc(features), features

  module.forward = forward
  return module


def trunk() -> torch.nn.Module:
  """Returns the whole ResNet-50, of which conv4_x gives features [T, 1024]."""
  module = network('resnet50')
  of = {'indices': [3], 'intermediates_only': True}
  module.forward = lambda x: module.forward_intermediates(x, **of)[0].mean(
    (2, 3)
  )
  return module
