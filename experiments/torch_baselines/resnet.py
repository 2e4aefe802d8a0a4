"""Residual networks in torch by torchvision's names, and a trunk's features."""

import torch
from torch import nn


class BasicBlock(nn.Module):
  expansion = 1

  def __init__(self, inputs: int, width: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
    self.bn2 = nn.BatchNorm2d(width)
    self.downsample = None
    if stride != 1 or inputs != width:
      self.downsample = nn.Sequential(
        nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
      )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.bn1(self.conv1(x)).relu_()
    y = self.bn2(self.conv2(y))
    shortcut = x if self.downsample is None else self.downsample(x)
    return y.add_(shortcut).relu_()


class Bottleneck(nn.Module):
  expansion = 4

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


class ResNet(nn.Module):
  """A network of blocks, `stages` of them in conv2_x to conv5_x."""

  def __init__(
    self,
    block: type[nn.Module],
    stages: tuple[int, ...],
    classes: int = 1000,
    channels: int = 3,
  ):
    super().__init__()
    self.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
    self.bn1 = nn.BatchNorm2d(64)
    inputs = 64
    for stage, blocks in enumerate(stages):
      width, layers = 64 * 2**stage, []
      for index in range(blocks):
        stride = 2 if stage and not index else 1
        layers.append(block(inputs, width, stride))
        inputs = block.expansion * width
      setattr(self, f'layer{stage + 1}', nn.Sequential(*layers))
    self.fc = nn.Linear(inputs, classes)

  def conv4(self, x: torch.Tensor) -> torch.Tensor:
    """Maps tiles [T, C, S, S] to the map after conv4_x."""
    x = self.bn1(self.conv1(x)).relu_()
    x = nn.functional.max_pool2d(x, 3, 2, padding=1)
    return self.layer3(self.layer2(self.layer1(x)))

  def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps tiles [T, C, S, S] to logits [T, classes] and features [T, F]."""
    features = self.layer4(self.conv4(x)).mean((2, 3))
    return self.fc(features), features


class ResNet50(ResNet):
  """The whole network's weights; `forward` ends after conv4_x."""

  def __init__(self):
    super().__init__(Bottleneck, (3, 4, 6, 3))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Maps tiles [T, 3, S, S] to features [T, 1024]."""
    return self.conv4(x).mean((2, 3))
