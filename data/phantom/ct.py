"""Renders the CT phantom: abdomens with benign and metastatic lymph nodes.

A metastatic node is rounder, on average larger, often irregular at its border
and dark in its middle, and takes up contrast unevenly; a benign one is oval,
smooth and even, mostly with a hilum of fat. A part of either shows none of this
beyond chance, and sizes overlap: no classifier is right throughout.
"""

import dataclasses
import itertools
import pathlib

import numpy as np
from numpy.random import Generator
import scipy

from data import files
from data.ct import table, volumes
from data.phantom import cohort, texture

CLASSES = ('benign', 'metastatic')
PATIENTS = 64
_SEED = 17
_COLUMNS = ('patient_id', 'image_path', 'mask_path', table.VALUE, 'label')
_EQUIVOCAL = 0.15  # Share of nodes without any sign of their class.
# Of nodes without and with the signs of metastasis: least and most of half the
# short axis in mm; of short by long axis; of the deviation of the radius, as a
# part of it; of HU, and of their deviation within the node; of the radius of a
# fatty hilum or a dark middle, as a part. Then how often there is one.
_SIGNS = (
  ((2.8, 5.6), (0.45, 0.75), (0, 0.03), (75, 110), (1, 4), (0.4, 0.6), 0.75),
  ((3.4, 7), (0.75, 1), (0.04, 0.13), (85, 125), (8, 18), (0.45, 0.7), 0.65),
)
# HU at the portal venous phase.
_FAT, _MUSCLE, _BONE = -100.0, 58.0, 190.0
_SIZE = (13, 272, 360)  # Voxels of a volume, before the field of view is cut.


@dataclasses.dataclass
class _Abdomen:
  """A stack of axial slices, in the making.

  Places are in mm, (0, 0) being the middle of every slice, y running to the
  back and x to the patient's left.
  """

  hu: np.ndarray  # [Z, Y, X] float32
  taken: np.ndarray  # [Z, Y, X] bool, all but abdominal fat
  nodes: np.ndarray  # [Z, Y, X] uint8, 0 or the number of a node
  pixel: float  # mm
  z: np.ndarray  # [Z, 1, 1] mm, from the lower face
  y: np.ndarray  # [1, Y, 1] mm
  x: np.ndarray  # [1, 1, X] mm

  def crop(self, y: float, x: float, reach: float) -> '_Abdomen':
    """Returns a view of the square up to `reach` mm about (y, x)."""
    rows = slice(*np.searchsorted(self.y.ravel(), (y - reach, y + reach)))
    columns = slice(*np.searchsorted(self.x.ravel(), (x - reach, x + reach)))
    maps = (m[:, rows, columns] for m in (self.hu, self.taken, self.nodes))
    places = self.z, self.y[:, rows], self.x[..., columns]
    return _Abdomen(*maps, self.pixel, *places)

  def depth(self, y, x, ry: float, rx: float, power=2.0) -> np.ndarray:
    """Returns roughly how many mm voxels lie inside an ellipse.

    Args:
      y: centre in mm, a number or one for each slice, [Z, 1, 1].
      x: likewise.
      ry: half axis along y.
      rx: half axis along x.
      power: 2 for an ellipse, more for a rounded box.
    """
    dy, dx = np.abs((self.y - y) / ry), np.abs((self.x - x) / rx)
    away = (dy**power + dx**power) ** (1 / power)
    return (1 - away) * min(ry, rx)

  def lay(self, inside: np.ndarray, hu, edge: float = 0.6) -> None:
    """Blends HU into where `inside`, in mm, is positive; soft within `edge`."""
    cover = np.clip(inside / (2 * edge) + 0.5, 0, 1)
    self.hu += cover * (np.asarray(hu) - self.hu)
    self.taken |= cover > 0.3

  def noise(self, rng: Generator, scale: float) -> np.ndarray:
    """Returns smooth noise [Z, Y, X] of unit deviation.

    Args:
      rng: where the randomness comes from.
      scale: mm in the slice; a field drifts into another over the volume.
    """
    shape, pixels = self.hu.shape[1:], scale / self.pixel
    one, other = (texture.noise(rng, shape, pixels) for _ in range(2))
    turn = np.linspace(0, rng.uniform(0.5, 1.5), len(self.hu))[:, None, None]
    return (np.cos(turn) * one + np.sin(turn) * other).astype(np.float32)


