"""Draws patches of lymphatic invasion: emboli and what is taken for them.

Vessels, glands and the tissue around them are painted on stain densities, whose
pixels are 0.5 um; other lengths are in these pixels, too.
"""

from collections.abc import Callable
from concurrent import futures
import dataclasses

import numpy as np

from data.phantom import nuclei, stain, texture

SIDE = 200  # Of a patch, 100 um.
CLASSES = ('negative', 'positive')
MPP = 2.5  # Micrometres per pixel of a patch.
SIZE = int(SIDE * stain.DRAWN_MPP / MPP)  # 40 pixels.
_LOOK = stain.Appearance(mpp=MPP, blur=0.4)

# What a negative patch shows, and what is mistaken for an embolus.
EASY = ('stroma', 'muscle', 'lymphoid', 'fat', 'gland', 'empty_vessel')
HARD = ('retracted_gland', 'retracted_nest', 'blood_vessel', 'lymph_cells')
POSITIVE = 'embolus'
KINDS = (POSITIVE, *EASY, *HARD)


@dataclasses.dataclass(frozen=True)
class Patches:
  """Patches whose truth is known."""

  image: np.ndarray  # [n, SIZE, SIZE, 3] uint8
  label: np.ndarray  # [n] int32, place in `CLASSES`
  kind: np.ndarray  # [n] str, one of `KINDS`
  patient: np.ndarray  # [n] str
  id: np.ndarray  # [n] str


