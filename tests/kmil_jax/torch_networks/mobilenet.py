"""MobileNet-v2 in torch by torchvision's names (Sandler et al., 2018)."""

import torch
from torch import nn

# Expansion, channels, blocks and first stride (table 2 of the paper).
STAGES = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


def conv_norm(
  inputs: int, out: int, size: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
  return nn.Sequential(
    nn.Conv2d(inputs, out, size, stride, size // 2, groups=groups, bias=False),
    nn.BatchNorm2d(out),
    nn.ReLU6(),
  )


class InvertedResidual(nn.Module):
  def __init__(self, inputs: int, out: int, stride: int, expansion: int):
    super().__init__()
    width = expansion * inputs
    expand = [conv_norm(inputs, width)] if expansion != 1 else []
    self.conv = nn.Sequential(
      *expand,
      conv_norm(width, width, 3, stride, groups=width),
      nn.Conv2d(width, out, 1, bias=False),
      nn.BatchNorm2d(out),
    )
    self.shortcut = stride == 1 and inputs == out

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
  def __init__(self, classes: int = 1000, channels: int = 3):
    super().__init__()
    layers, inputs = [conv_norm(channels, 32, 3, 2)], 32
    for expansion, out, blocks, stride in STAGES:
      for index in range(blocks):
        step = 1 if index else stride
        layers.append(InvertedResidual(inputs, out, step, expansion))
        inputs = out
    self.features = nn.Sequential(*layers, conv_norm(inputs, 1280))
    self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

  def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps tiles [T, C, S, S] to logits [T, classes] and features [T, 1280]."""
    features = self.features(x).mean((2, 3))
    return self.classifier(features), features