def make(
  folder: pathlib.Path,
  *,
  patients: int = PATIENTS,
  progress: cohort.Progress = cohort.no_progress,
) -> None:
  """Writes volumes, masks and, at last, `labels.csv`.

  Five of eight patients have metastases, which four of five of their nodes hold
  then; the others' nodes are benign. A volume's mask numbers its nodes, and
  `labels.csv`, which `table` reads, has a row for each. Volumes are
  a function of the patient's number; in some, nodes lie at the edge of the
  field of view or are cut by the first slice.
  """

  def write(patient: int) -> list[tuple]:
    volume, mask, labels = render(patient)
    name, arrays = f'ct{patient:03}', (volume.hu.astype(np.int16), mask)
    paths = [f'{name}_{kind}.nii.gz' for kind in ('image', 'mask')]
    for path, array in zip(paths, arrays, strict=True):
      with files.replacing(folder / path) as part:
        # The name tells the writer the format.
        whole = part.with_name(part.name + '.nii.gz')
        volumes.write(whole, array, volume)
        whole.replace(part)
    return [(name, *paths, k, label) for k, label in enumerate(labels, 1)]

  rows = cohort.in_threads(write, range(patients), progress)
  files.write_csv(folder / 'labels.csv', [_COLUMNS, *itertools.chain(*rows)])


def render(patient: int) -> tuple[volumes.Volume, np.ndarray, list[str]]:
  """Renders one patient.

  Returns:
    The volume; its mask, uint8 [Z, Y, X], node k having the value k; and the
    nodes' labels, that of node 1 first.
  """
  rng = np.random.default_rng([_SEED, patient])
  pixel, slices = rng.uniform(0.9, 0.98), float(rng.choice((3.0, 4.0, 5.0)))
  z, y, x = (i + 0.5 for i in np.ogrid[tuple(map(slice, _SIZE))])
  y, x = (i * pixel - n * pixel / 2 for i, n in ((y, _SIZE[1]), (x, _SIZE[2])))
  places = (i.astype(np.float32) for i in (z * slices, y, x))
  taken, nodes = np.ones(_SIZE, bool), np.zeros(_SIZE, np.uint8)
  a = _Abdomen(np.full(_SIZE, -1000, np.float32), taken, nodes, pixel, *places)
  _paint_abdomen(rng, a)
  labels: list[str] = []
  for _ in range(int(rng.integers(3, 6))):
    is_metastatic = patient % 8 < 5 and rng.random() < 0.8
    # In the fat about the spine.
    room = scipy.ndimage.distance_transform_edt(~a.taken.any(0)) * pixel
    near = np.hypot((a.y[0] - 5) / 55, a.x[0] / 75) < 1
    places = np.argwhere((room > 9) & (room < 22) & near)
    if not len(places):
      break
    row, column = places[rng.integers(len(places))]
    z = rng.uniform(0.22, 0.78) * (_SIZE[0] * slices)
    if rng.random() < 0.06:
      z = 0.0  # Cut by the first slice.
    labels.append(CLASSES[is_metastatic])
    if rng.random() < _EQUIVOCAL:
      is_metastatic = bool(rng.random() < 0.5)
    y, x = float(a.y[0, row, 0]), float(a.x[0, 0, column])
    here = a.crop(y, x, 24)
    inside = _paint_node(rng, here, (z, y, x), is_metastatic)
    here.nodes[inside & (here.nodes == 0)] = len(labels)
  _paint_bowel(rng, a)
  # In a sixth of patients the field of view ends near the last node.
  width, columns = _SIZE[2], np.flatnonzero(nodes.any((0, 1)))
  if rng.random() <= 1 / 6 and len(columns):
    width = int(columns[-1]) + 1 + int(rng.uniform(3, 12) / pixel)
  # A soft kernel, and correlated noise.
  soft = scipy.ndimage.gaussian_filter(a.hu, (0, 0.55, 0.55))
  noise = rng.standard_normal(_SIZE, np.float32)
  noise = scipy.ndimage.gaussian_filter(noise, (0, 0.7, 0.7))
  noise *= rng.uniform(9, 15) / noise.std()
  hu = np.rint(soft + noise).clip(-1024, 3071).astype(np.float32)
  name, spacing = f'phantom patient {patient}', (slices, pixel, pixel)
  about = pathlib.Path(name), hu[..., :width], spacing, (0.0, 0.0, 0.0)
  return volumes.Volume(*about), nodes[..., :width], labels