def make(
  *,
  patients: int,
  patches: int,
  positives: float,
  hard: float,
  seed: int,
  prefix: str,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Patches:
  """Draws the patches of a set of patients, one slide each.

  Kinds are drawn independently: a patch is an embolus with probability
  `positives`; else it is one of `HARD` with probability `hard`, else one
  of `EASY`, each equally often.

  Args:
    patients: number of them; each has a stain of its own.
    patches: of each patient.
    positives: share of patches with an embolus; 0 for the weak pool.
    hard: share of negative patches that are mistaken for emboli.
    seed: another seed is another set.
    prefix: of ids; sets of other prefixes differ, with one seed too.
    progress: called with (patients done, patients in all) after each of them.

  Returns:
    The patches in the order of patients.
  """
  key = [seed, *prefix.encode()]

  def render(patient: int):
    rng = np.random.default_rng([*key, patient])
    chance = [positives]
    for kinds, share in ((EASY, 1 - hard), (HARD, hard)):
      chance += [(1 - positives) * share / len(kinds)] * len(kinds)
    kinds = rng.choice(KINDS, patches, p=chance)
    return _expose(rng, kinds), kinds

  parts = []
  with futures.ThreadPoolExecutor(2) as pool:
    for one in pool.map(render, range(patients)):
      parts.append(one)
      progress(len(parts), patients)
  kind = np.concatenate([kinds for _, kinds in parts])
  names = [f'{prefix}_{i + 1:03d}' for i in range(patients)]
  return Patches(
    image=np.concatenate([image for image, _ in parts]),
    label=(kind == POSITIVE).astype(np.int32),
    kind=kind,
    patient=np.repeat(names, patches),
    id=np.array([f'{name}_{i:03d}' for name in names for i in range(patches)]),
  )


def _expose(rng: np.random.Generator, kinds: np.ndarray) -> np.ndarray:
  """Paints the patches of a slide and scans them side by side."""
  painted = [paint(rng, kind) for kind in kinds]
  # One above the other, each with a margin that hides its neighbours' blur.
  haematoxylin, eosin = (
    np.pad(np.stack(some), ((0, 0), (10, 10), (0, 0)), 'edge').reshape(-1, SIDE)
    for some in zip(*painted, strict=True)
  )
  side = SIZE + 4
  rows = -len(haematoxylin) % 40  # A multiple of 8 pixels.
  haematoxylin, eosin = (
    np.pad(some, ((0, rows), (0, 0))) for some in (haematoxylin, eosin)
  )
  image = stain.expose(
    _LOOK,
    stain.draw(_LOOK, rng, rng),
    rng,
    haematoxylin,
    eosin,
    np.ones((1, 1, 3), np.float32),
  )[: side * len(kinds)]
  return image.reshape(len(kinds), side, SIZE, 3)[:, 2:-2]


class _Patch(nuclei.Canvas):
  """A patch; what it shows lies around a point near its middle."""

  def __init__(self, rng: np.random.Generator):
    super().__init__(rng, (SIDE, SIDE))
    y, x = np.indices(self.shape, np.float32)
    middle = SIDE / 2 + rng.uniform(-22, 22, 2)
    self.y, self.x = y - middle[0], x - middle[1]

  def depth(self, radius: float, rough: float = 0.12) -> np.ndarray:
    """Returns how far pixels lie inside a wobbly ellipse around the middle."""
    turn = self.rng.uniform(0, np.pi)
    flat = self.rng.uniform(0.75, 1)
    along = np.cos(turn) * self.x + np.sin(turn) * self.y
    across = (np.cos(turn) * self.y - np.sin(turn) * self.x) / flat
    return radius * (1 + rough * self.noise(40)) - np.hypot(along, across)

  def clear(self, where: np.ndarray) -> None:
    """Empties a space: nearly glass, with a little protein."""
    edge = np.clip(where / 3 + 0.5, 0, 1)
    self.haematoxylin *= 1 - edge
    self.eosin *= 1 - edge
    self.eosin += 0.04 * edge

  def nuclei(self, kind: str, points: np.ndarray, angles=None) -> None:
    """Paints nuclei, which the border cuts: stamps must not cross a canvas."""
    pad = nuclei.stamps(kind).shape[1]
    whole = self.haematoxylin
    self.haematoxylin = np.pad(whole, pad)
    super().nuclei(kind, points + pad, angles)
    whole[:] = self.haematoxylin[pad:-pad, pad:-pad]
    self.haematoxylin = whole

  def fibres(self) -> np.ndarray:
    """Returns a texture of fibres along one axis or the other."""
    fibres = texture.fibre()
    return self.repeat(fibres.T if self.rng.random() < 0.5 else fibres)

  def rim(
    self, depth: np.ndarray, at: float, pitch: float
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns points where `depth` is `at`, and the rim's direction there."""
    dy, dx = np.gradient(depth)
    line = self.grid(3, 1, np.abs(depth - at) < 2)
    line = line[self.rng.permutation(len(line))]
    kept = []
    for point in line:
      if all(np.hypot(*(point - other)) > pitch for other in kept):
        kept.append(point)
    points = np.array(kept, np.float32).reshape(-1, 2)
    row, column = points.astype(int).clip(0, SIDE - 1).T
    return points, np.arctan2(dx[row, column], -dy[row, column]) % np.pi

  def cells(self, kind: str, where: np.ndarray, pitch: float) -> None:
    """Fills a space with epithelial cells."""
    body = 0.5 + 0.08 * self.repeat(texture.grain())
    edge = np.clip(where / 3 + 0.5, 0, 1)
    self.eosin *= 1 - edge
    self.eosin += edge * body
    self.haematoxylin *= 1 - edge
    self.haematoxylin += 0.16 * edge
    self.nuclei(kind, self.grid(pitch, 0.97, where > 0.15 * pitch))

  def endothelium(self, lumen: np.ndarray) -> None:
    """A thin lining with flat nuclei, which tells vessels from artefacts."""
    self.eosin += 0.75 * np.exp(-((lumen / 3) ** 2))
    points, angles = self.rim(lumen, -1, self.rng.uniform(24, 38))
    self.nuclei('spindle', points, angles)


def _stroma(p: _Patch) -> None:
  p.eosin += 0.62 + 0.16 * p.fibres()
  p.eosin *= 1 + 0.15 * p.noise(60)
  everywhere = np.ones_like(p.eosin, bool)
  points = p.grid(36, 0.6, everywhere)
  angles = p.rng.uniform(0, np.pi) + p.rng.normal(0, 0.4, len(points))
  p.nuclei('spindle', points, angles % np.pi)
  p.nuclei('lymphocyte', p.grid(28, p.rng.uniform(0, 0.3), everywhere))


def _muscle(p: _Patch) -> None:
  p.eosin += 1.0 + 0.1 * p.fibres()
  points = p.grid(27, 0.7, np.ones_like(p.eosin, bool))
  angle = p.rng.uniform(0, np.pi)
  p.nuclei('spindle', points, np.full(len(points), angle))


def _lymphoid(p: _Patch) -> None:
  p.eosin += 0.3
  dense = p.noise(50) > p.rng.uniform(-1.2, 0.2)
  p.nuclei('lymphocyte', p.grid(15, 0.95, dense))
  p.nuclei('plasma', p.grid(24, 0.4, ~dense))


def _fat(p: _Patch) -> None:
  p.eosin += 0.8 * p.repeat(texture.fat())
  p.nuclei('spindle', p.grid(60, 0.5, p.eosin > 0.4))


def _gland(p: _Patch) -> None:
  """A gland in its stroma: cells around a lumen, no space around them."""
  _stroma(p)
  outer = p.depth(p.rng.uniform(48, 75))
  p.cells('centroblast', outer, 19)
  p.clear(outer - p.rng.uniform(26, 34))


def _empty_vessel(p: _Patch) -> None:
  _stroma(p)
  lumen = p.depth(p.rng.uniform(28, 65))
  p.clear(lumen)
  p.endothelium(lumen)


def _embolus(p: _Patch) -> None:
  """Tumour cells in a lymphatic: a clump in a lined space it does not fill."""
  _stroma(p)
  radius = p.rng.uniform(46, 72)
  lumen = p.depth(radius)
  p.clear(lumen)
  p.endothelium(lumen)
  # The clump floats: the space around it is wider on one side.
  away = p.rng.uniform(0, 0.2) * radius
  turn = p.rng.uniform(0, 2 * np.pi)
  p.y, p.x = p.y - away * np.sin(turn), p.x - away * np.cos(turn)
  clump = np.minimum(p.depth(radius * p.rng.uniform(0.5, 0.75), 0.2), lumen - 5)
  p.cells('ductal', clump, 22)


def _retracted_gland(p: _Patch) -> None:
  """A gland that shrank from its stroma: a halo without lining, a lumen."""
  _stroma(p)
  radius = p.rng.uniform(46, 72)
  p.clear(p.depth(radius))
  gland = p.depth(radius * p.rng.uniform(0.62, 0.8), 0.1)
  p.cells('centroblast', gland, 20)
  p.clear(gland - p.rng.uniform(20, 27))


def _retracted_nest(p: _Patch) -> None:
  """Invasive tumour that shrank from its stroma: a halo without lining."""
  _stroma(p)
  halo = p.depth(p.rng.uniform(46, 72), 0.2)
  p.clear(halo)
  # The nest has the outline of its space.
  p.cells('ductal', halo - p.rng.uniform(9, 17), 22)


def _blood_vessel(p: _Patch) -> None:
  """An artery or vein: a wall of muscle, red cells packed in the lumen."""
  _stroma(p)
  radius = p.rng.uniform(42, 64)
  lumen = p.depth(radius)
  wall = (lumen > -p.rng.uniform(10, 20)) & (lumen < 0)
  p.eosin[wall] = 1.05
  p.clear(lumen)
  p.endothelium(lumen)
  clot = np.minimum(p.depth(radius * p.rng.uniform(0.6, 0.85), 0.2), lumen - 4)
  points = p.grid(12, 0.95, clot > 0)
  red = np.zeros((SIDE + 40, SIDE + 40), np.float32)
  bodies = nuclei.bodies(6)
  picks = nuclei.choose(p.rng, bodies, None, len(points))
  nuclei.paste(red, bodies, picks, points + 20)
  p.eosin += 1.15 * red[20:-20, 20:-20]
  p.nuclei('lymphocyte', p.grid(30, 0.3, clot > 0))


def _lymph_cells(p: _Patch) -> None:
  """A lymphatic with lymphocytes: small dark nuclei where tumour would be."""
  _stroma(p)
  radius = p.rng.uniform(40, 68)
  lumen = p.depth(radius)
  p.clear(lumen)
  p.endothelium(lumen)
  clump = np.minimum(p.depth(radius * p.rng.uniform(0.5, 0.75), 0.2), lumen - 5)
  p.eosin += 0.2 * np.clip(clump / 3 + 0.5, 0, 1)
  p.nuclei('lymphocyte', p.grid(17, 0.9, clump > 0))


_SCENES: dict[str, Callable[[_Patch], None]] = {
  'stroma': _stroma,
  'muscle': _muscle,
  'lymphoid': _lymphoid,
  'fat': _fat,
  'gland': _gland,
  'empty_vessel': _empty_vessel,
  'embolus': _embolus,
  'retracted_gland': _retracted_gland,
  'retracted_nest': _retracted_nest,
  'blood_vessel': _blood_vessel,
  'lymph_cells': _lymph_cells,
}


def paint(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
  """Paints one patch.

  Args:
    rng: where the randomness comes from.
    kind: one of `KINDS`.

  Returns:
    Densities of haematoxylin and eosin at 0.5 um per pixel, float32
    [SIDE, SIDE] each.
  """
  patch = _Patch(rng)
  _SCENES[kind](patch)
  return patch.haematoxylin, patch.eosin.clip(0)
