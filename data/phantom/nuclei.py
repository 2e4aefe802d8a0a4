"""Draws libraries of cells and paints them on stain densities."""

import dataclasses
import functools

import numpy as np
from numpy.random import Generator
import scipy

from data.phantom import texture

COUNT = 96  # How many different nuclei of a kind there are.
ANGLES = 16  # Stamps of elongated cells are sorted by angle into these bins.


@dataclasses.dataclass(frozen=True)
class Kind:
  """How the nuclei of one kind of cell look; lengths in level-0 pixels.

  Attributes:
    radius: mean radius.
    spread: standard deviation of the radius, as a part of it.
    stretch: length over width; angles are random where it is below 2.
    ragged: amplitude of the outline's irregularity, as a part of the radius.
    density: haematoxylin inside the nucleus.
    clumps: standard deviation of the chromatin's density, relative.
    rim: added density of the nuclear membrane, relative.
    nucleoli: dark spots per nucleus.
    groove: depth of a pale fold along the nucleus, relative.
  """

  radius: float
  spread: float = 0.08
  stretch: float = 1.1
  ragged: float = 0.05
  density: float = 1.0
  clumps: float = 0.15
  rim: float = 0.1
  nucleoli: int = 0
  groove: float = 0.0


KINDS = {
  'lymphocyte': Kind(6.6, 0.1, 1.1, 0.05, 1.75, 0.2, 0.15),
  'plasma': Kind(6.4, 0.08, 1.15, 0.04, 1.6, 0.38, 0.25),
  'centrocyte': Kind(7.4, 0.15, 1.35, 0.1, 1.0, 0.22, 0.25),
  'centroblast': Kind(9.6, 0.1, 1.1, 0.05, 0.78, 0.2, 0.4, 2),
  'histiocyte': Kind(8.2, 0.1, 1.5, 0.1, 0.62, 0.15, 0.35, 1),
  'spindle': Kind(7.2, 0.15, 4.6, 0.06, 1.3, 0.15, 0.1),
  'debris': Kind(3.2, 0.4, 1.2, 0.1, 2.0, 0.1, 0.0),
  'blast': Kind(11.0, 0.08, 1.1, 0.06, 0.95, 0.24, 0.45, 3),
  'ductal': Kind(12.0, 0.2, 1.25, 0.09, 1.15, 0.3, 0.3, 1),
  'squamous': Kind(10.8, 0.18, 1.3, 0.09, 1.2, 0.24, 0.3, 1),
  'papillary': Kind(9.8, 0.1, 1.3, 0.06, 0.5, 0.06, 1.0, 0, 0.7),
  'mitosis': Kind(6.0, 0.15, 2.2, 0.2, 2.4, 0.3, 0.0),
  'bland': Kind(8.0, 0.05, 1.15, 0.03, 1.1, 0.1, 0.15),
}


@functools.cache
def stamps(kind: str) -> np.ndarray:
  """Returns haematoxylin densities of nuclei of one kind.

  Args:
    kind: a key of `KINDS`.

  Returns:
    float32 [COUNT, S, S], S odd, the nucleus in the middle; nucleus k of an
    elongated kind lies at the angle pi k / COUNT.
  """
  look = KINDS[kind]
  rng = np.random.default_rng([17, list(KINDS).index(kind)])
  half = int(look.radius * (1 + 2 * look.spread) * look.stretch**0.5 + 2)
  y, x = np.indices((2 * half + 1, 2 * half + 1), np.float32) - half

  def draw(low, high):
    return rng.uniform(low, high, (COUNT, 1, 1)).astype(np.float32)

  angle = np.pi * np.arange(COUNT, dtype=np.float32)[:, None, None] / COUNT
  along = np.cos(angle) * x + np.sin(angle) * y
  across = np.cos(angle) * y - np.sin(angle) * x
  stretch = (look.stretch * draw(0.85, 1.15)) ** 0.5
  along, across = along / stretch, across * stretch
  theta = np.arctan2(across, along)
  radius = look.radius * (1 + look.spread * draw(-1.7, 1.7))
  for wave in (2, 3, 5):
    amplitude = look.ragged * draw(0, 2.8 / wave)
    radius = radius * (1 + amplitude * np.cos(wave * theta + draw(0, 6.28)))
  depth = radius - np.hypot(along, across)  # Pixels inside the outline.
  inside = np.clip(depth / 1.2 + 0.5, 0, 1)
  chromatin = scipy.ndimage.gaussian_filter(
    rng.standard_normal((COUNT, *x.shape), np.float32), (0, 1.3, 1.3)
  )
  value = 1 + look.clumps * chromatin / chromatin.std()
  value += look.rim * np.exp(-(((depth - 1.2) / 1.1) ** 2))
  for _ in range(look.nucleoli):
    away, at = draw(0.05, 0.5) * radius, draw(0, 6.28)
    gap = np.hypot(along - away * np.cos(at), across - away * np.sin(at))
    value += draw(0.3, 1.0) * np.exp(-((gap / draw(1.4, 2.3)) ** 2))
  if look.groove:
    bend = draw(-0.05, 0.05) * along**2 + draw(-2, 2)
    value += look.groove * draw(0, 1) * np.exp(-((across - bend) ** 2) / 1.5)
  return look.density * draw(0.85, 1.15) * inside * value.clip(0.15)