def _paint_node(rng: Generator, a: _Abdomen, place, sign: bool) -> np.ndarray:
  """Paints a node at (z, y, x) that looks of a class; True within it."""
  turn, (*ranges, often) = rng.uniform(0, np.pi), _SIGNS[sign]
  short, ratio, rough, hu, uneven, core = (rng.uniform(*r) for r in ranges)
  has_core = rng.random() < often
  dz, dy, dx = a.z - place[0], a.y - place[1], a.x - place[2]
  along = dx * np.cos(turn) + dy * np.sin(turn)
  v = dy * np.cos(turn) - dx * np.sin(turn)
  tall = short * rng.uniform(1.0, 1.4)
  u, w = along * ratio, dz * short / tall
  r = np.sqrt(u**2 + v**2 + w**2)
  angle = np.arctan2(v, u) + 0.06 * dz
  bumps = sum(
    rng.normal() / k**0.75 * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    for k in range(2, 7)
  )
  inside = short * (1 + rough * bumps) - r
  hu = hu + uneven * a.noise(rng, 3.0)
  if has_core:
    if sign:  # Necrosis.
      middle, other = core * short * (1 + 0.2 * bumps) - r, rng.uniform(15, 45)
    else:  # A hilum.
      far = np.sqrt((u * 0.6) ** 2 + (v - 0.55 * short) ** 2 + w**2)
      middle, other = core * short - far, -70
    hu = hu + np.clip(middle / 1.6 + 0.5, 0, 1) * (other - hu)
  a.lay(inside, hu)
  return inside > 0


def _paint_abdomen(rng: Generator, a: _Abdomen) -> None:
  """Paints body wall, spine, muscles, vessels and solid organs."""
  enhancement = rng.uniform(0.85, 1.15)
  ry, rx = rng.uniform(104, 118), rng.uniform(146, 164)
  fat = rng.uniform(12, 26)
  body = a.depth(0, 0, ry, rx, 2.4)
  mottle = 8 * a.noise(rng, 9)
  a.lay(body, 20)
  a.lay(body - 2, _FAT + mottle)
  wall = a.depth(-2, 0, ry - fat, rx - fat, 2.3)
  a.lay(wall, _MUSCLE + 0.5 * mottle)
  cavity = a.depth(-8, 0, ry - fat - 13, rx - fat - 12, 2.2)
  strands = np.abs(a.noise(rng, 7)) < 0.035
  a.lay(cavity, _FAT + mottle + 35 * strands)
  a.taken[:] = cavity < 1
  # A vertebra with canal and processes, and the muscles beside it.
  back = ry - fat - 54  # Its middle.
  for side in (-1, 1):
    muscle = a.depth(back + 36, 34 * side, 19, 30, 2.5)
    a.lay(muscle, _MUSCLE + 1.4 * mottle)
    a.lay(a.depth(back + 22, 30 * side, 4, 24), 300)
    a.lay(a.depth(back + 24, 14 * side, 9, 5), 380)
  a.lay(a.depth(back + 42, 0, 17, 4), 350)
  vertebra = a.depth(back, 0, 17, 23, 2.3)
  a.lay(vertebra, 480)
  a.lay(vertebra - 2.2, _BONE + 2.5 * mottle + rng.uniform(-40, 30), 1.0)
  a.lay(a.depth(back + 24, 0, 9, 11), 32)
  for side in (-1, 1):
    a.lay(a.depth(back + 2, 41 * side, 21, 15), _MUSCLE + 0.6 * mottle)
  # Aorta, in part with calcified spots, and caval vein.
  drift = rng.uniform(-0.06, 0.06, 2)
  aorta = rng.uniform(8.5, 11)
  y, x = back - 25 - aorta + 2, 7 + drift[0] * a.z
  a.lay(a.depth(y, x, aorta, aorta), 165 * enhancement)
  for angle in rng.uniform(0, 2 * np.pi, rng.integers(0, 4)):
    spot = y + aorta * np.sin(angle), x + aorta * np.cos(angle)
    a.lay(a.depth(*spot, 1.8, 1.8), 520)
  a.lay(a.depth(back - 31, drift[1] * a.z - 19, 8, 11), 135 * enhancement)
  for side in (-1, 1):  # Kidneys.
    y = back - 12 + rng.uniform(-4, 4)
    x = (77 + rng.uniform(-3, 5)) * side + rng.uniform(-0.1, 0.1) * a.z
    kidney = a.depth(y, x, rng.uniform(27, 33), rng.uniform(22, 26))
    a.lay(kidney, 185 * enhancement)
    a.lay(kidney - 7, 140 * enhancement, 1.5)
    a.lay(a.depth(y - 3, x - 9 * side, 12, 11), _FAT, 1.5)
    a.lay(a.depth(y - 3, x - 14 * side, 3, 9), 150 * enhancement)
  # Liver.
  reach = rng.uniform(45, 62) + 0.25 * a.z
  liver = np.hypot((a.y + 16) / 60, (a.x + rx - fat - 38) / reach)
  liver = np.minimum((1 - liver) * 45, cavity - 1)
  a.lay(liver, 108 * enhancement + 0.8 * mottle)
  for _ in range(9):
    y, x = rng.uniform(-55, 20), -(rx - fat - 40) + rng.uniform(-35, 30)
    r = rng.uniform(1.5, 4)
    vessel = a.depth(y + rng.normal(0, 0.5) * a.z, x, r, 1.5 * r)
    a.lay(np.minimum(vessel, liver - 3), 150 * enhancement, 1.2)


