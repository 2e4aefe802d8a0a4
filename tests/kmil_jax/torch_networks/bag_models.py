"""Forms of bag models that the benchmark does not time, by public names."""

import torch
from torch import nn

from experiments.benchmarks import torch_models
from experiments.benchmarks.torch_models import BagModel, GatedAttention


def plain_attention(width: int) -> nn.Sequential:
  return nn.Sequential(nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, 1))


class AttentionMIL(BagModel):
  """What ABMIL's forms share: softmax attention, a bag vector, its class."""

  def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    h = self.instances(x)
    attention = torch.softmax(self.scores(h), 0)
    return self.classify((attention.T @ h)[0]), attention

  def scores(self, h):
    return self.attention(h)


class ABMILPlain(AttentionMIL):
  """Attention without a gate over embedded features."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.dim = nn.Sequential(nn.Linear(width, 512, bias=False), nn.ReLU())
    self.attention = plain_attention(512)
    self.classifiers = nn.Linear(512, num_classes)

  def instances(self, x):
    return self.dim(x)

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


class KMIL(BagModel):
  """DSMIL on the instances that a trained ABMIL finds sharp (Zheng et al.).

  The two stages, `chooser`, which `loss` does not train, and `classifier`, have
  the state dicts of their own public implementations.
  """

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.chooser = torch_models.ABMIL(num_classes, width)
    self.classifier = torch_models.DSMIL(num_classes, width)

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


class DSMILValue(torch_models.DSMIL):
  """DSMIL with its value layer."""

  def __init__(self, num_classes: int, width: int):
    super().__init__(num_classes, width)
    self.b_classifier['v'] = nn.Sequential(
      nn.Dropout(0.0), nn.Linear(width, width), nn.ReLU()
    )


class DTFD(torch_models.DTFD):
  """`distill` is 'afs', 'maxmins', 'maxs' or 'mas', `score` as in JAX."""

  def __init__(
    self,
    num_classes: int,
    width: int,
    gated: bool = False,
    pseudo_bags: int = 4,
    distill: str = 'afs',
    total_instances: int = 4,
    score: str = 'last',
  ):
    super().__init__(num_classes, width, pseudo_bags)
    if gated:
      self.attention = GatedAttention()
    self.gated, self.distill, self.score = gated, distill, score
    self.kept = total_instances // pseudo_bags

  def scores(self, h):
    return self.attention(h) if self.gated else super().scores(h)

  def distilled(self, h, scores, weights, pseudo_logits, member):
    if self.distill == 'afs':
      return super().distilled(h, scores, weights, pseudo_logits, member)
    if self.distill == 'mas':
      return h[scores.argmax(0)]
    activation = weights.sum(1, keepdim=True) * (
      h @ self.classifier.fc.weight.T
    )
    prob = torch.softmax(activation, 1)
    if self.score == 'last':
      prob = prob[:, -1:].expand(member.shape)
    else:
      prob = prob[:, pseudo_logits.argmax(1)]
    k = min(self.kept, len(h))
    real = torch.arange(k)[:, None] < member.sum(0)
    top = prob.masked_fill(~member, -torch.inf).topk(k, 0).indices
    if self.distill == 'maxmins':
      low = prob.masked_fill(~member, torch.inf).topk(k, 0, largest=False)
      top, real = torch.cat([top, low.indices]), torch.cat([real, real])
    return h[top[real]]
