"""Whole residual networks by torchvision's names."""

import torch
from torch import nn

from experiments.benchmarks.torch_models import Bottleneck, Trunk, convolution


class BasicBlock(nn.Module):
  expansion = 1

  def __init__(self, inputs: int, width: int, stride: int):
    super().__init__()
    self.conv1 = convolution(inputs, width, 3, stride)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = convolution(width, width, 3)
    self.bn2 = nn.BatchNorm2d(width)
    self.downsample = nn.Identity()
    if stride != 1 or inputs != width:
      self.downsample = nn.Sequential(
        convolution(inputs, width, 1, stride), nn.BatchNorm2d(width)
      )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.bn1(self.conv1(x)).relu_()
    return self.bn2(self.conv2(y)).add_(self.downsample(x)).relu_()


class ResNet(Trunk):
  """A network of blocks, `stages` of them in conv2_x to conv5_x."""

  def __init__(self, block, stages, classes: int = 1000, channels: int = 3):
    super().__init__(block, stages, channels)
    self.fc = nn.Linear(block.expansion * 512, classes)

  def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps tiles [T, C, S, S] to logits [T, classes] and features [T, F]."""
    features = super().forward(x)
    return self.fc(features), features


class ResNet50(ResNet):
  """The whole network's weights; `forward` ends after conv4_x."""

  def __init__(self):
    super().__init__(Bottleneck, (3, 4, 6, 3))
    self.layers.remove('layer4')

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Maps tiles [T, 3, S, S] to features [T, 1024]."""
    return Trunk.forward(self, x)