def _paint_bowel(rng: Generator, a: _Abdomen) -> None:
  """Fills what is left of the cavity with bowel loops and mesenteric vessels.

  They keep 3 mm away from nodes of any slice.
  """
  room = scipy.ndimage.distance_transform_edt(~a.nodes.any(0)) * a.pixel
  a.taken |= room < 3
  height = a.z - a.z.mean()
  loops = int(rng.integers(14, 21))
  contents = {'fluid': 12, 'contrast': 260, 'gas': 12, 'stool': 35}
  for _ in range(220):
    y, x = rng.uniform(-80, 25), rng.uniform(-105, 115)
    here, tilt = a.crop(y, x, 32), rng.normal(0, 0.12, 2)
    ry, rx = rng.uniform(7, 16, 2)
    middle = y + tilt[0] * height, x + tilt[1] * height
    loop = here.depth(*middle, ry, rx, rng.uniform(1.8, 2.6))
    loop += rng.uniform(0.3, 1.2) * here.noise(rng, 8)
    if (here.taken & (loop > -1)).any():
      continue
    here.lay(loop, rng.uniform(75, 105), 0.8)
    lumen = loop - rng.uniform(2, 3.2)
    content = rng.choice(list(contents), p=[0.5, 0.2, 0.15, 0.15])
    here.lay(lumen, contents[content], 0.8)
    if content == 'gas':  # It rises to the front, above a level.
      here.lay(np.minimum(lumen, y - 2 - here.y), -900, 0.8)
    if content == 'stool':
      holes = here.noise(rng, 3) > 0.9
      here.lay(np.where(holes, lumen, -1), -300, 0.8)
    loops -= 1
    if not loops:
      break
  for _ in range(60):
    y, x = rng.uniform(-75, 45), rng.uniform(-95, 95)
    here, tilt = a.crop(y, x, 38), rng.normal(0, 0.45, 2)
    r = rng.uniform(1.3, 3.4)
    middle = y + tilt[0] * height, x + tilt[1] * height
    vessel = here.depth(*middle, r * rng.uniform(1, 2), r)
    if not (here.taken & (vessel > -0.5)).any():
      here.lay(vessel, rng.uniform(105, 150))
