"""Lays out a lymph node and fills it with cells, ground substance and fibres.

Maps tell which kind of tissue lies where, four um per pixel; densities of both
stains are drawn from them, half a um per pixel.
"""

import dataclasses

import numpy as np
from numpy.random import Generator

from data.phantom import nuclei, texture

UM = 4.0  # Micrometres per pixel of the maps.
SCALE = 8  # Level-0 pixels per pixel of the maps.
GLASS, FAT, CAPSULE, SINUS, PARACORTEX, MANTLE, GERMINAL, CORD = range(8)
TRABECULA, VESSEL, BLOOD, FIBROSIS, CRUSH = range(8, 13)

# Of every tissue, in that order: eosin of the ground substance, how fibrous it
# is, how torn into gaps; then how much of the places of a grid each kind of
# cell takes, in the order of `_CELLS`.
_TISSUES = np.array(
  [
    (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),  # Glass.
    (0, 0, 0, 0.012, 0, 0, 0, 0, 0.05, 0),  # Fat.
    (0.85, 0.35, 0, 0.03, 0, 0, 0, 0, 0.75, 0),  # Capsule.
    (0.2, 0.03, 0.5, 0.14, 0.05, 0, 0, 1, 0.12, 0),  # Sinus.
    (0.38, 0.03, 0.12, 0.72, 0, 0, 0.05, 0.1, 0.12, 0),  # Paracortex.
    (0.38, 0.02, 0.05, 0.98, 0, 0, 0, 0, 0, 0),  # Mantle.
    (0.44, 0.02, 0.04, 0.1, 0, 0.6, 0.6, 0.12, 0, 0.3),  # Germinal centre.
    (0.42, 0.04, 0.1, 0.55, 0.35, 0, 0, 0, 0.12, 0),  # Cord.
    (0.75, 0.2, 0.03, 0.06, 0, 0, 0, 0, 0.7, 0),  # Trabecula.
    (0.8, 0.25, 0, 0, 0, 0, 0, 0, 1, 0),  # Vessel.
    (0.7, 0, 0.25, 0.03, 0, 0, 0, 0, 0, 0.1),  # Blood.
    (0.8, 0.18, 0.02, 0.07, 0.04, 0, 0, 0, 0.5, 0),  # Fibrosis.
    (0.5, 0.15, 0.1, 0.5, 0, 0, 0, 0, 0.6, 0.2),  # Crush.
  ],
  np.float32,
).T
_CELLS = tuple(nuclei.KINDS)[:7]  # The others are those of lesions.
# Of the grid of each kind of cell, in level-0 pixels.
_PITCH = (14.5, 20.0, 17.0, 21.0, 26.0, 34.0, 40.0)


@dataclasses.dataclass(frozen=True)
class Node:
  """A slide's anatomy on maps of `UM` micrometres per pixel.

  Attributes:
    region: which tissue, uint8 [h, w].
    depth: distance below the nearest outline in um, negative outside.
    orientation: angle of the fibres in radians, float32 [h, w].
    histiocytes: how full of histiocytes the sinuses are, 0 to 1.
  """

  region: np.ndarray
  depth: np.ndarray
  orientation: np.ndarray
  histiocytes: float = 0.0


def radius(rng: Generator, angle: np.ndarray, ragged: float) -> np.ndarray:
  """Returns a closed outline's radius over `angle`, of mean about 1."""
  result = np.ones_like(angle)
  for wave in (2, 3, 4, 6, 9):
    amplitude, phase = rng.normal(0, ragged / wave), rng.uniform(0, 2 * np.pi)
    result += amplitude * np.cos(wave * angle + phase)
  return result


