"""DSMIL in torch, with and without its value layer."""

import torch
from torch import nn
from torch.nn import functional


class InstanceStream(nn.Module):
  """Instance logits, [N, C]."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.fc = nn.Sequential(nn.Linear(width, num_classes))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.fc(x)


class BagStream(nn.Module):
  """Attends to what resembles every class's critical instance."""

  def __init__(self, num_classes: int, width: int, value: bool):
    super().__init__()
    self.q = nn.Sequential(
      nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh()
    )
    self.v = nn.Identity()
    if value:
      self.v = nn.Sequential(
        nn.Dropout(0.0), nn.Linear(width, width), nn.ReLU()
      )
    self.fcc = nn.Conv1d(num_classes, num_classes, width)

  def forward(
    self, x: torch.Tensor, instance_logits: torch.Tensor
  ) -> tuple[torch.Tensor, torch.Tensor]:
    query = self.q(x)
    critical = query[instance_logits.argmax(0)]
    scores = query @ critical.T / query.shape[1] ** 0.5
    attention = torch.softmax(scores, 0)
    bags = attention.T @ self.v(x)
    # As wide as its input, the convolution is one product.
    logits = functional.linear(
      bags.flatten(), self.fcc.weight.flatten(1), self.fcc.bias
    )
    return logits, attention


class DSMIL(nn.Module):
  def __init__(self, num_classes: int, width: int, value: bool = False):
    super().__init__()
    self.i_classifier = InstanceStream(num_classes, width)
    self.b_classifier = BagStream(num_classes, width, value)

  def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return self.b_classifier(x, self.i_classifier(x))

  def loss(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    instance_logits = self.i_classifier(x)
    logits, _ = self.b_classifier(x, instance_logits)
    both = torch.stack([logits, instance_logits.amax(0)])
    return functional.cross_entropy(both, label.expand(2))
