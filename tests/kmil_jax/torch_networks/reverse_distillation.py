"""Reverse distillation in torch by the names of its released code."""

import torch
from torch import nn
from torch.nn import functional as F

STAGES = (3, 4, 6)


def _conv(inputs: int, out: int, side: int, stride: int = 1) -> nn.Conv2d:
  return nn.Conv2d(inputs, out, side, stride, side // 2, bias=False)


class Bottleneck(nn.Module):
  """`kind` is 'same', 'down' (`shortcut` is its side) or 'up'."""

  def __init__(self, inputs: int, width: int, kind: str, shortcut: int = 1):
    super().__init__()
    out = 2 * width
    up = lambda i, o: nn.ConvTranspose2d(i, o, 2, 2, bias=False)
    self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
    stride = 2 if kind == 'down' else 1
    middle = up(width, width) if kind == 'up' else _conv(
      width, width, 3, stride
    )  # fmt: skip
    self.conv2, self.bn2 = middle, nn.BatchNorm2d(width)
    self.conv3, self.bn3 = _conv(width, out, 1), nn.BatchNorm2d(out)
    self.downsample = self.upsample = None
    if kind == 'up':
      self.upsample = nn.Sequential(up(inputs, out), nn.BatchNorm2d(out))
    elif stride != 1 or inputs != out:
      self.downsample = nn.Sequential(
        _conv(inputs, out, shortcut, stride), nn.BatchNorm2d(out)
      )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.bn1(self.conv1(x)).relu()
    y = self.bn2(self.conv2(y)).relu()
    y = self.bn3(self.conv3(y))
    for change in (self.downsample, self.upsample):
      x = x if change is None else change(x)
    return (x + y).relu()


def _layer(inputs, width, blocks, kind, shortcut=1) -> nn.Sequential:
  first = Bottleneck(inputs, width, kind, shortcut)
  rest = [Bottleneck(2 * width, width, 'same') for _ in range(blocks - 1)]
  return nn.Sequential(first, *rest)


class Teacher(nn.Module):
  """WideResNet-50-2 up to conv4_x, of `width` channels in its stem."""

  def __init__(self, width: int = 64, stages: tuple[int, ...] = STAGES):
    super().__init__()
    w = width
    self.conv1 = nn.Conv2d(3, w, 7, 2, padding=3, bias=False)
    self.bn1 = nn.BatchNorm2d(w)
    self.layer1 = _layer(w, 2 * w, stages[0], 'same')
    self.layer2 = _layer(4 * w, 4 * w, stages[1], 'down')
    self.layer3 = _layer(8 * w, 8 * w, stages[2], 'down')

  def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
    """Maps patches [T, 3, S, S] to the maps of three stages."""
    x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, padding=1)
    first = self.layer1(x)
    second = self.layer2(first)
    return [first, second, self.layer3(second)]


class Embedding(nn.Module):
  """Fuses three maps into one; the two last layers are never used."""

  def __init__(self, width: int, shortcut: int):
    super().__init__()
    w = width
    self.bn_layer = _layer(48 * w, 16 * w, 3, 'down', shortcut)
    self.conv1, self.bn1 = _conv(4 * w, 8 * w, 3, 2), nn.BatchNorm2d(8 * w)
    self.conv2, self.bn2 = _conv(8 * w, 16 * w, 3, 2), nn.BatchNorm2d(16 * w)
    self.conv3, self.bn3 = _conv(8 * w, 16 * w, 3, 2), nn.BatchNorm2d(16 * w)
    self.conv4, self.bn4 = _conv(64 * w, 32 * w, 1), nn.BatchNorm2d(32 * w)

  def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
    first = self.bn1(self.conv1(maps[0])).relu()
    first = self.bn2(self.conv2(first)).relu()
    second = self.bn3(self.conv3(maps[1])).relu()
    return self.bn_layer(torch.cat([first, second, maps[2]], 1))


class Decoder(nn.Module):
  """The teacher's stages in reverse."""

  def __init__(self, width: int, stages: tuple[int, ...]):
    super().__init__()
    w = width
    self.layer1 = _layer(32 * w, 8 * w, stages[0], 'up')
    self.layer2 = _layer(16 * w, 4 * w, stages[1], 'up')
    self.layer3 = _layer(8 * w, 2 * w, stages[2], 'up')

  def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
    third = self.layer1(x)
    second = self.layer2(third)
    return [self.layer3(second), second, third]


class Student(nn.Module):
  """Embedding and decoder; their state dicts go by `bn.` and `decoder.`."""

  def __init__(
    self,
    width: int = 64,
    shortcut: int = 3,
    stages: tuple[int, ...] = STAGES,
  ):
    super().__init__()
    self.bn = Embedding(width, shortcut)
    self.decoder = Decoder(width, stages)

  def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    return self.decoder(self.bn(maps))


def cosines(f, g, per: str) -> list[torch.Tensor]:
  """Cosine of each pair of maps, [T] per 'map', [T, H, W] per 'location'."""
  if per == 'map':
    f, g = ([x.flatten(1) for x in maps] for maps in (f, g))
  return [F.cosine_similarity(a, b, 1) for a, b in zip(f, g, strict=True)]


def rd_loss(f, g, per: str) -> torch.Tensor:
  """Reverse distillation's mean loss of T patches."""
  return sum((1 - s).mean() for s in cosines(f, g, per))


def focal_loss(f, g, label, alpha, gamma, per: str) -> torch.Tensor:
  """FW-RD's mean loss of T patches of label 1, normal, and 0, tumour."""
  total = 0
  for s in cosines(f, g, per):
    own = label.bool().reshape(-1, *[1] * (s.ndim - 1))
    p = torch.where(own, s, 1 - s)
    weight = torch.where(own, alpha, 1 - alpha)
    total += (-weight * (1 - p) ** gamma * p.clamp(1e-6, 1).log()).mean()
  return total
