"""Renders the CT phantom: abdomens with benign and metastatic lymph nodes.

A metastatic node is rounder, on average larger, often irregular at its border
and dark in its middle, and takes up contrast unevenly; a benign one is oval,
smooth and even, mostly with a hilum of fat. A part of either shows none of this
beyond chance, and sizes overlap: no classifier is right throughout.
"""

from collections.abc import Callable
import dataclasses
import pathlib

import numpy as np
import scipy

from data import files
from data.ct import table, volumes
from data.phantom import texture

CLASSES = ('benign', 'metastatic')
PATIENTS = 64
SEED = 17
_COLUMNS = ('patient_id', 'image_path', 'mask_path', table.VALUE, 'label')
_EQUIVOCAL = 0.15  # Share of nodes without any sign of their class.
_NOISE = (9.0, 15.0)  # HU
_GRID = ((0.9, 0.98), (3.0, 4.0, 5.0))  # mm: range in the slice, steps along z.

# HU at the portal venous phase.
_FAT, _FLUID, _MUSCLE, _BONE = -100.0, 12.0, 58.0, 190.0
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
  spacing: tuple[float, float, float]  # of z, y, x in mm
  y: np.ndarray  # [1, Y, 1] mm
  x: np.ndarray  # [1, 1, X] mm
  z: np.ndarray  # [Z, 1, 1] mm, from the lower face


@dataclasses.dataclass(frozen=True)
class _Look:
  """How a node looks; lengths in mm."""

  short: float  # half its short axis
  ratio: float  # short by long axis
  turn: float  # of its long axis in the slice, radians
  rough: float  # deviation of its radius, as a part of it
  hu: float
  uneven: float  # deviation of HU within it
  hilum: float  # radius of the fat in it; 0 for none
  necrosis: float  # radius of its dark middle, as a part; 0 for none


