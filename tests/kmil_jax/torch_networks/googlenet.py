"""GoogLeNet in torch by torchvision's names (Szegedy et al., 2015)."""

import torch
from torch import nn
from torch.nn import functional

# Channels in, then as in table 1 of the paper.
BLOCKS = {
  '3a': (192, 64, 96, 128, 16, 32, 32),
  '3b': (256, 128, 128, 192, 32, 96, 64),
  '4a': (480, 192, 96, 208, 16, 48, 64),
  '4b': (512, 160, 112, 224, 24, 64, 64),
  '4c': (512, 128, 128, 256, 24, 64, 64),
  '4d': (512, 112, 144, 288, 32, 64, 64),
  '4e': (528, 256, 160, 320, 32, 128, 128),
  '5a': (832, 256, 160, 320, 32, 128, 128),
  '5b': (832, 384, 192, 384, 48, 128, 128),
}


class ConvNorm(nn.Module):
  def __init__(self, inputs: int, out: int, size: int = 1, stride: int = 1):
    super().__init__()
    self.conv = nn.Conv2d(inputs, out, size, stride, size // 2, bias=False)
    self.bn = nn.BatchNorm2d(out, eps=0.001)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.bn(self.conv(x)).relu()


class Inception(nn.Module):
  def __init__(self, inputs: int, *channels: int):
    super().__init__()
    one, reduce3, three, reduce5, five, pooled = channels
    self.branch1 = ConvNorm(inputs, one)
    self.branch2 = nn.Sequential(
      ConvNorm(inputs, reduce3), ConvNorm(reduce3, three, 3)
    )
    self.branch3 = nn.Sequential(
      ConvNorm(inputs, reduce5), ConvNorm(reduce5, five, 3)
    )
    self.branch4 = nn.Sequential(
      nn.MaxPool2d(3, 1, 1), ConvNorm(inputs, pooled)
    )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    branches = self.branch1, self.branch2, self.branch3, self.branch4
    return torch.cat([branch(x) for branch in branches], 1)


class GoogLeNet(nn.Module):
  def __init__(self, classes: int = 1000, channels: int = 3):
    super().__init__()
    self.conv1 = ConvNorm(channels, 64, 7, 2)
    self.conv2 = ConvNorm(64, 64)
    self.conv3 = ConvNorm(64, 192, 3)
    for name, widths in BLOCKS.items():
      setattr(self, f'inception{name}', Inception(*widths))
    self.dropout = nn.Dropout(0.2)
    self.fc = nn.Linear(1024, classes)

  def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Maps tiles [T, C, S, S] to logits and features."""
    pool = lambda x, size=3: functional.max_pool2d(x, size, 2, ceil_mode=True)
    x = pool(self.conv1(x))
    x = pool(self.conv3(self.conv2(x)))
    x = pool(self.inception3b(self.inception3a(x)))
    x = self.inception4c(self.inception4b(self.inception4a(x)))
    x = pool(self.inception4e(self.inception4d(x)), 2)
    features = self.inception5b(self.inception5a(x)).mean((2, 3))
    return self.fc(self.dropout(features)), features
