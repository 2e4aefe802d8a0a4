"""ResNet-50 in torch by torchvision's names, and its trunk's features."""

import torch
from torch import nn


class Bottleneck(nn.Module):
  def __init__(self, inputs: int, width: int, stride: int):
    super().__init__()
    out = 4 * width
    self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
    self.bn2 = nn.BatchNorm2d(width)
    self.conv3 = nn.Conv2d(width, out, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(out)
    self.downsample = None
    if stride != 1 or inputs != out:
      self.downsample = nn.Sequential(
        nn.Conv2d(inputs, out, 1, stride, bias=False), nn.BatchNorm2d(out)
      )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.bn1(self.conv1(x)).relu_()
    y = self.bn2(self.conv2(y)).relu_()
    y = self.bn3(self.conv3(y))
    shortcut = x if self.downsample is None else self.downsample(x)
    return y.add_(shortcut).relu_()


class ResNet50(nn.Module):
  """The whole network's weights; `forward` ends after conv4_x."""

  def __init__(self):
    super().__init__()
    self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
    self.bn1 = nn.BatchNorm2d(64)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
      width, layers = 64 * 2**stage, []
      for block in range(blocks):
        stride = 2 if stage and not block else 1
        layers.append(Bottleneck(inputs, width, stride))
        inputs = 4 * width
      setattr(self, f'layer{stage + 1}', nn.Sequential(*layers))
    self.fc = nn.Linear(inputs, 1000)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Maps tiles [T, 3, S, S] to features [T, 1024]."""
    x = self.bn1(self.conv1(x)).relu_()
    x = nn.functional.max_pool2d(x, 3, 2, padding=1)
    return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))
