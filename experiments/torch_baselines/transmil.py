"""TransMIL in PyTorch, under the parameter names of its public weights."""

import math

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, LANDMARKS = 512, 8, 256


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

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    length = len(x)
    # Zero rows in front make the length a multiple of the landmarks.
    x = F.pad(x, (0, 0, -length % LANDMARKS, 0))
    qkv = self.to_qkv(x).view(len(x), 3, HEADS, WIDTH // HEADS)
    q, k, v = qkv.permute(1, 2, 0, 3)  # [8, L, 64] each
    q = q * (WIDTH // HEADS) ** -0.5
    q_mean, k_mean = (
      t.reshape(HEADS, LANDMARKS, -1, t.shape[-1]).mean(2) for t in (q, k)
    )
    read = torch.softmax(q @ k_mean.transpose(1, 2), -1)  # [8, L, 256]
    core = torch.softmax(q_mean @ k_mean.transpose(1, 2), -1)
    gather = torch.softmax(q_mean @ k.transpose(1, 2), -1)  # [8, 256, L]
    y = read @ (pseudo_inverse(core) @ (gather @ v))
    y = y + self._convolve(v)
    return self.to_out(y.transpose(0, 1).reshape(len(x), WIDTH)[-length:])

  def _convolve(self, v: torch.Tensor) -> torch.Tensor:
    # As one-dimensional convolutions: oneDNN, which torch 2.13 takes on CPUs
    # for the (33, 1) form, returns wrong gradients of taps 17 to 31 of 33, off
    # by ten times their size on 256 tokens. Values are right, and gradients
    # under `torch.backends.mkldnn.flags(enabled=False)`.
    y = F.conv1d(
      v.permute(2, 0, 1),
      self.res_conv.weight[..., 0],
      padding=self.res_conv.padding[0],
      groups=HEADS,
    )
    return y.permute(1, 2, 0)


def pseudo_inverse(a: torch.Tensor, iterations: int = 6) -> torch.Tensor:
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

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return x + self.attn(self.norm(x))


class PPEG(nn.Module):
  """Positions from depthwise convolutions over the tokens laid in a square."""

  def __init__(self):
    super().__init__()
    self.proj = nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
    self.proj1 = nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH)
    self.proj2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

  def forward(self, x: torch.Tensor, side: int) -> torch.Tensor:
    grid = x[1:].T.reshape(1, WIDTH, side, side)
    grid = self.proj(grid) + grid + self.proj1(grid) + self.proj2(grid)
    return torch.cat([x[:1], grid.reshape(WIDTH, -1).T])


class TransMIL(nn.Module):
  """Transformer-based correlated MIL.

  Shao et al., "TransMIL: transformer based correlated multiple instance
  learning for whole slide image classification", NeurIPS 2021
  (https://arxiv.org/abs/2106.00908).
  """

  def __init__(self, num_features: int = 1024, num_classes: int = 2):
    super().__init__()
    self._fc1 = nn.Sequential(nn.Linear(num_features, WIDTH), nn.ReLU())
    self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
    self.layer1 = Layer()
    self.pos_layer = PPEG()
    self.layer2 = Layer()
    self.norm = nn.LayerNorm(WIDTH)
    self._fc2 = nn.Linear(WIDTH, num_classes)

  def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
    """Returns the logits [C] of one bag [N, D]; TransMIL has no attention."""
    h = self._fc1(x)
    side = math.isqrt(len(h) - 1) + 1
    h = torch.cat([self.cls_token[0], h, h[: side * side - len(h)]])
    h = self.layer2(self.pos_layer(self.layer1(h), side))
    return self._fc2(self.norm(h[0])), None
