"""Places lesions in a node and paints the tumours' architecture."""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from data.phantom import lymph_node, nuclei, texture

PX = 2.0  # Level-0 pixels per um.
# Radii of lesions and mimics, um, and the share of the node that they take at
# most, about; how many mimics there are, one less at most.
_RADIUS = (75, 130)
_SHARE = 0.25
_MIMICS = (1, 4)
# What a benign mimic has in the place of the tumour's nuclei: reactive blasts
# and epithelium of inclusions, which do not divide.
_BLAND = {
  'blast': 'centroblast',
  'ductal': 'bland',
  'squamous': 'bland',
  'papillary': 'bland',
  'mitosis': '',
}


@dataclasses.dataclass(frozen=True)
class Lesion:
  """What was placed in a node; lengths in level-0 pixels.

  Attributes:
    kind: one of `KINDS`.
    is_benign: a mimic: the kind's architecture, of bland cells.
    y: its middle.
    x: its middle.
    corners: of its outline (x, y), [K, 2], open.
  """

  kind: str
  is_benign: bool
  y: float
  x: float
  corners: np.ndarray

  def inside(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns how many pixels (y, x) lie inside along the radius."""
    dy, dx = y - self.y, x - self.x
    edges = self.corners - [self.x, self.y]
    reach = np.hypot(edges[:, 0], edges[:, 1])
    place = np.arctan2(dy, dx) % (2 * np.pi) * len(reach) / (2 * np.pi)
    edge = np.interp(place, np.arange(len(reach) + 1), np.r_[reach, reach[:1]])
    return (edge - np.hypot(dy, dx)).astype(np.float32)

  def moved(self, y: float, x: float, scale: float = 1.0) -> 'Lesion':
    """Returns it elsewhere, y and x farther, of another size."""
    y, x = self.y + y, self.x + x
    corners = [x, y] + scale * (self.corners - [self.x, self.y])
    return dataclasses.replace(self, y=y, x=x, corners=corners)


def draw(
  rng: np.random.Generator,
  kind: str,
  middle: tuple[float, float],
  size: float,
  ragged: float = 0.19,
  *,
  is_benign: bool = False,
) -> Lesion:
  """Draws an outline of `size` um around a middle (y, x)."""
  angle = np.arange(64) * 2 * np.pi / 64
  reach = size * PX * lymph_node.radius(rng, angle, ragged)
  y, x = middle
  corners = [x + reach * np.cos(angle), y + reach * np.sin(angle)]
  return Lesion(kind, is_benign, y, x, np.stack(corners, 1))


def place(
  rng: np.random.Generator,
  node: lymph_node.Node,
  label: str,
  mimics: tuple[str, ...],
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
        placed.append(draw(rng, kind, (y, x), size, is_benign=is_benign))
        budget -= np.pi * size**2
        break
  return placed


def taken(lesions: Sequence[Lesion], node: lymph_node.Node) -> np.ndarray:
  """Returns where lesions lie on the anatomy's maps, bool [h, w]."""
  shape = node.region.shape
  y, x = (np.indices(shape, np.float32) + 0.5) * lymph_node.SCALE
  result = np.zeros(shape, bool)
  for lesion in lesions:
    result |= lesion.inside(y, x) > 0
  return result


class _Tumour(nuclei.Canvas):
  """The window of a lesion; cells lie within its outline."""

  def __init__(
    self, rng: np.random.Generator, inside: np.ndarray, is_benign: bool
  ):
    super().__init__(rng, inside.shape)
    self.inside, self.is_benign = inside, is_benign

  def keep(self, points: np.ndarray, chance: np.ndarray) -> np.ndarray:
    return super().keep(points, chance * (self.inside > 0))

  def nuclei(self, kind: str, points: np.ndarray, angles=None) -> None:
    """Paints nuclei; of a benign lesion, what stands for the tumour's."""
    if self.is_benign:
      kind = _BLAND.get(kind, kind)
    if kind:
      super().nuclei(kind, points, angles)

  def cells(self, pitch: float, jitter: float, step: int):
    """Returns cells side by side, computed every `step` pixels.

    Returns:
      Their middles (y, x); how far pixels lie inside their cell; which it is,
      on a smaller map.
    """
    points = texture.jittered_grid(self.rng, self.shape, pitch, jitter)
    small = (self.shape[0] // step + 1, self.shape[1] // step + 1)
    inside, index = texture.voronoi(points / step, small)
    return points, texture.enlarge(step * inside, self.shape), index

  def stroma(self, where: np.ndarray) -> None:
    """Collagen with fibroblasts and a few lymphocytes."""
    fibres = 0.68 + 0.17 * self.repeat(texture.fibre())
    self.eosin[where] = fibres[where]
    points = self.grid(34, 0.6 * where)
    self.nuclei('spindle', points, self.rng.normal(0, 0.3, len(points)))
    self.nuclei('lymphocyte', self.grid(24, 0.12 * where))


def _lymphoma(canvas: _Tumour) -> None:
  """Sheets of monotonous large round cells, mitoses, tingible bodies."""
  canvas.eosin += 0.4 * (1 + 0.2 * canvas.repeat(texture.grain()))
  canvas.haematoxylin += 0.12
  everywhere = canvas.inside > 0
  for kind, pitch, share in (
    ('blast', 23.5, 0.97),
    ('mitosis', 95, 0.5),
    ('lymphocyte', 30, 0.08),
  ):
    canvas.nuclei(kind, canvas.grid(pitch, share * everywhere))
  points = canvas.grid(130, 0.4 * everywhere)
  canvas.haematoxylin *= 1 - canvas.bodies(15, points)
  canvas.nuclei('debris', points + canvas.rng.normal(0, 4, points.shape))


def _breast(canvas: _Tumour) -> None:
  """Nests and glands of pleomorphic cells in desmoplastic stroma."""
  field = canvas.noise(95) + canvas.rng.uniform(0.1, 0.7)
  nest = field > 0
  canvas.stroma(~nest)
  points, membrane, _ = canvas.cells(27, 0.33, 2)
  body = 0.5 + 0.09 * canvas.repeat(texture.grain())
  body += 0.16 * np.exp(-((membrane / 1.5) ** 2))
  canvas.eosin[nest] = body[nest]
  canvas.haematoxylin[nest] += 0.18
  canvas.nuclei('ductal', canvas.keep(points, nest))
  canvas.nuclei('mitosis', canvas.grid(120, 0.4 * nest))
  canvas.clear(canvas.bodies(14, canvas.grid(90, 0.5 * (field > 0.45))))
  canvas.eosin *= 1 - 0.8 * np.exp(-(((field + 0.06) / 0.05) ** 2))


def _squamous(canvas: _Tumour) -> None:
  """Keratinising sheets with gaps between the cells, and keratin pearls."""
  field = canvas.noise(140) + canvas.rng.uniform(0.5, 1.1)
  sheet = field > 0
  canvas.stroma(~sheet)
  points, membrane, _ = canvas.cells(33, 0.33, 2)
  body = 1.05 + 0.1 * canvas.repeat(texture.grain()) + 0.12 * canvas.noise(60)
  body *= 1 - 0.72 * np.exp(-((membrane / 1.5) ** 2))
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


def _thyroid(canvas: _Tumour) -> None:
  """Follicles full of colloid, and papillae, with crowded pale nuclei."""
  pitch = canvas.rng.uniform(85, 130)
  points, wall, index = canvas.cells(pitch, 0.36, 4)
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
  row = np.where(
    papillary, (field > 0.05) & (field < 0.6), (wall > 5) & (wall < 17)
  )
  canvas.haematoxylin[row] += 0.06
  canvas.nuclei('papillary', canvas.grid(15.5, 0.95 * row))
  canvas.nuclei('spindle', canvas.grid(40, 0.5 * (papillary & (field > 0.7))))


@dataclasses.dataclass(frozen=True)
class _Space:
  """A gland or a vessel: what lines it and what lies in it; lengths in pixels.

  Attributes:
    is_lined: by endothelium, which tells vessels from artefacts.
    wall: thickness of the muscle around it, least and most.
    cells: in its middle; a key of `_CONTENTS`.
    gap: between its edge and the cells.
    lumen: depth in the cells from which they leave a second space.
  """

  is_lined: bool
  wall: tuple[float, float] = (0, 0)
  cells: str = ''
  gap: tuple[float, float] = (0, 0)
  lumen: tuple[float, float] = (1e3, 1e3)

  def __call__(self, canvas: _Tumour) -> None:
    canvas.eosin += 0.04  # Nearly glass, with a little protein.
    space = canvas.inside - canvas.rng.uniform(*self.wall)
    canvas.eosin[space < 0] = 1.05
    if self.is_lined:
      canvas.eosin += 0.9 * np.exp(-(((space - 4) / 3) ** 2))
      rim = canvas.grid(14, 0.6 * (np.abs(space - 4) < 5))
      away = canvas.at(rim, space) - 4
      dy, dx = (canvas.at(rim, slope) for slope in np.gradient(space))
      rim = rim - away[:, None] * np.stack([dy, dx], 1)
      canvas.nuclei('spindle', rim, np.arctan2(dx, -dy) % np.pi)
    if not self.cells:
      return
    clump = space - canvas.rng.uniform(*self.gap) + 3 * canvas.noise(30)
    pitch, eosin, haematoxylin = _CONTENTS[self.cells]
    cover = np.clip(clump / 3 + 0.5, 0, 1)
    cover *= clump < canvas.rng.uniform(*self.lumen)
    canvas.eosin += eosin * cover
    canvas.haematoxylin += haematoxylin * cover
    points = canvas.grid(pitch, 0.97 * (clump > 3) * cover)
    if self.cells == 'red':
      canvas.eosin += 1.1 * canvas.bodies(6, points)
    else:
      canvas.nuclei(self.cells, points)


# Pitch of the cells, and their eosin and haematoxylin.
_CONTENTS = {
  'bland': (19, 0.5, 0.16),
  'ductal': (22, 0.5, 0.16),
  'lymphocyte': (17, 0.2, 0),
  'red': (12, 0, 0),
}
SPACES = {
  'gland': _Space(False, cells='bland', lumen=(26, 34)),
  'empty_vessel': _Space(True),
  'embolus': _Space(True, cells='ductal', gap=(14, 28)),
  'retracted_gland': _Space(False, cells='bland', gap=(10, 22), lumen=(20, 27)),
  'retracted_nest': _Space(False, cells='ductal', gap=(9, 17)),
  'blood_vessel': _Space(True, (10, 20), 'red', (5, 16)),
  'lymph_cells': _Space(True, cells='lymphocyte', gap=(12, 26)),
}
_TUMOURS = {
  'lymphoma': _lymphoma,
  'breast': _breast,
  'squamous': _squamous,
  'thyroid': _thyroid,
}
_PAINTERS: dict[str, Callable[[_Tumour], None]] = _TUMOURS | SPACES
KINDS = tuple(_TUMOURS)


def paint(
  rng: np.random.Generator, lesion: Lesion, whole: nuclei.Canvas
) -> None:
  """Paints one lesion over a node."""
  low = np.maximum(lesion.corners.min(0).astype(int) - 8, 0)
  high = np.maximum(lesion.corners.max(0).astype(int) + 9, 0)
  window = np.s_[low[1] : high[1], low[0] : high[0]]
  haematoxylin, eosin = whole.haematoxylin[window], whole.eosin[window]
  if not eosin.size:  # Beyond the picture.
    return
  y, x = np.indices(eosin.shape, np.float32)
  inside = lesion.inside(y + low[1], x + low[0])
  ragged = 2 if lesion.kind in SPACES else 7
  inside += ragged * texture.noise(rng, inside.shape, 22)
  canvas = _Tumour(rng, inside, lesion.is_benign)
  _PAINTERS[lesion.kind](canvas)
  cover = np.clip(inside / 8 + 0.5, 0, 1)
  eosin *= 1 - cover
  eosin += cover * canvas.eosin.clip(0)
  haematoxylin *= 1 - cover
  np.maximum(haematoxylin, canvas.haematoxylin * cover, out=haematoxylin)
