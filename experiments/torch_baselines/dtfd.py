"""DTFD-MIL in torch, with its two optimisers."""

import torch
from torch import nn
from torch.nn import functional

from experiments.torch_baselines.abmil import plain_attention

CLIP = 5.0


class Reduction(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.fc1 = nn.Linear(width, 512, bias=False)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.fc1(x).relu()


class PlainAttention(nn.Module):
  """Scores, [N, 1]."""

  def __init__(self):
    super().__init__()
    self.attention = plain_attention(512)

  def forward(self, h: torch.Tensor) -> torch.Tensor:
    return self.attention(h)


class GatedAttention(nn.Module):
  """Scores, [N, 1]."""

  def __init__(self):
    super().__init__()
    self.attention_V = nn.Sequential(nn.Linear(512, 128), nn.Tanh())
    self.attention_U = nn.Sequential(nn.Linear(512, 128), nn.Sigmoid())
    self.attention_weights = nn.Linear(128, 1)

  def forward(self, h: torch.Tensor) -> torch.Tensor:
    return self.attention_weights(self.attention_V(h) * self.attention_U(h))


class Classifier(nn.Module):
  def __init__(self, num_classes: int):
    super().__init__()
    self.fc = nn.Linear(512, num_classes)

  def forward(self, h: torch.Tensor) -> torch.Tensor:
    return self.fc(h)


class SecondTier(nn.Module):
  def __init__(self, num_classes: int):
    super().__init__()
    self.attention = GatedAttention()
    self.classifier = Classifier(num_classes)

  def forward(self, rows: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    scores = self.attention(rows)[:, 0].masked_fill(~real, -torch.inf)
    return self.classifier(torch.softmax(scores, 0) @ rows)


class DTFD(nn.Module):
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
    super().__init__()
    self.dim_reduction = Reduction(width)
    self.attention = GatedAttention() if gated else PlainAttention()
    self.classifier = Classifier(num_classes)
    self.att_classifier = SecondTier(num_classes)
    self.pseudo_bags = pseudo_bags
    self.distill = distill
    self.kept = total_instances // pseudo_bags
    self.score = score

  def deal(self, x: torch.Tensor) -> torch.Tensor:
    """Returns a random pseudo-bag for each instance of a bag, [N]."""
    n, count = len(x), self.pseudo_bags
    order = torch.randperm(n, device=x.device)
    # The first n mod G get one more.
    size, more = divmod(n, count)
    border = more * (size + 1)
    rank = torch.arange(n, device=x.device)
    late = more + (rank - border) // max(size, 1)
    groups = torch.where(rank < border, rank // (size + 1), late)
    return torch.empty_like(order).index_copy_(0, order, groups)

  def tiers(
    self, x: torch.Tensor, groups: torch.Tensor
  ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns logits [C], those of non-empty pseudo-bags, attention [N, 1]."""
    count = min(self.pseudo_bags, len(x))
    member = groups[:, None] == torch.arange(count, device=x.device)
    h = self.dim_reduction(x)
    scores = self.attention(h).masked_fill(~member, -torch.inf)  # [N, G]
    weights = torch.softmax(scores, 0)
    z = weights.T @ h
    pseudo_logits = self.classifier(z)
    with torch.no_grad():
      rows, real = self.distilled(
        h.detach(), z.detach(), scores, weights, pseudo_logits, member
      )
    attention = weights.sum(1, keepdim=True)
    return self.att_classifier(rows, real), pseudo_logits, attention / count

  def distilled(self, h, z, scores, weights, pseudo_logits, member):
    """Returns rows [M, 512] for the second tier, and which are real, [M]."""
    every = torch.ones(len(z), dtype=torch.bool, device=z.device)
    if self.distill == 'afs':
      return z, every
    if self.distill == 'mas':
      return h[scores.argmax(0)], every
    activation = weights.sum(1, keepdim=True) * (
      h @ self.classifier.fc.weight.T
    )
    prob = torch.softmax(activation, 1)
    if self.score == 'last':
      prob = prob[:, -1:].expand(member.shape)
    else:
      prob = prob[:, pseudo_logits.argmax(1)]
    k = min(self.kept, len(h))
    real = torch.arange(k, device=h.device)[:, None] < member.sum(0)
    top = prob.masked_fill(~member, -torch.inf).topk(k, 0).indices
    if self.distill == 'maxmins':
      low = prob.masked_fill(~member, torch.inf).topk(k, 0, largest=False)
      top, real = torch.cat([top, low.indices]), torch.cat([real, real])
    return h[top.flatten()], real.flatten()

  def forward(
    self, x: torch.Tensor, groups: torch.Tensor | None = None
  ) -> tuple[torch.Tensor, torch.Tensor]:
    logits, _, attention = self.tiers(
      x, self.deal(x) if groups is None else groups
    )
    return logits, attention

  def losses(
    self,
    x: torch.Tensor,
    label: torch.Tensor,
    groups: torch.Tensor | None = None,
  ) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what each tier is trained by."""
    logits, pseudo_logits, _ = self.tiers(
      x, self.deal(x) if groups is None else groups
    )
    first = functional.cross_entropy(
      pseudo_logits, label.expand(len(pseudo_logits))
    )
    return first, functional.cross_entropy(logits, label)

  def loss(
    self,
    x: torch.Tensor,
    label: torch.Tensor,
    groups: torch.Tensor | None = None,
  ) -> torch.Tensor:
    return sum(self.losses(x, label, groups))


def optimizers(
  model: DTFD, lr: float = 1e-4, weight_decay: float = 1e-4
) -> tuple[torch.optim.Adam, torch.optim.Adam]:
  """Returns the optimiser of each tier, by default with the paper's rates."""
  second = list(model.att_classifier.parameters())
  first = [
    parameter
    for module in (model.dim_reduction, model.attention, model.classifier)
    for parameter in module.parameters()
  ]
  return tuple(
    torch.optim.Adam(tier, lr=lr, weight_decay=weight_decay)
    for tier in (first, second)
  )


def step(
  model: DTFD,
  tiers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
  x: torch.Tensor,
  label: torch.Tensor,
  groups: torch.Tensor | None = None,
) -> torch.Tensor:
  """Trains each tier by its own loss; returns their sum, before the step."""
  modules = (
    (model.dim_reduction, model.attention, model.classifier),
    (model.att_classifier,),
  )
  losses = model.losses(x, label, groups)
  for optimizer, loss, clipped in zip(tiers, losses, modules, strict=True):
    optimizer.zero_grad()
    loss.backward()
    for module in clipped:
      nn.utils.clip_grad_norm_(module.parameters(), CLIP)
    optimizer.step()
  return sum(losses).detach()