def _outline(rng: Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Returns the depth in um below the outline of one or two pieces."""
  depth = np.full(y.shape, -1e4, np.float32)
  height, width = UM * y.shape[0], UM * y.shape[1]
  pieces = 1 + int(rng.random() < 0.25)
  for piece in range(pieces):
    size = rng.uniform(400, 570) if pieces == 1 else rng.uniform(270, 370)
    dy = y - (height / 2 + rng.uniform(-40, 40))
    dx = x - (width * (piece + 1) / (pieces + 1) + rng.uniform(-40, 40))
    tilt, aspect = rng.uniform(0, np.pi), rng.uniform(0.72, 1.0)
    along = np.cos(tilt) * dx + np.sin(tilt) * dy
    across = (np.cos(tilt) * dy - np.sin(tilt) * dx) / aspect
    edge = size * radius(rng, np.arctan2(across, along), 0.22)
    depth = np.maximum(depth, (edge - np.hypot(along, across)) * aspect)
  margin = np.minimum.reduce([y, x, height - y, width - x])
  return np.minimum(depth, margin - 60)


def draw(rng: Generator, shape: tuple[int, int]) -> Node:
  """Draws a node; how much there is of each tissue varies between slides.

  Args:
    rng: where the randomness comes from.
    shape: size of the maps.

  Returns:
    The node: capsule, subcapsular sinus, cortex with follicles, paracortex,
    medulla with cords and sinuses, trabeculae, vessels, perinodal fat, and
    sometimes haemorrhage, fibrosis or crushed tissue.
  """
  y, x = (np.indices(shape, np.float32) + 0.5) * UM
  depth = _outline(rng, y, x)
  field = lambda scale: texture.noise(rng, shape, scale / UM)
  rough = depth + 5 * field(30)

  def discs(within, count, sizes, at_least, apart, wobble, scale):
    """Yields discs in um: the radius, and the distance from the middle.

    Args:
      within: depths, of which the middles' are more than `at_least` and the
        radius.
      count: how many there are at most.
      sizes: least and largest radius.
      at_least: see `within`.
      apart: the least gap between two.
      wobble: how far from round they are, as a part of the radius.
      scale: of that.
    """
    places, placed = np.argwhere(within > at_least), []
    for i in rng.integers(0, len(places), 6 * count * bool(len(places))):
      (b, a), size = places[i] * UM, rng.uniform(*sizes)
      gaps = [np.hypot(b - d, a - c) - size - r for d, c, r in placed]
      if all(gap > apart for gap in gaps) and within[tuple(places[i])] > size:
        placed.append((b, a, size))
      if len(placed) == count:
        break
    for b, a, size in placed:
      yield size, np.hypot(y - b, x - a) * (1 + wobble * field(scale))

  region = np.full(shape, GLASS, np.uint8)
  fat = rng.uniform(-60, 90)
  region[(rough > -fat - 60 * field(180)) & (rough > -140)] = FAT
  region[rough > 0] = PARACORTEX
  # Medulla: cords between sinuses around the hilum, on one side of the node.
  turn = rng.uniform(0, 2 * np.pi)
  side = np.cos(turn) * (x - x.mean()) + np.sin(turn) * (y - y.mean())
  start = rng.uniform(-250, 420)
  medulla = (side + 60 * field(160) > start) & (rough > 45)
  region[medulla] = CORD
  wide = rng.uniform(0.1, 0.5)
  region[medulla & (np.abs(field(70)) < wide)] = SINUS
  # Follicles of the cortex.
  count = int(rng.integers(0, 9))
  centred = rng.uniform(0.2, 1.0)
  outside = np.where(medulla, 0, depth)
  for size, away in discs(outside, count, (60, 130), 60, 10, 0.07, 60):
    region[(away < size) & (rough > 30)] = MANTLE
    if rng.random() < centred:
      region[away < size * rng.uniform(0.6, 0.82)] = GERMINAL
  # Sinus under the capsule, capsule, trabeculae.
  thick = rng.uniform(10, 32)
  sinus = thick + rng.uniform(6, 34) * (1 + 0.6 * field(140)).clip(0)
  region[(rough > 0) & (rough < sinus)] = SINUS
  region[(rough > 0) & (rough < thick * (1 + 0.3 * field(120)))] = CAPSULE
  band = np.abs(field(260))
  region[(rough > 0) & (band < rng.uniform(0, 0.07))] = TRABECULA
  count = int(rng.integers(1, 7))
  for size, away in discs(depth, count, (10, 22), 35, 20, 0.15, 40):
    region[away < size] = VESSEL
    region[away < size * 0.6] = BLOOD
  # What pathologists stumble over: bleeding, scars, crushed cells.
  for kind, often in ((BLOOD, 0.22), (FIBROSIS, 0.28), (CRUSH, 0.35)):
    if rng.random() < often:
      count = int(rng.integers(1, 3))
      for size, away in discs(depth, count, (35, 90), 40, 30, 0.35, 60):
        region[(away < size) & (rough > 12)] = kind
  dy, dx = np.gradient(depth)
  along = np.arctan2(dx, -dy)  # At right angles to the way down.
  inner = np.isin(region, (TRABECULA, FIBROSIS, CRUSH))
  orientation = np.where(inner, 1.6 * field(220), along)
  return Node(region, depth, orientation, rng.beta(0.8, 1.2))


def _ground(canvas: nuclei.Canvas, node: Node) -> np.ndarray:
  """Returns the eosin of everything between the nuclei."""
  spread = lambda values: texture.enlarge(values, canvas.shape)
  density, fibrous, torn = _TISSUES[:3, node.region]
  eosin = spread(density) * (1 + 0.2 * canvas.repeat(texture.grain()))
  # Fibres run along the capsule or, deeper, one of two ways.
  layers = spread(node.depth / 5.5) + 0.35 * canvas.repeat(texture.grain())
  straight = spread(np.abs(np.cos(node.orientation)) > 0.7) > 0.5
  one, other = (canvas.repeat(f) for f in (texture.fibre(), texture.fibre().T))
  rim = spread(np.isin(node.region, (CAPSULE, SINUS))) > 0.5
  fibres = np.where(straight, one, other)
  fibres = np.where(rim, np.sin(2 * np.pi * layers), fibres)
  eosin += spread(fibrous) * fibres
  # Gaps: slits between cells that let the light through.
  gaps = spread(torn) + 0.11 * canvas.repeat(texture.grain())
  eosin *= 1 - np.clip((gaps - 0.2) * 6, 0, 0.92)
  fat = spread(node.region == FAT).clip(0, 1)
  eosin += 0.75 * fat * canvas.repeat(texture.fat())
  return eosin.clip(0)


def fill(rng: Generator, node: Node, taken: np.ndarray) -> nuclei.Canvas:
  """Paints a node without its lesions.

  Args:
    rng: where the randomness comes from.
    node: its maps.
    taken: where lesions leave no room for other cells, bool [h, w].
  """
  canvas = nuclei.Canvas(rng, tuple(n * SCALE for n in node.region.shape))
  canvas.eosin = _ground(canvas, node)
  crowding = 1 + 0.22 * texture.noise(rng, node.region.shape, 25)
  region = np.where(taken, GLASS, node.region)
  for kind, pitch, shares in zip(_CELLS, _PITCH, _TISSUES[3:], strict=True):
    chance, angles = shares[region], None
    if kind == 'histiocyte':
      chance[region == SINUS] *= node.histiocytes
    points = canvas.grid(pitch, chance * crowding)
    if kind == 'spindle':
      angles = canvas.at(points, node.orientation)
      angles = angles + rng.normal(0, 0.25, len(points))
    if kind == 'histiocyte':
      cover = canvas.bodies(15, points + rng.normal(0, 3, points.shape))
      np.maximum(canvas.eosin, 0.42 * cover, out=canvas.eosin)
    if kind == 'debris':  # Tingible bodies lie in pale macrophages.
      canvas.haematoxylin *= 1 - canvas.bodies(13, points)
    canvas.nuclei(kind, points, angles)
  cover = canvas.bodies(6, canvas.grid(9, 0.7 * (region == BLOOD)))
  np.maximum(canvas.eosin, 1.25 * cover, out=canvas.eosin)
  return canvas
