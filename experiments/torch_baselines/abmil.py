"""ABMIL in torch: Zheng et al.'s two forms and Ilse et al.'s two."""

import torch
from torch import nn
from torch.nn import functional


class AttentionMIL(nn.Module):
  """What the forms share: softmax attention, a bag vector, its class."""

  def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    h = self.instances(x)
    attention = torch.softmax(self.scores(h), 0)
    bag = (attention.T @ h)[0]
    return self.classify(bag), attention

  def loss(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(self(x)[0], label)


class GatedHead(nn.Module):
  """Gated attention scores with dropout on both branches, [N, 1]."""

  def __init__(self, width: int, hidden: int, dropout: float):
    super().__init__()
    self.attention_a = nn.Sequential(
      nn.Linear(width, hidden), nn.Tanh(), nn.Dropout(dropout)
    )
    self.attention_b = nn.Sequential(
      nn.Linear(width, hidden), nn.Sigmoid(), nn.Dropout(dropout)
    )
    self.attention_c = nn.Linear(hidden, 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.attention_c(self.attention_a(x) * self.attention_b(x))


class ABMIL(AttentionMIL):
  """Gated attention over raw features."""

  def __init__(self, num_classes: int, width: int, dropout: float = 0.25):
    super().__init__()
    self.path_attn_head = GatedHead(width, 256, dropout)
    self.classifiers = nn.Linear(width, num_classes)

  def instances(self, x):
    return x

  def scores(self, h):
    return self.path_attn_head(h)

  def classify(self, bag):
    return self.classifiers(bag)


class ABMILPlain(AttentionMIL):
  """Attention without a gate over embedded features."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.dim = nn.Sequential(nn.Linear(width, 512, bias=False), nn.ReLU())
    self.attention = plain_attention(512)
    self.classifiers = nn.Linear(512, num_classes)

  def instances(self, x):
    return self.dim(x)

  def scores(self, h):
    return self.attention(h)

  def classify(self, bag):
    return self.classifiers(bag)


class ABMILIlsePlain(AttentionMIL):
  """Ilse et al., eq. 8, on features, with logits of C classes."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.feature_extractor_part2 = nn.Sequential(
      nn.Linear(width, 500), nn.ReLU()
    )
    self.attention = plain_attention(500)
    self.classifier = nn.Sequential(nn.Linear(500, num_classes))

  def instances(self, x):
    return self.feature_extractor_part2(x)

  def scores(self, h):
    return self.attention(h)

  def classify(self, bag):
    return self.classifier(bag)


class ABMILIlse(ABMILIlsePlain):
  """Ilse et al., eq. 9."""

  def __init__(self, num_classes: int, width: int):
    super().__init__(num_classes, width)
    del self.attention
    self.attention_V = nn.Sequential(nn.Linear(500, 128), nn.Tanh())
    self.attention_U = nn.Sequential(nn.Linear(500, 128), nn.Sigmoid())
    self.attention_w = nn.Linear(128, 1)

  def scores(self, h):
    return self.attention_w(self.attention_V(h) * self.attention_U(h))


def plain_attention(width: int) -> nn.Sequential:
  return nn.Sequential(nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, 1))
