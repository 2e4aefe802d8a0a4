"""The network of CT lymph nodes in torch, of any tile size."""

import torch
from torch import nn
from torch.nn import functional


class NodeCNN(nn.Module):
  def __init__(self, size: int, classes: int = 1, channels: int = 1):
    super().__init__()
    self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
    self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
    self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
    self.fc1 = nn.Linear(128 * (size // 8) ** 2, 128)
    self.fc2 = nn.Linear(128, classes)
    self.drop_map, self.drop_hidden = nn.Dropout(0.25), nn.Dropout(0.5)

  def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps slices [T, C, S, S] to logits [T, classes] and hidden [T, 128]."""
    for conv in (self.conv1, self.conv2, self.conv3):
      x = self.drop_map(functional.max_pool2d(conv(x).relu(), 2))
    features = self.fc1(x.flatten(1)).relu()
    return self.fc2(self.drop_hidden(features)), features
