"""Places lesions in a node and paints the tumours' architecture."""

from collections.abc import Sequence
import dataclasses

import numpy as np
from numpy.random import Generator

from data.phantom import lymph_node, texture
from data.phantom.nuclei import Canvas

PX = 2.0  # Level-0 pixels per um.
_ANGLES = np.arange(64) * 2 * np.pi / 64
_WAYS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)
# Along the axes a pixel of a mask hangs on the last digit.
_WAYS[np.abs(_WAYS) < 1e-9] = 0
# Radii of lesions and mimics, um, and the share of the node that they take at
# most, about; how many mimics there are, one less at most.
_RADIUS = (75, 130)
_SHARE = 0.25
_MIMICS = (1, 4)
# What a benign mimic has in the place of the tumour's nuclei: reactive blasts
# and epithelium of inclusions, which do not divide.
_BLAND = dict.fromkeys(('ductal', 'squamous', 'papillary'), 'bland')
_BLAND |= {'blast': 'centroblast', 'mitosis': ''}


@dataclasses.dataclass(frozen=True)
class Lesion:
  """What was placed in a node; lengths in level-0 pixels.

  Attributes:
    kind: one of `KINDS` or `SPACES`.
    y: its middle.
    x: its middle.
    reach: of its outline from there, at angles all around.
    is_benign: a mimic: the kind's architecture, of bland cells.
  """

  kind: str
  y: float
  x: float
  reach: np.ndarray
  is_benign: bool = False

  @property
  def corners(self) -> np.ndarray:
    """Of its outline (x, y), [K, 2], open."""
    return [self.x, self.y] + self.reach[:, None] * _WAYS

  def inside(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns how many pixels (y, x) lie inside along the radius."""
    dy, dx = y - self.y, x - self.x
    theta = np.arctan2(dy, dx)
    edge = np.interp(theta, _ANGLES, self.reach, period=2 * np.pi)
    return (edge - np.hypot(dy, dx)).astype(np.float32)

  def moved(self, y: float, x: float, scale: float = 1.0) -> 'Lesion':
    """Returns it elsewhere, y and x farther, of another size."""
    place = {'y': self.y + y, 'x': self.x + x}
    return dataclasses.replace(self, **place, reach=scale * self.reach)


def draw(rng: Generator, kind: str, middle, size: float, ragged=0.19) -> Lesion:
  """Draws an outline of `size` um around a middle (y, x)."""
  reach = size * PX * lymph_node.radius(rng, _ANGLES, ragged)
  return Lesion(kind, *middle, reach)


def place(
  rng: Generator, node: lymph_node.Node, label: str, mimics: Sequence[str]
) -> list[Lesion]:
  """Places lesions, and what is mistaken for them, where the node holds them.

  Up to three are of the label, unless it is none of `KINDS`; then come some of
  the mimics. None lie too close together. All but lymphoma stay near the
  capsule, where metastases arrive.
  """
  count = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15])) * (label in KINDS)
  wanted = [(label, False)] * count
  benign = rng.choice(mimics, rng.integers(*_MIMICS))
  wanted += [(kind, True) for kind in benign.tolist()]
  budget = _SHARE * (node.depth > 0).sum() * lymph_node.UM**2
  placed: list[Lesion] = []
  for kind, is_benign in wanted:
    deepest = np.inf if kind == 'lymphoma' else 260
    reachable = (node.depth > 0.75 * _RADIUS[0]) & (node.depth < deepest)
    places = np.argwhere(reachable)
    for i in rng.integers(0, len(places), 15 * bool(len(places))):
      depth = node.depth[tuple(places[i])]
      size = min(rng.uniform(*_RADIUS), 1.25 * depth)
      y, x = (places[i] + 0.5) * lymph_node.SCALE
      gap = min((np.hypot(a.y - y, a.x - x) for a in placed), default=1e4)
      if np.pi * size**2 < budget and gap > 2.6 * size * PX:
        drawn = draw(rng, kind, (y, x), size)
        placed.append(dataclasses.replace(drawn, is_benign=is_benign))
        budget -= np.pi * size**2
        break
  return placed


def densities(
  cells: Generator, brush: Generator, node: lymph_node.Node, placed: list
) -> Canvas:
  """Paints tissue: a node and what lies in it.

  Args:
    cells: where the randomness of the node comes from.
    brush: the same of what lies in it.
    node: its maps.
    placed: what lies in it, painted in turn.
  """
  y, x = (np.indices(node.region.shape, np.float32) + 0.5) * lymph_node.SCALE
  taken = np.any([lesion.inside(y, x) > 0 for lesion in placed], 0)
  canvas = lymph_node.fill(cells, node, taken)
  for lesion in placed:
    paint(brush, lesion, canvas)
  return canvas


def paint(rng: Generator, lesion: Lesion, whole: Canvas) -> None:
  """Paints one lesion over a node."""
  low = np.maximum(lesion.corners.min(0).astype(int) - 8, 0)
  high = np.maximum(lesion.corners.max(0).astype(int) + 9, 0)
  window = np.s_[low[1] : high[1], low[0] : high[0]]
  haematoxylin, eosin = whole.haematoxylin[window], whole.eosin[window]
  if not eosin.size:  # Beyond the picture.
    return
  y, x = np.indices(eosin.shape, np.float32)
  inside = lesion.inside(y + low[1], x + low[0])
  is_space = lesion.kind in SPACES
  inside += (2 if is_space else 7) * texture.noise(rng, inside.shape, 22)
  bland = _BLAND if lesion.is_benign else {}
  canvas = Canvas(rng, inside.shape, inside, bland)
  if is_space:
    _space(canvas, *SPACES[lesion.kind])
  else:
    _PAINTERS[KINDS.index(lesion.kind)](canvas)
  cover = np.clip(inside / 8 + 0.5, 0, 1)
  eosin *= 1 - cover
  eosin += cover * canvas.eosin.clip(0)
  haematoxylin *= 1 - cover
  np.maximum(haematoxylin, canvas.haematoxylin * cover, out=haematoxylin)


def _cells(canvas: Canvas, pitch: float, jitter: float, step: int):
  """Returns cells side by side, computed every `step` pixels.

  Returns:
    Their middles (y, x); how far pixels lie inside their cell; which it is, on
    a smaller map.
  """
  points = texture.jittered_grid(canvas.rng, canvas.shape, pitch, jitter)
  small = tuple(n // step + 1 for n in canvas.shape)
  inside, index = texture.voronoi(points / step, small)
  return points, texture.enlarge(step * inside, canvas.shape), index


def _nests(canvas: Canvas, scale: float, sizes: tuple, pitch: float):
  """Nests of cells in collagen with fibroblasts and a few lymphocytes.

  Returns:
    A field above 0 in the nests; the cells' middles; how near their borders
    are, 1 on them.
  """
  field = canvas.noise(scale) + canvas.rng.uniform(*sizes)
  stroma = field <= 0
  fibres = 0.68 + 0.17 * canvas.repeat(texture.fibre())
  canvas.eosin[stroma] = fibres[stroma]
  points = canvas.grid(34, 0.6 * stroma)
  canvas.nuclei('spindle', points, canvas.rng.normal(0, 0.3, len(points)))
  canvas.nuclei('lymphocyte', canvas.grid(24, 0.12 * stroma))
  points, membrane, _ = _cells(canvas, pitch, 0.33, 2)
  return field, points, np.exp(-((membrane / 1.5) ** 2))


def _lymphoma(canvas: Canvas) -> None:
  """Sheets of monotonous large round cells, mitoses, tingible bodies."""
  canvas.eosin += 0.4 * (1 + 0.2 * canvas.repeat(texture.grain()))
  canvas.haematoxylin += 0.12
  everywhere = canvas.inside > 0
  canvas.nuclei('blast', canvas.grid(23.5, 0.97 * everywhere))
  canvas.nuclei('mitosis', canvas.grid(95, 0.5 * everywhere))
  canvas.nuclei('lymphocyte', canvas.grid(30, 0.08 * everywhere))
  points = canvas.grid(130, 0.4 * everywhere)
  canvas.haematoxylin *= 1 - canvas.bodies(15, points)
  canvas.nuclei('debris', points + canvas.rng.normal(0, 4, points.shape))


def _breast(canvas: Canvas) -> None:
  """Nests and glands of pleomorphic cells in desmoplastic stroma."""
  field, points, border = _nests(canvas, 95, (0.1, 0.7), 27)
  nest = field > 0
  body = 0.5 + 0.09 * canvas.repeat(texture.grain()) + 0.16 * border
  canvas.eosin[nest] = body[nest]
  canvas.haematoxylin[nest] += 0.18
  canvas.nuclei('ductal', canvas.keep(points, nest))
  canvas.nuclei('mitosis', canvas.grid(120, 0.4 * nest))
  canvas.clear(canvas.bodies(14, canvas.grid(90, 0.5 * (field > 0.45))))
  canvas.eosin *= 1 - 0.8 * np.exp(-(((field + 0.06) / 0.05) ** 2))


def _squamous(canvas: Canvas) -> None:
  """Keratinising sheets with gaps between the cells, and keratin pearls."""
  field, points, border = _nests(canvas, 140, (0.5, 1.1), 33)
  sheet = field > 0
  body = 1.05 + 0.1 * canvas.repeat(texture.grain()) + 0.12 * canvas.noise(60)
  body *= 1 - 0.72 * border
  canvas.eosin[sheet] = body[sheet]
  canvas.nuclei('squamous', canvas.keep(points, sheet))
  y, x = np.indices(canvas.shape, np.float32)
  wobble = canvas.noise(40)
  for cy, cx in canvas.grid(190, (canvas.inside > 40) & (field > 0.2)):
    size = canvas.rng.uniform(32, 70)
    away = np.hypot(y - cy, (x - cx) * canvas.rng.uniform(0.7, 1.3))
    away += 4 * wobble
    pearl = away < size
    rings = 1.55 + 0.4 * np.sin(away * (2 * np.pi / 9))
    rings *= 1 - 0.7 * np.exp(-((np.sin(away * (np.pi / 22)) / 0.12) ** 2))
    canvas.eosin[pearl] = rings[pearl]
    canvas.haematoxylin[pearl] *= 0.06
    turn = np.arange(0, 2 * np.pi, 26 / size)
    ring = np.stack([cy + size * np.sin(turn), cx + size * np.cos(turn)], 1)
    canvas.nuclei('spindle', ring, turn + np.pi / 2)


def _thyroid(canvas: Canvas) -> None:
  """Follicles full of colloid, and papillae, with crowded pale nuclei."""
  pitch = canvas.rng.uniform(85, 130)
  points, wall, index = _cells(canvas, pitch, 0.36, 4)
  field = canvas.noise(75) + canvas.rng.uniform(0.2, 0.6)
  papillary = canvas.noise(260) > canvas.rng.uniform(-0.6, 0.8)
  # Follicles: stroma, a row of cells, then colloid with a scalloped edge.
  grain = canvas.repeat(texture.grain())
  shade = canvas.rng.uniform(0.75, 1.35, len(points)).astype(np.float32)
  colloid = texture.enlarge(shade[index], canvas.shape)
  scallop = np.exp(-(((wall - 21 - 2.5 * canvas.noise(14)) / 2) ** 2))
  follicle = np.where(wall < 19, 0.4 + 0.06 * grain, colloid)
  follicle = np.where(wall < 3, 0.65, follicle) * (1 - 0.85 * scallop)
  # Papillae: clear space, a crowded row of cells, a core of stroma.
  papilla = np.where(field > 0, 0.4 + 0.06 * grain, 0.05)
  papilla = np.where(field > 0.6, 0.5 + 0.12 * grain, papilla)
  canvas.eosin += np.where(papillary, papilla, follicle)
  rows = (field > 0.05) & (field < 0.6), (wall > 5) & (wall < 17)
  row = np.where(papillary, *rows)
  canvas.haematoxylin[row] += 0.06
  canvas.nuclei('papillary', canvas.grid(15.5, 0.95 * row))
  canvas.nuclei('spindle', canvas.grid(40, 0.5 * (papillary & (field > 0.7))))


def _space(
  canvas: Canvas, cells, rim, gap=(0, 0), lumen=(1e3, 1e3), wall=(0, 0)
) -> None:
  """A gland or a vessel; lengths in pixels.

  Args:
    canvas: on which.
    cells: in its middle; a key of `_CONTENTS`, or ''.
    rim: eosin of the endothelium, which tells vessels from artefacts; or 0.
    gap: between its edge and the cells, least and most.
    lumen: depth in the cells from which they leave a second space.
    wall: thickness of the muscle around it.
  """
  canvas.eosin += 0.04  # Nearly glass, with a little protein.
  space = canvas.inside - canvas.rng.uniform(*wall)
  canvas.eosin[space < 0] = 1.05
  if rim:
    canvas.eosin += rim * np.exp(-(((space - 4) / 3) ** 2))
    points = canvas.grid(14, 0.6 * (np.abs(space - 4) < 5))
    away = canvas.at(points, space) - 4
    dy, dx = (canvas.at(points, slope) for slope in np.gradient(space))
    points = points - away[:, None] * np.stack([dy, dx], 1)
    canvas.nuclei('spindle', points, np.arctan2(dx, -dy) % np.pi)
  if not cells:
    return
  clump = space - canvas.rng.uniform(*gap) + 3 * canvas.noise(30)
  pitch, eosin, haematoxylin = _CONTENTS[cells]
  cover = np.clip(clump / 3 + 0.5, 0, 1)
  cover *= clump < canvas.rng.uniform(*lumen)
  canvas.eosin += eosin * cover
  canvas.haematoxylin += haematoxylin * cover
  points = canvas.grid(pitch, 0.97 * (clump > 3) * cover)
  if cells == 'red':
    canvas.eosin += 1.1 * canvas.bodies(6, points)
  else:
    canvas.nuclei(cells, points)


# Pitch of the cells, and their eosin and haematoxylin.
_CONTENTS = {
  'bland': (19, 0.5, 0.16),
  'ductal': (22, 0.5, 0.16),
  'lymphocyte': (17, 0.2, 0),
  'red': (12, 0, 0),
}
# What they hold; see `_space`.
SPACES = {
  'gland': ('bland', 0, (0, 0), (26, 34)),
  'empty_vessel': ('', 0.9),
  'embolus': ('ductal', 0.9, (14, 28)),
  'retracted_gland': ('bland', 0, (10, 22), (20, 27)),
  'retracted_nest': ('ductal', 0, (9, 17)),
  'blood_vessel': ('red', 0.9, (5, 16), (1e3, 1e3), (10, 20)),
  'lymph_cells': ('lymphocyte', 0.9, (12, 26)),
}
KINDS = ('lymphoma', 'breast', 'squamous', 'thyroid')
_PAINTERS = (_lymphoma, _breast, _squamous, _thyroid)
