"""Whole residual networks by torchvision's names."""

import torch
from torch import nn
from torch.nn import functional


def convolution(
  inputs: int, outputs: int, side: int, stride: int = 1
) -> nn.Conv2d:
  """Returns a convolution whose output has the size of its input / stride."""
  return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)


class Bottleneck(nn.Module):
  """A block of ResNet-50 (He et al. 2016) by torchvision's names."""

  expansion = 4

  def __init__(self, inputs: int, width: int, stride: int):
    super().__init__()
    out = 4 * width
    self.conv1 = convolution(inputs, width, 1)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = convolution(width, width, 3, stride)
    self.bn2 = nn.BatchNorm2d(width)
    self.conv3 = convolution(width, out, 1)
    self.bn3 = nn.BatchNorm2d(out)
    self.downsample = nn.Identity()
    if stride != 1 or inputs != out:
      self.downsample = nn.Sequential(
        convolution(inputs, out, 1, stride), nn.BatchNorm2d(out)
      )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.bn1(self.conv1(x)).relu_()
    y = self.bn2(self.conv2(y)).relu_()
    return self.bn3(self.conv3(y)).add_(self.downsample(x)).relu_()


class Trunk(nn.Module):
  """A residual network's first stages, by default ResNet-50's up to conv4_x."""

  def __init__(self, block=Bottleneck, stages=(3, 4, 6), channels: int = 3):
    super().__init__()
    self.conv1 = convolution(channels, 64, 7, 2)
    self.bn1 = nn.BatchNorm2d(64)
    inputs, self.layers = 64, []
    for stage, blocks in enumerate(stages):
      width = 64 * 2**stage
      layer = [block(inputs, width, 2 if stage else 1)]
      inputs = block.expansion * width
      layer += [block(inputs, width, 1) for _ in range(blocks - 1)]
      self.layers.append(f'layer{stage + 1}')
      setattr(self, self.layers[-1], nn.Sequential(*layer))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Maps tiles [T, C, S, S] to features [T, F]."""
    x = self.bn1(self.conv1(x)).relu_()
    x = functional.max_pool2d(x, 3, 2, padding=1)
    for layer in self.layers:
      x = getattr(self, layer)(x)
    return x.mean((2, 3))


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
