"""KMIL in torch: DSMIL on the instances that a trained ABMIL finds sharp."""

import torch
from torch import nn

from experiments.torch_baselines.abmil import ABMIL
from experiments.torch_baselines.dsmil import DSMIL


class KMIL(nn.Module):
  """The two stages: `chooser`, which `loss` does not train, and `classifier`.

  Each has the state dict of its own public implementation.
  """

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.chooser = ABMIL(num_classes, width)
    self.classifier = DSMIL(num_classes, width)

  @torch.no_grad()
  def key_instances(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the rows of the floor(0.9 n) highest class variances, rising."""
    variance = torch.softmax(self.chooser.classifiers(x), 1).var(1)
    kept = max(len(x) * 9 // 10, 1)
    return variance.topk(kept, sorted=False).indices.sort().values

  def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = self.key_instances(x)
    logits, attention = self.classifier(x[rows])
    shape = len(x), attention.shape[1]
    return logits, attention.new_zeros(shape).index_copy(0, rows, attention)

  def loss(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return self.classifier.loss(x[self.key_instances(x)], label)
