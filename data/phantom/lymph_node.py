"""Lays out a lymph node and fills it with cells, ground substance and fibres.

Maps tell which kind of tissue lies where, four um per pixel; densities of both
stains are drawn from them, half a um per pixel.
"""

import dataclasses

import numpy as np

from data.phantom import nuclei, texture

UM = 4.0  # Micrometres per pixel of the maps.
(
  GLASS,
  FAT,
  CAPSULE,
  SINUS,
  PARACORTEX,
  MANTLE,
  GERMINAL,
  CORD,
  TRABECULA,
  VESSEL,
  BLOOD,
  FIBROSIS,
  CRUSH,
) = range(13)
REGIONS = 13

SCALE = 8  # Level-0 pixels per pixel of the anatomy's maps.

# Eosin of the ground substance, how fibrous it is, how torn into gaps.
_EOSIN = {
  CAPSULE: (0.85, 0.35, 0.0),
  SINUS: (0.2, 0.03, 0.5),
  PARACORTEX: (0.38, 0.03, 0.12),
  MANTLE: (0.38, 0.02, 0.05),
  GERMINAL: (0.44, 0.02, 0.04),
  CORD: (0.42, 0.04, 0.1),
  TRABECULA: (0.75, 0.2, 0.03),
  VESSEL: (0.8, 0.25, 0.0),
  BLOOD: (0.7, 0.0, 0.25),
  FIBROSIS: (0.8, 0.18, 0.02),
  CRUSH: (0.5, 0.15, 0.1),
}

# Kind of cell: pitch of its grid in level-0 pixels, share of the grid's places
# it takes in each region.
_CELLS = {
  'lymphocyte': (
    14.5,
    {PARACORTEX: 0.72, MANTLE: 0.98, CORD: 0.55, SINUS: 0.14, CRUSH: 0.5}
    | {GERMINAL: 0.1, TRABECULA: 0.06, FIBROSIS: 0.07, CAPSULE: 0.03}
    | {FAT: 0.012, BLOOD: 0.03},
  ),
  'plasma': (20.0, {CORD: 0.35, SINUS: 0.05, FIBROSIS: 0.04}),
  'centrocyte': (17.0, {GERMINAL: 0.6}),
  'centroblast': (21.0, {GERMINAL: 0.6, PARACORTEX: 0.05}),
  'histiocyte': (26.0, {SINUS: 1.0, GERMINAL: 0.12, PARACORTEX: 0.1}),
  'spindle': (
    34.0,
    {CAPSULE: 0.75, TRABECULA: 0.7, VESSEL: 1.0, FIBROSIS: 0.5}
    | {SINUS: 0.12, PARACORTEX: 0.12, CRUSH: 0.6, CORD: 0.12, FAT: 0.05},
  ),
  'debris': (40.0, {GERMINAL: 0.3, BLOOD: 0.1, CRUSH: 0.2}),
}


@dataclasses.dataclass(frozen=True)
class Node:
  """A slide's anatomy on maps of `UM` micrometres per pixel.

  Attributes:
    region: which tissue, uint8 [h, w].
    depth: distance below the nearest outline in um, negative outside.
    orientation: angle of the fibres in radians, float32 [h, w].
    thickness: of the section, 1 where it does not fold, float32 [h, w].
    histiocytes: how full of histiocytes the sinuses are, 0 to 1.
  """

  region: np.ndarray
  depth: np.ndarray
  orientation: np.ndarray
  thickness: np.ndarray
  histiocytes: float

  def cut(self, y: int, x: int, side: int) -> 'Node':
    """Returns a square of it."""
    *maps, histiocytes = dataclasses.astuple(self)
    return Node(*(m[y : y + side, x : x + side] for m in maps), histiocytes)


def radius(
  rng: np.random.Generator, angle: np.ndarray, ragged: float
) -> np.ndarray:
  """Returns a closed outline's radius over `angle`, of mean about 1."""
  result = np.ones_like(angle)
  for wave in (2, 3, 4, 6, 9):
    amplitude, phase = rng.normal(0, ragged / wave), rng.uniform(0, 2 * np.pi)
    result += amplitude * np.cos(wave * angle + phase)
  return result


