"""The models that are timed, in torch, by the names of their public weights.

A bag model takes one bag [N, D]: `forward` returns logits [C] and attention
[N, A] (None if it has none), `loss` what it is trained by.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

Output = tuple[Tensor, Tensor]
WIDTH, HEADS, LANDMARKS = 512, 8, 256  # Of TransMIL.


class BagModel(nn.Module):
  """A model that is trained by the cross-entropy of its logits."""

  def loss(self, x: Tensor, label: Tensor) -> Tensor:
    return functional.cross_entropy(self(x)[0], label)


class ABMIL(BagModel):
  """Gated attention over raw features (Zheng et al.)."""

  def __init__(self, num_classes: int, width: int, dropout: float = 0.25):
    super().__init__()
    branch = lambda activation: nn.Sequential(
      nn.Linear(width, 256), activation, nn.Dropout(dropout)
    )
    self.path_attn_head = nn.ModuleDict(
      {
        'attention_a': branch(nn.Tanh()),
        'attention_b': branch(nn.Sigmoid()),
        'attention_c': nn.Linear(256, 1),
      }
    )
    self.classifiers = nn.Linear(width, num_classes)

  def forward(self, x: Tensor) -> Output:
    head = self.path_attn_head
    scores = head.attention_c(head.attention_a(x) * head.attention_b(x))
    attention = torch.softmax(scores, 0)
    return self.classifiers((attention.T @ x)[0]), attention


class DSMIL(BagModel):
  """Attention to what resembles each class's critical instance (Li et al.)."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.i_classifier = nn.ModuleDict(
      {'fc': nn.Sequential(nn.Linear(width, num_classes))}
    )
    query = nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh()
    self.b_classifier = nn.ModuleDict(
      {
        'q': nn.Sequential(*query),
        'v': nn.Identity(),
        'fcc': nn.Conv1d(num_classes, num_classes, width),
      }
    )

  def streams(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns logits of the bag [C] and of instances [N, C], and attention."""
    stream, instance_logits = self.b_classifier, self.i_classifier.fc(x)
    query = stream.q(x)
    critical = query[instance_logits.argmax(0)]
    attention = torch.softmax(query @ critical.T / query.shape[1] ** 0.5, 0)
    bags = attention.T @ stream.v(x)
    # As wide as its input, the convolution is one product.
    weight = stream.fcc.weight.flatten(1)
    logits = functional.linear(bags.flatten(), weight, stream.fcc.bias)
    return logits, instance_logits, attention

  def forward(self, x: Tensor) -> Output:
    logits, _, attention = self.streams(x)
    return logits, attention

  def loss(self, x: Tensor, label: Tensor) -> Tensor:
    logits, instance_logits, _ = self.streams(x)
    both = torch.stack([logits, instance_logits.amax(0)])
    return functional.cross_entropy(both, label.expand(2))


class DTFD(BagModel):
  """Two tiers, of pseudo-bags and of their features (Zhang et al., AFS).

  The tiers share no gradient: their two optimisers, of one rate, are one
  optimiser of the summed loss.
  """

  def __init__(self, num_classes: int, width: int, pseudo_bags: int = 4):
    super().__init__()
    self.pseudo_bags = pseudo_bags
    linear = nn.Linear(width, 512, bias=False)
    self.dim_reduction = nn.ModuleDict({'fc1': linear})
    scores = nn.Linear(512, 128), nn.Tanh(), nn.Linear(128, 1)
    self.attention = nn.ModuleDict({'attention': nn.Sequential(*scores)})
    classifier = lambda: nn.ModuleDict({'fc': nn.Linear(512, num_classes)})
    self.classifier = classifier()
    self.att_classifier = nn.ModuleDict(
      {'attention': GatedAttention(), 'classifier': classifier()}
    )

  def deal(self, x: Tensor) -> Tensor:
    """Returns a random pseudo-bag for each instance of a bag, [N]."""
    order = torch.randperm(len(x), device=x.device)
    return order % min(self.pseudo_bags, len(x))

  def scores(self, h: Tensor) -> Tensor:
    """Returns attention scores of the first tier, [N, 1]."""
    return self.attention.attention(h)

  def distilled(self, h, scores, weights, pseudo_logits, member):
    """Returns what the second tier sees, [M, 512]; here all pseudo-bags.

    Args:
      h: instances, [N, 512].
      scores: of instances in their pseudo-bags, [N, G].
      weights: their softmax.
      pseudo_logits: [G, C].
      member: bool [N, G].
    """
    return weights.T @ h

  def tiers(
    self, x: Tensor, groups: Tensor | None
  ) -> tuple[Tensor, Tensor, Tensor]:
    """Returns logits [C], those of the pseudo-bags [G, C], attention [N, 1].

    Args:
      x: bag.
      groups: pseudo-bag of each instance, [N]; None to deal them out at random.
    """
    count = min(self.pseudo_bags, len(x))
    groups = self.deal(x) if groups is None else groups
    member = groups[:, None] == torch.arange(count, device=x.device)
    h = self.dim_reduction.fc1(x).relu()
    scores = self.scores(h).masked_fill(~member, -torch.inf)
    weights = torch.softmax(scores, 0)
    pseudo_logits = self.classifier.fc(weights.T @ h)
    with torch.no_grad():
      rows = self.distilled(h, scores, weights, pseudo_logits, member)
    second = self.att_classifier
    bag = torch.softmax(second.attention(rows)[:, 0], 0) @ rows
    attention = weights.sum(1, keepdim=True) / count
    return second.classifier.fc(bag), pseudo_logits, attention

  def forward(self, x: Tensor, groups: Tensor | None = None) -> Output:
    logits, _, attention = self.tiers(x, groups)
    return logits, attention

  def loss(
    self, x: Tensor, label: Tensor, groups: Tensor | None = None
  ) -> Tensor:
    logits, pseudo_logits, _ = self.tiers(x, groups)
    labels = label.expand(len(pseudo_logits))
    first = functional.cross_entropy(pseudo_logits, labels)
    return first + functional.cross_entropy(logits, label)


class GatedAttention(nn.Module):
  """DTFD's gated attention scores, [N, 1]."""

  def __init__(self):
    super().__init__()
    self.attention_V = nn.Sequential(nn.Linear(512, 128), nn.Tanh())
    self.attention_U = nn.Sequential(nn.Linear(512, 128), nn.Sigmoid())
    self.attention_weights = nn.Linear(128, 1)

  def forward(self, h: Tensor) -> Tensor:
    return self.attention_weights(self.attention_V(h) * self.attention_U(h))


class NystromAttention(nn.Module):
  """Self-attention through 256 landmarks, on one sequence [L, 512].

  Xiong et al., "Nyströmformer: a Nyström-based algorithm for approximating
  self-attention", AAAI 2021, eqs. 11, 13 and 15
  (https://arxiv.org/abs/2102.03902).
  """

  def __init__(self, dropout: float = 0.1):
    super().__init__()
    self.to_qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
    self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout))
    self.res_conv = nn.Conv2d(
      HEADS, HEADS, (33, 1), padding=(16, 0), groups=HEADS, bias=False
    )

  def forward(self, x: Tensor) -> Tensor:
    length = len(x)
    # Zero rows in front make the length a multiple of the landmarks.
    x = functional.pad(x, (0, 0, -length % LANDMARKS, 0))
    qkv = self.to_qkv(x).view(len(x), 3, HEADS, WIDTH // HEADS)
    q, k, v = qkv.permute(1, 2, 0, 3)  # [8, L, 64] each
    q = q * (WIDTH // HEADS) ** -0.5
    q_mean, k_mean = (
      t.reshape(HEADS, LANDMARKS, -1, t.shape[-1]).mean(2) for t in (q, k)
    )
    read = torch.softmax(q @ k_mean.transpose(1, 2), -1)  # [8, L, 256]
    core = torch.softmax(q_mean @ k_mean.transpose(1, 2), -1)
    gather = torch.softmax(q_mean @ k.transpose(1, 2), -1)  # [8, 256, L]
    y = read @ (pseudo_inverse(core) @ (gather @ v)) + self._convolve(v)
    return self.to_out(y.transpose(0, 1).reshape(len(x), WIDTH)[-length:])

  def _convolve(self, v: Tensor) -> Tensor:
    # As one-dimensional convolutions: oneDNN, which torch 2.13 takes on CPUs
    # for the (33, 1) form, returns wrong gradients of taps 17 to 31 of 33, off
    # by ten times their size on 256 tokens. Values are right, and gradients
    # under `torch.backends.mkldnn.flags(enabled=False)`.
    weight = self.res_conv.weight[..., 0]
    x = v.permute(2, 0, 1)
    y = functional.conv1d(x, weight, padding=16, groups=HEADS)
    return y.permute(1, 2, 0)


def pseudo_inverse(a: Tensor, iterations: int = 6) -> Tensor:
  """Moore-Penrose inverses of [H, M, M] with one start for all H."""
  scale = a.abs().sum(-1).max() * a.abs().sum(-2).max()
  z = a.transpose(1, 2) / scale
  eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
  for _ in range(iterations):
    az = a @ z
    z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
  return z


class Layer(nn.Module):
  """Pre-norm attention with a skip connection."""

  def __init__(self):
    super().__init__()
    self.norm = nn.LayerNorm(WIDTH)
    self.attn = NystromAttention()

  def forward(self, x: Tensor) -> Tensor:
    return x + self.attn(self.norm(x))


class PPEG(nn.Module):
  """Positions from depthwise convolutions over the tokens laid in a square."""

  def __init__(self):
    super().__init__()
    convolution = lambda side: nn.Conv2d(
      WIDTH, WIDTH, side, padding=side // 2, groups=WIDTH
    )
    self.proj, self.proj1, self.proj2 = map(convolution, (7, 5, 3))

  def forward(self, x: Tensor, side: int) -> Tensor:
    grid = x[1:].T.reshape(1, WIDTH, side, side)
    grid = self.proj(grid) + grid + self.proj1(grid) + self.proj2(grid)
    return torch.cat([x[:1], grid.reshape(WIDTH, -1).T])


class TransMIL(BagModel):
  """Transformer-based correlated MIL.

  Shao et al., "TransMIL: transformer based correlated multiple instance
  learning for whole slide image classification", NeurIPS 2021
  (https://arxiv.org/abs/2106.00908).
  """

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self._fc1 = nn.Sequential(nn.Linear(width, WIDTH), nn.ReLU())
    self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
    self.layer1 = Layer()
    self.pos_layer = PPEG()
    self.layer2 = Layer()
    self.norm = nn.LayerNorm(WIDTH)
    self._fc2 = nn.Linear(WIDTH, num_classes)

  def forward(self, x: Tensor) -> tuple[Tensor, None]:
    h = self._fc1(x)
    side = math.isqrt(len(h) - 1) + 1
    h = torch.cat([self.cls_token[0], h, h[: side * side - len(h)]])
    h = self.layer2(self.pos_layer(self.layer1(h), side))
    return self._fc2(self.norm(h[0])), None


MODELS = {m.__name__.lower(): m for m in (ABMIL, DSMIL, TransMIL, DTFD)}
MODELS['kmil'] = DSMIL  # KMIL's second stage.