def make(
  folder: str | pathlib.Path,
  *,
  patients: int = PATIENTS,
  seed: int = SEED,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
  """Writes volumes, masks and `labels.csv`, unless they are there.

  Five of eight patients have metastases, which four of five of their nodes hold
  then; the others' nodes are benign. A volume's mask numbers its nodes, and
  `labels.csv`, which `table` reads, has a row for each. Volumes are
  a function of (seed, patient); in some, nodes lie at the edge of the field of
  view or are cut by the first slice.
  """
  folder = pathlib.Path(folder)
  labels_csv = folder / 'labels.csv'
  if labels_csv.exists():
    return
  rows = []
  for i in range(patients):
    name = f'ct{i:03}'
    volume, mask, labels = render(i, seed)
    for array, kind in ((volume.hu.astype(np.int16), 'image'), (mask, 'mask')):
      path = folder / f'{name}_{kind}.nii.gz'
      if not path.exists():
        with files.replacing(path) as part:
          # The name tells the writer the format.
          whole = part.with_name(part.name + '.nii.gz')
          volumes.write(whole, array, volume)
          whole.replace(part)
    rows += [
      (name, f'{name}_image.nii.gz', f'{name}_mask.nii.gz', k, label)
      for k, label in enumerate(labels, 1)
    ]
    progress(i + 1, patients)
  files.write_csv(labels_csv, [_COLUMNS, *rows])


def render(
  patient: int, seed: int = SEED
) -> tuple[volumes.Volume, np.ndarray, list[str]]:
  """Renders one patient.

  Returns:
    The volume; its mask, uint8 [Z, Y, X], node k having the value k; and the
    nodes' labels, that of node 1 first.
  """
  rng = np.random.default_rng([seed, patient])
  in_plane = rng.uniform(*_GRID[0])
  spacing = (float(rng.choice(_GRID[1])), float(in_plane), float(in_plane))
  a = _blank(spacing)
  _paint_abdomen(rng, a)
  diseased = patient % 8 < 5
  labels: list[str] = []
  for _ in range(int(rng.integers(3, 6))):
    is_metastatic = diseased and rng.random() < 0.8
    place = _place(rng, a)
    if place is None:
      break
    labels.append(CLASSES[is_metastatic])
    look = _look(rng, is_metastatic)
    _paint_node(rng, a, len(labels), place, look)
  _paint_bowel(rng, a)
  columns = _field_of_view(rng, a.nodes, spacing[2])
  hu = _scanned(rng, a.hu)[:, :, columns]
  volume = volumes.Volume(
    pathlib.Path(f'phantom patient {patient}'), hu, spacing, (0.0, 0.0, 0.0)
  )
  return volume, a.nodes[:, :, columns], labels


def _look(rng: np.random.Generator, is_metastatic: bool) -> _Look:
  """Draws how a node of a class looks, or one that shows none."""
  sign = is_metastatic
  if rng.random() < _EQUIVOCAL:
    sign = bool(rng.random() < 0.5)
  turn = rng.uniform(0, np.pi)
  if sign:
    return _Look(
      short=rng.uniform(3.4, 7.0),
      ratio=rng.uniform(0.75, 1.0),
      turn=turn,
      rough=rng.uniform(0.04, 0.13),
      hu=rng.uniform(85, 125),
      uneven=rng.uniform(8, 18),
      hilum=0.0,
      necrosis=rng.uniform(0.45, 0.7) * (rng.random() < 0.65),
    )
  short = rng.uniform(2.8, 5.6)
  return _Look(
    short=short,
    ratio=rng.uniform(0.45, 0.75),
    turn=turn,
    rough=rng.uniform(0, 0.03),
    hu=rng.uniform(75, 110),
    uneven=rng.uniform(1, 4),
    hilum=rng.uniform(0.4, 0.6) * short * (rng.random() < 0.75),
    necrosis=0.0,
  )


def _place(
  rng: np.random.Generator, a: _Abdomen
) -> tuple[float, float, float] | None:
  """Draws a node's centre (z, y, x) in mm in the fat about the spine."""
  room = scipy.ndimage.distance_transform_edt(~a.taken.any(0)) * a.spacing[1]
  near = np.hypot((a.y[0] - 5) / 55, a.x[0] / 75) < 1
  y, x = np.nonzero((room > 9) & (room < 22) & near)
  if not len(y):
    return None
  i = rng.integers(len(y))
  height = a.hu.shape[0] * a.spacing[0]
  z = rng.uniform(0.22, 0.78) * height
  if rng.random() < 0.06:
    z = 0.0  # Cut by the first slice.
  return z, float(a.y[0, y[i], 0]), float(a.x[0, 0, x[i]])


def _paint_node(
  rng: np.random.Generator,
  a: _Abdomen,
  value: int,
  place: tuple[float, float, float],
  look: _Look,
) -> None:
  """Paints node `value` into the volume and its mask, in place."""
  z, y, x = place
  a = _crop(a, y, x, 24)
  dz, dy, dx = a.z - z, a.y - y, a.x - x
  cos, sin = np.cos(look.turn), np.sin(look.turn)
  along, across = dx * cos + dy * sin, dy * cos - dx * sin
  tall = look.short * rng.uniform(1.0, 1.4)
  u, v, w = along * look.ratio, across, dz * look.short / tall
  r = np.sqrt(u**2 + v**2 + w**2)
  angle = np.arctan2(v, u) + 0.06 * dz
  bumps = sum(
    rng.normal() / k**0.75 * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    for k in range(2, 7)
  )
  inside = look.short * (1 + look.rough * bumps) - r
  grain = _blob_noise(rng, a, 3.0)
  hu = look.hu + look.uneven * grain
  if look.necrosis:
    middle = look.necrosis * look.short * (1 + 0.2 * bumps) - r
    dark = np.clip(middle / 1.6 + 0.5, 0, 1)
    hu = hu + dark * (rng.uniform(15, 45) - hu)
  if look.hilum:
    off = 0.55 * look.short
    far = np.sqrt((u * 0.6) ** 2 + (v - off) ** 2 + w**2)
    fatty = np.clip((look.hilum - far) / 1.6 + 0.5, 0, 1)
    hu = hu + fatty * (-70 - hu)
  _lay(a, inside, hu)
  a.nodes[(inside > 0) & (a.nodes == 0)] = value


def _scanned(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
  """Blurs as a soft kernel does and adds correlated noise; whole HU."""
  soft = scipy.ndimage.gaussian_filter(hu, (0, 0.55, 0.55))
  noise = rng.standard_normal(hu.shape, np.float32)
  noise = scipy.ndimage.gaussian_filter(noise, (0, 0.7, 0.7))
  noise *= rng.uniform(*_NOISE) / noise.std()
  return np.rint(soft + noise).clip(-1024, 3071).astype(np.float32)


def _field_of_view(
  rng: np.random.Generator, mask: np.ndarray, spacing: float
) -> slice:
  """Columns kept: all, or in a sixth of patients up to near the last node."""
  width = mask.shape[2]
  columns = np.flatnonzero(mask.any((0, 1)))
  if rng.random() > 1 / 6 or not len(columns):
    return slice(0, width)
  spare = int(rng.uniform(3, 12) / spacing)
  return slice(0, min(width, int(columns[-1]) + 1 + spare))


def _blank(spacing: tuple[float, float, float]) -> _Abdomen:
  """Returns a volume of air; see `_paint_abdomen`."""
  middle = [
    (np.arange(n) + 0.5) * s for n, s in zip(_SIZE, spacing, strict=True)
  ]
  y = middle[1] - _SIZE[1] * spacing[1] / 2
  x = middle[2] - _SIZE[2] * spacing[2] / 2
  return _Abdomen(
    hu=np.full(_SIZE, -1000, np.float32),
    taken=np.ones(_SIZE, bool),
    nodes=np.zeros(_SIZE, np.uint8),
    spacing=spacing,
    y=y[None, :, None].astype(np.float32),
    x=x[None, None, :].astype(np.float32),
    z=middle[0][:, None, None].astype(np.float32),
  )


def _crop(a: _Abdomen, y: float, x: float, reach: float) -> _Abdomen:
  """Returns a view of the square up to `reach` mm about (y, x), all slices."""
  rows = np.flatnonzero(np.abs(a.y[0, :, 0] - y) <= reach)
  columns = np.flatnonzero(np.abs(a.x[0, 0] - x) <= reach)
  rows = slice(rows[0], rows[-1] + 1)
  columns = slice(columns[0], columns[-1] + 1)
  return dataclasses.replace(
    a,
    hu=a.hu[:, rows, columns],
    taken=a.taken[:, rows, columns],
    nodes=a.nodes[:, rows, columns],
    y=a.y[:, rows],
    x=a.x[:, :, columns],
  )


def _depth(
  a: _Abdomen, y, x, ry: float, rx: float, power: float = 2.0
) -> np.ndarray:
  """Roughly how many mm a voxel lies inside an ellipse; negative outside.

  Args:
    a: the volume.
    y: centre in mm, a number or one for each slice, [Z, 1, 1].
    x: likewise.
    ry: half axis along y.
    rx: half axis along x.
    power: 2 for an ellipse, more for a rounded box.
  """
  ratio = np.abs((a.y - y) / ry) ** power + np.abs((a.x - x) / rx) ** power
  return (1 - ratio ** (1 / power)) * min(ry, rx)


def _lay(a: _Abdomen, inside: np.ndarray, hu, edge: float = 0.6) -> None:
  """Blends HU into where `inside`, in mm, is positive; soft within `edge`."""
  cover = np.clip(inside / (2 * edge) + 0.5, 0, 1)
  cover = np.broadcast_to(cover, a.hu.shape)
  z, y, x = (
    np.flatnonzero(cover.any(axis)) for axis in ((1, 2), (0, 2), (0, 1))
  )
  if not len(z):
    return
  at = tuple(slice(i[0], i[-1] + 1) for i in (z, y, x))
  value = np.broadcast_to(hu, cover.shape)[at]
  a.hu[at] += cover[at] * (value - a.hu[at])
  a.taken[at] |= cover[at] > 0.3


def _blob_noise(rng: np.random.Generator, a: _Abdomen, scale: float):
  """Returns smooth noise [Z, Y, X] of unit deviation that changes along z too.

  Args:
    rng: where the randomness comes from.
    a: the volume.
    scale: mm in the slice; a field drifts into another over the volume.
  """
  pixels = scale / a.spacing[1]
  one, other = (texture.noise(rng, a.hu.shape[1:], pixels) for _ in range(2))
  turn = np.linspace(0, rng.uniform(0.5, 1.5), len(a.hu))[:, None, None]
  return (np.cos(turn) * one + np.sin(turn) * other).astype(np.float32)


def _paint_abdomen(rng: np.random.Generator, a: _Abdomen) -> None:
  """Paints body wall, spine, muscles, vessels and solid organs."""
  enhancement = rng.uniform(0.85, 1.15)
  ry, rx = rng.uniform(104, 118), rng.uniform(146, 164)
  fat = rng.uniform(12, 26)
  body = _depth(a, 0, 0, ry, rx, 2.4)
  mottle = 8 * _blob_noise(rng, a, 9)
  _lay(a, body, 20)
  _lay(a, body - 2, _FAT + mottle)
  wall = _depth(a, -2, 0, ry - fat, rx - fat, 2.3)
  _lay(a, wall, _MUSCLE + 0.5 * mottle)
  cavity = _depth(a, -8, 0, ry - fat - 13, rx - fat - 12, 2.2)
  strands = np.abs(_blob_noise(rng, a, 7)) < 0.035
  _lay(a, cavity, _FAT + mottle + 35 * strands)
  a.taken[:] = cavity < 1
  back = ry - fat - 54  # The middle of the vertebra.
  _spine(rng, a, back, mottle)
  for side in (-1, 1):
    _lay(a, _depth(a, back + 2, 41 * side, 21, 15), _MUSCLE + 0.6 * mottle)
  drift = rng.uniform(-0.06, 0.06, 2)
  aorta = rng.uniform(8.5, 11)
  x = 7 + drift[0] * a.z
  y = back - 25 - aorta + 2
  _lay(a, _depth(a, y, x, aorta, aorta), 165 * enhancement)
  for angle in rng.uniform(0, 2 * np.pi, rng.integers(0, 4)):
    spot = (y + aorta * np.sin(angle), x + aorta * np.cos(angle))
    _lay(a, _depth(a, *spot, 1.8, 1.8), 520)
  x = -19 + drift[1] * a.z
  _lay(a, _depth(a, back - 31, x, 8, 11), 135 * enhancement)
  _kidneys(rng, a, back, enhancement)
  reach = rng.uniform(45, 62) + 0.25 * a.z
  organ = np.minimum(
    (1 - np.hypot((a.y + 16) / 60, (a.x + rx - fat - 38) / reach)) * 45,
    cavity - 1,
  )
  _lay(a, organ, 108 * enhancement + 0.8 * mottle)
  for _ in range(9):
    y, x = rng.uniform(-55, 20), -(rx - fat - 40) + rng.uniform(-35, 30)
    r = rng.uniform(1.5, 4)
    vessel = _depth(a, y + rng.normal(0, 0.5) * a.z, x, r, 1.5 * r)
    _lay(a, np.minimum(vessel, organ - 3), 150 * enhancement, 1.2)


def _spine(rng, a: _Abdomen, back: float, mottle: np.ndarray) -> None:
  """A vertebra with canal and processes, and the muscles beside them."""
  for side in (-1, 1):
    muscle = _depth(a, back + 36, 34 * side, 19, 30, 2.5)
    _lay(a, muscle, _MUSCLE + 1.4 * mottle)
    _lay(a, _depth(a, back + 22, 30 * side, 4, 24), 300)
    _lay(a, _depth(a, back + 24, 14 * side, 9, 5), 380)
  _lay(a, _depth(a, back + 42, 0, 17, 4), 350)
  body = _depth(a, back, 0, 17, 23, 2.3)
  _lay(a, body, 480)
  _lay(a, body - 2.2, _BONE + 2.5 * mottle + rng.uniform(-40, 30), 1.0)
  _lay(a, _depth(a, back + 24, 0, 9, 11), 32)


def _kidneys(rng, a: _Abdomen, back: float, enhancement: float) -> None:
  for side in (-1, 1):
    y = back - 12 + rng.uniform(-4, 4)
    x = (77 + rng.uniform(-3, 5)) * side + rng.uniform(-0.1, 0.1) * a.z
    kidney = _depth(a, y, x, rng.uniform(27, 33), rng.uniform(22, 26))
    _lay(a, kidney, 185 * enhancement)
    _lay(a, kidney - 7, 140 * enhancement, 1.5)
    _lay(a, _depth(a, y - 3, x - 9 * side, 12, 11), _FAT, 1.5)
    _lay(a, _depth(a, y - 3, x - 14 * side, 3, 9), 150 * enhancement)


def _paint_bowel(rng: np.random.Generator, a: _Abdomen) -> None:
  """Fills what is left of the cavity with bowel loops and mesenteric vessels.

  They keep 3 mm away from nodes of any slice.
  """
  room = scipy.ndimage.distance_transform_edt(~a.nodes.any(0)) * a.spacing[1]
  a.taken |= room < 3
  loops = int(rng.integers(14, 21))
  for _ in range(220):
    at = rng.uniform(-80, 25), rng.uniform(-105, 115)
    if _bowel(rng, _crop(a, *at, 32), *at):
      loops -= 1
    if not loops:
      break
  for _ in range(60):
    y, x = rng.uniform(-75, 45), rng.uniform(-95, 95)
    here = _crop(a, y, x, 38)
    tilt = rng.normal(0, 0.45, 2)[:, None, None, None] * (a.z - a.z.mean())
    r = rng.uniform(1.3, 3.4)
    vessel = _depth(here, y + tilt[0], x + tilt[1], r * rng.uniform(1, 2), r)
    if not (here.taken & (vessel > -0.5)).any():
      _lay(here, vessel, rng.uniform(105, 150))


def _bowel(rng: np.random.Generator, a: _Abdomen, y: float, x: float) -> bool:
  """Paints a loop about (y, x); False if there is no room for it."""
  tilt = rng.normal(0, 0.12, 2)[:, None, None, None] * (a.z - a.z.mean())
  ry, rx = rng.uniform(7, 16, 2)
  loop = _depth(a, y + tilt[0], x + tilt[1], ry, rx, rng.uniform(1.8, 2.6))
  loop += rng.uniform(0.3, 1.2) * _blob_noise(rng, a, 8)
  if (a.taken & (loop > -1)).any():
    return False
  _lay(a, loop, rng.uniform(75, 105), 0.8)
  lumen = loop - rng.uniform(2, 3.2)
  content = rng.choice(
    ['fluid', 'contrast', 'gas', 'stool'], p=[0.5, 0.2, 0.15, 0.15]
  )
  fill = {'fluid': _FLUID, 'contrast': 260.0, 'gas': _FLUID, 'stool': 35.0}
  _lay(a, lumen, fill[content], 0.8)
  if content == 'gas':  # It rises to the front, above a level.
    _lay(a, np.minimum(lumen, y - 2 - a.y), -900, 0.8)
  if content == 'stool':
    holes = _blob_noise(rng, a, 3) > 0.9
    _lay(a, np.where(holes, lumen, -1), -300, 0.8)
  return True
