"""Renders the CT phantom: abdomens with benign and metastatic lymph nodes.

A metastatic node is rounder, on average larger, often irregular at its border
and dark in its middle, and takes up contrast unevenly; a benign one is oval,
smooth and even, mostly with a hilum of fat. A part of either shows none of this
beyond chance, and sizes overlap: no classifier is right throughout.
"""

from collections.abc import Callable
import csv
import dataclasses
import pathlib

import numpy as np
from scipy import ndimage

from data import atomic
from data.ct import anatomy, table, volumes

CLASSES = ('benign', 'metastatic')
PATIENTS = 64
SEED = 17
_COLUMNS = ('patient_id', 'image_path', 'mask_path', table.VALUE, 'label')
_EQUIVOCAL = 0.15  # Share of nodes without any sign of their class.
_NOISE = (9.0, 15.0)  # HU
_GRID = ((0.9, 0.98), (3.0, 4.0, 5.0))  # mm: range in the slice, steps along z.


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
        with atomic.replacing(path) as part:
          # The name tells the writer the format.
          whole = part.with_name(part.name + '.nii.gz')
          volumes.write(whole, array, volume)
          whole.replace(part)
    rows += [
      (name, f'{name}_image.nii.gz', f'{name}_mask.nii.gz', k, label)
      for k, label in enumerate(labels, 1)
    ]
    progress(i + 1, patients)
  with (
    atomic.replacing(labels_csv) as part,
    part.open('w', newline='', encoding='utf-8') as f,
  ):
    csv.writer(f).writerows([_COLUMNS, *rows])


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
  a = anatomy.blank(spacing)
  anatomy.paint(rng, a)
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
  anatomy.paint_bowel(rng, a)
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
  rng: np.random.Generator, a: anatomy.Abdomen
) -> tuple[float, float, float] | None:
  """Draws a node's centre (z, y, x) in mm in the fat about the spine."""
  room = ndimage.distance_transform_edt(~a.taken.any(0)) * a.spacing[1]
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
  a: anatomy.Abdomen,
  value: int,
  place: tuple[float, float, float],
  look: _Look,
) -> None:
  """Paints node `value` into the volume and its mask, in place."""
  z, y, x = place
  a = anatomy.crop(a, y, x, 24)
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
  grain = anatomy.blob_noise(rng, a, 3.0)
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
  anatomy.lay(a, inside, hu)
  a.nodes[(inside > 0) & (a.nodes == 0)] = value


def _scanned(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
  """Blurs as a soft kernel does and adds correlated noise; whole HU."""
  soft = ndimage.gaussian_filter(hu, (0, 0.55, 0.55))
  noise = rng.standard_normal(hu.shape, np.float32)
  noise = ndimage.gaussian_filter(noise, (0, 0.7, 0.7))
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