def _outline(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
  """Returns the depth in um below the outline of one or two pieces."""
  y, x = (np.indices(shape, np.float32) + 0.5) * UM
  depth = np.full(shape, -1e4, np.float32)
  height, width = shape[0] * UM, shape[1] * UM
  pieces = 1 + int(rng.random() < 0.25)
  for piece in range(pieces):
    size = rng.uniform(400, 570) if pieces == 1 else rng.uniform(270, 370)
    centre_y = height / 2 + rng.uniform(-40, 40)
    centre_x = width * (piece + 1) / (pieces + 1) + rng.uniform(-40, 40)
    tilt, aspect = rng.uniform(0, np.pi), rng.uniform(0.72, 1.0)
    dy, dx = y - centre_y, x - centre_x
    along = np.cos(tilt) * dx + np.sin(tilt) * dy
    across = (np.cos(tilt) * dy - np.sin(tilt) * dx) / aspect
    angle = np.arctan2(across, along)
    edge = size * radius(rng, angle, 0.22)
    depth = np.maximum(depth, (edge - np.hypot(along, across)) * aspect)
  margin = np.minimum.reduce([y, x, height - y, width - x])
  return np.minimum(depth, margin - 60)


def _discs(rng, depth, count, sizes, at_least, apart) -> list[tuple]:
  """Places discs (y, x, radius) in um at some depth, not too close together."""
  rows, columns = np.nonzero(depth > at_least)
  placed: list[tuple] = []
  if not len(rows):
    return placed
  for i in rng.integers(0, len(rows), 6 * count):
    y, x, size = rows[i] * UM, columns[i] * UM, rng.uniform(*sizes)
    gaps = [np.hypot(y - b, x - a) - size - r for b, a, r in placed]
    if all(gap > apart for gap in gaps) and depth[rows[i], columns[i]] > size:
      placed.append((y, x, size))
    if len(placed) == count:
      break
  return placed


def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Node:
  """Draws a node; how much there is of each tissue varies between slides.

  Args:
    rng: where the randomness comes from.
    shape: size of the maps.

  Returns:
    The node: capsule, subcapsular sinus, cortex with follicles, paracortex,
    medulla with cords and sinuses, trabeculae, vessels, perinodal fat, and
    sometimes haemorrhage, fibrosis or crushed tissue.
  """
  depth = _outline(rng, shape)
  y, x = (np.indices(shape, np.float32) + 0.5) * UM

  def field(scale):
    return texture.noise(rng, shape, scale / UM)

  rough = depth + 5 * field(30)
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
  for cy, cx, size in _discs(
    rng, np.where(medulla, 0, depth), count, (60, 130), 60, 10
  ):
    away = np.hypot(y - cy, x - cx) * (1 + 0.07 * field(60))
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
  for cy, cx, size in _discs(
    rng, depth, int(rng.integers(1, 7)), (10, 22), 35, 20
  ):
    away = np.hypot(y - cy, x - cx) * (1 + 0.15 * field(40))
    region[away < size] = VESSEL
    region[away < size * 0.6] = BLOOD
  # What pathologists stumble over: bleeding, scars, crushed cells.
  for kind, often in ((BLOOD, 0.22), (FIBROSIS, 0.28), (CRUSH, 0.35)):
    if rng.random() < often:
      for cy, cx, size in _discs(
        rng, depth, int(rng.integers(1, 3)), (35, 90), 40, 30
      ):
        away = np.hypot(y - cy, x - cx) * (1 + 0.35 * field(60))
        region[(away < size) & (rough > 12)] = kind
  dy, dx = np.gradient(depth)
  along = np.arctan2(dx, -dy)  # At right angles to the way down.
  inner = np.isin(region, (TRABECULA, FIBROSIS, CRUSH))
  orientation = np.where(inner, 1.6 * field(220), along)
  even = np.ones(shape, np.float32)
  return Node(region, depth, orientation, even, float(rng.beta(0.8, 1.2)))


def _table(values: dict[int, float]) -> np.ndarray:
  """Returns the values as an array over regions; 0 where none is given."""
  table = np.zeros(REGIONS, np.float32)
  table[list(values)] = list(values.values())
  return table


def _ground(canvas: nuclei.Canvas, node: Node) -> None:
  """Paints the eosin of everything between the nuclei."""

  def spread(values):
    return texture.enlarge(values.astype(np.float32), canvas.shape)

  def column(i):
    return spread(_table({k: v[i] for k, v in _EOSIN.items()})[node.region])

  eosin = column(0) * (1 + 0.2 * canvas.repeat(texture.grain()))
  # Fibres run along the capsule or, deeper, one of two ways.
  layers = spread(node.depth / 5.5) + 0.35 * canvas.repeat(texture.grain())
  straight = np.abs(np.cos(node.orientation)) > 0.7
  inner = np.where(
    spread(straight) > 0.5,
    canvas.repeat(texture.fibre()),
    canvas.repeat(texture.fibre().T),
  )
  rim = spread(np.isin(node.region, (CAPSULE, SINUS))) > 0.5
  eosin += column(1) * np.where(rim, np.sin(2 * np.pi * layers), inner)
  # Gaps: slits between cells that let the light through.
  gaps = column(2) + 0.11 * canvas.repeat(texture.grain())
  eosin *= 1 - np.clip((gaps - 0.2) * 6, 0, 0.92)
  fat = spread(node.region == FAT).clip(0, 1)
  eosin += 0.75 * fat * canvas.repeat(texture.fat())
  canvas.eosin = eosin.clip(0)


def fill(
  rng: np.random.Generator, node: Node, taken: np.ndarray
) -> nuclei.Canvas:
  """Paints a node without its lesions.

  Args:
    rng: where the randomness comes from.
    node: its maps.
    taken: where lesions leave no room for other cells, bool [h, w].
  """
  canvas = nuclei.Canvas(rng, tuple(n * SCALE for n in node.region.shape))
  _ground(canvas, node)
  crowding = 1 + 0.22 * texture.noise(rng, node.region.shape, 25)
  region = np.where(taken, GLASS, node.region)
  for kind, (pitch, shares) in _CELLS.items():
    table = _table(shares)
    if kind == 'histiocyte':
      table[SINUS] *= node.histiocytes
    points = canvas.grid(pitch, table[region] * crowding)
    angles = None
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