@functools.cache
def _bodies(size: int) -> np.ndarray:
  """Returns the outlines of cell bodies: 1 inside, 0 outside, [32, S, S].

  Args:
    size: mean radius in level-0 pixels.
  """
  rng = np.random.default_rng([18, size])
  half = int(1.4 * size + 2)
  y, x = np.indices((2 * half + 1, 2 * half + 1), np.float32) - half
  edge = size * rng.uniform(0.8, 1.15, (32, 1, 1))
  for wave in (2, 3, 5):
    turn = wave * np.arctan2(y, x) + rng.uniform(0, 2 * np.pi, (32, 1, 1))
    edge = edge * (1 + 0.16 / wave * np.cos(turn))
  inside = np.clip((edge - np.hypot(y, x)) / 2 + 0.5, 0, 1)
  return inside.astype(np.float32)


class Canvas:
  """Densities of both stains, and the brushes that all tissue is painted with.

  Maps that brushes take may be of fewer pixels than the canvas.

  Attributes:
    rng: where the randomness of every brush comes from.
    shape: of the canvas in level-0 pixels.
    inside: positive where cells may lie, [H, W]; everywhere by default.
    others: kinds of nuclei that are painted in the place of some, '' for none.
    haematoxylin: float32 [H, W].
    eosin: float32 [H, W].
  """

  def __init__(self, rng: Generator, shape: tuple, inside=1, others=()):
    self.rng, self.shape, self.inside = rng, shape, inside
    self.others = dict(others)
    self.haematoxylin = np.zeros(shape, np.float32)
    self.eosin = np.zeros(shape, np.float32)

  def noise(self, scale: float) -> np.ndarray:
    return texture.noise(self.rng, self.shape, scale)

  def repeat(self, pattern: np.ndarray) -> np.ndarray:
    """Returns a periodic texture over the canvas, begun anywhere in it."""
    y, x = self.rng.integers(0, texture.PERIOD, 2)
    return texture.stretch(pattern, self.shape, y, x)

  def at(self, points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the values of a map under points (y, x)."""
    size = np.array(values.shape)
    y, x = (points * (size / self.shape)).astype(int).clip(0, size - 1).T
    return values[y, x]

  def keep(self, points: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Returns the points that a map of chances keeps."""
    draw = self.rng.random(len(points))
    return points[draw < self.at(points, chance * (self.inside > 0))]

  def grid(self, pitch: float, chance: np.ndarray) -> np.ndarray:
    """Returns points of a jittered grid; see `keep`."""
    points = texture.jittered_grid(self.rng, self.shape, pitch)
    return self.keep(points, chance)

  def nuclei(self, kind: str, points: np.ndarray, angles=None) -> None:
    """Paints nuclei of a kind, at random angles or near the given ones."""
    kind = self.others.get(kind, kind)
    if not kind:
      return
    low, count = 0, COUNT
    if angles is not None:
      count = COUNT // ANGLES
      low = count * (np.rint(angles / np.pi * ANGLES).astype(int) % ANGLES)
    picks = low + self.rng.integers(0, count, len(points))
    _paste(self.haematoxylin, stamps(kind), picks, points)

  def bodies(self, size: int, points: np.ndarray) -> np.ndarray:
    """Returns what bodies of cells cover: 1 inside, 0 outside, [H, W]."""
    cover = np.zeros(self.shape, np.float32)
    picks = self.rng.integers(0, 32, len(points))
    _paste(cover, _bodies(size), picks, points)
    return cover

  def clear(self, cover: np.ndarray) -> None:
    """Takes both stains away."""
    self.haematoxylin *= 1 - cover
    self.eosin *= 1 - cover


def _paste(
  canvas: np.ndarray, library: np.ndarray, picks: np.ndarray, yx: np.ndarray
) -> None:
  """Puts stamps on a canvas, in place; where they overlap the denser stays.

  Args:
    canvas: float32 [H, W].
    library: float32 [count, S, S], S odd.
    picks: which stamp for each cell, [K].
    yx: cell centres in pixels, [K, 2]; cells whose stamp would cross the
      canvas's border are left out.
  """
  side = library.shape[1]
  corners = np.rint(yx).astype(int) - side // 2
  fits = (corners >= 0).all(1) & (corners + side <= canvas.shape).all(1)
  for pick, (y, x) in zip(picks[fits], corners[fits].tolist(), strict=True):
    window = canvas[y : y + side, x : x + side]
    np.maximum(window, library[pick], out=window)
