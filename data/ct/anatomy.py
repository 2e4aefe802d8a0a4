"""Paints the abdomen of the CT phantom, lymph nodes left out."""

import dataclasses

import numpy as np
from scipy import ndimage

from data.phantom import texture

# HU at the portal venous phase.
FAT, FLUID, MUSCLE, BONE = -100.0, 12.0, 58.0, 190.0
SIZE = (13, 272, 360)  # Voxels of a volume, before the field of view is cut.


@dataclasses.dataclass
class Abdomen:
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


def blank(spacing: tuple[float, float, float]) -> Abdomen:
  """Returns a volume of air; see `paint`."""
  middle = [
    (np.arange(n) + 0.5) * s for n, s in zip(SIZE, spacing, strict=True)
  ]
  y = middle[1] - SIZE[1] * spacing[1] / 2
  x = middle[2] - SIZE[2] * spacing[2] / 2
  return Abdomen(
    hu=np.full(SIZE, -1000, np.float32),
    taken=np.ones(SIZE, bool),
    nodes=np.zeros(SIZE, np.uint8),
    spacing=spacing,
    y=y[None, :, None].astype(np.float32),
    x=x[None, None, :].astype(np.float32),
    z=middle[0][:, None, None].astype(np.float32),
  )


def crop(a: Abdomen, y: float, x: float, reach: float) -> Abdomen:
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


def depth(
  a: Abdomen, y, x, ry: float, rx: float, power: float = 2.0
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


def lay(a: Abdomen, inside: np.ndarray, hu, edge: float = 0.6) -> None:
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


def blob_noise(rng: np.random.Generator, a: Abdomen, scale: float):
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


def paint(rng: np.random.Generator, a: Abdomen) -> None:
  """Paints body wall, spine, muscles, vessels and solid organs."""
  enhancement = rng.uniform(0.85, 1.15)
  ry, rx = rng.uniform(104, 118), rng.uniform(146, 164)
  fat = rng.uniform(12, 26)
  body = depth(a, 0, 0, ry, rx, 2.4)
  mottle = 8 * blob_noise(rng, a, 9)
  lay(a, body, 20)
  lay(a, body - 2, FAT + mottle)
  wall = depth(a, -2, 0, ry - fat, rx - fat, 2.3)
  lay(a, wall, MUSCLE + 0.5 * mottle)
  cavity = depth(a, -8, 0, ry - fat - 13, rx - fat - 12, 2.2)
  strands = np.abs(blob_noise(rng, a, 7)) < 0.035
  lay(a, cavity, FAT + mottle + 35 * strands)
  a.taken[:] = cavity < 1
  back = ry - fat - 54  # The middle of the vertebra.
  _spine(rng, a, back, mottle)
  for side in (-1, 1):
    lay(a, depth(a, back + 2, 41 * side, 21, 15), MUSCLE + 0.6 * mottle)
  drift = rng.uniform(-0.06, 0.06, 2)
  aorta = rng.uniform(8.5, 11)
  x = 7 + drift[0] * a.z
  y = back - 25 - aorta + 2
  lay(a, depth(a, y, x, aorta, aorta), 165 * enhancement)
  for angle in rng.uniform(0, 2 * np.pi, rng.integers(0, 4)):
    spot = (y + aorta * np.sin(angle), x + aorta * np.cos(angle))
    lay(a, depth(a, *spot, 1.8, 1.8), 520)
  x = -19 + drift[1] * a.z
  lay(a, depth(a, back - 31, x, 8, 11), 135 * enhancement)
  _kidneys(rng, a, back, enhancement)
  reach = rng.uniform(45, 62) + 0.25 * a.z
  organ = np.minimum(
    (1 - np.hypot((a.y + 16) / 60, (a.x + rx - fat - 38) / reach)) * 45,
    cavity - 1,
  )
  lay(a, organ, 108 * enhancement + 0.8 * mottle)
  for _ in range(9):
    y, x = rng.uniform(-55, 20), -(rx - fat - 40) + rng.uniform(-35, 30)
    r = rng.uniform(1.5, 4)
    vessel = depth(a, y + rng.normal(0, 0.5) * a.z, x, r, 1.5 * r)
    lay(a, np.minimum(vessel, organ - 3), 150 * enhancement, 1.2)


def _spine(rng, a: Abdomen, back: float, mottle: np.ndarray) -> None:
  """A vertebra with canal and processes, and the muscles beside them."""
  for side in (-1, 1):
    muscle = depth(a, back + 36, 34 * side, 19, 30, 2.5)
    lay(a, muscle, MUSCLE + 1.4 * mottle)
    lay(a, depth(a, back + 22, 30 * side, 4, 24), 300)
    lay(a, depth(a, back + 24, 14 * side, 9, 5), 380)
  lay(a, depth(a, back + 42, 0, 17, 4), 350)
  body = depth(a, back, 0, 17, 23, 2.3)
  lay(a, body, 480)
  lay(a, body - 2.2, BONE + 2.5 * mottle + rng.uniform(-40, 30), 1.0)
  lay(a, depth(a, back + 24, 0, 9, 11), 32)


def _kidneys(rng, a: Abdomen, back: float, enhancement: float) -> None:
  for side in (-1, 1):
    y = back - 12 + rng.uniform(-4, 4)
    x = (77 + rng.uniform(-3, 5)) * side + rng.uniform(-0.1, 0.1) * a.z
    kidney = depth(a, y, x, rng.uniform(27, 33), rng.uniform(22, 26))
    lay(a, kidney, 185 * enhancement)
    lay(a, kidney - 7, 140 * enhancement, 1.5)
    lay(a, depth(a, y - 3, x - 9 * side, 12, 11), FAT, 1.5)
    lay(a, depth(a, y - 3, x - 14 * side, 3, 9), 150 * enhancement)


def paint_bowel(rng: np.random.Generator, a: Abdomen) -> None:
  """Fills what is left of the cavity with bowel loops and mesenteric vessels.

  They keep 3 mm away from nodes of any slice.
  """
  room = ndimage.distance_transform_edt(~a.nodes.any(0)) * a.spacing[1]
  a.taken |= room < 3
  loops = int(rng.integers(14, 21))
  for _ in range(220):
    at = rng.uniform(-80, 25), rng.uniform(-105, 115)
    if _bowel(rng, crop(a, *at, 32), *at):
      loops -= 1
    if not loops:
      break
  for _ in range(60):
    y, x = rng.uniform(-75, 45), rng.uniform(-95, 95)
    here = crop(a, y, x, 38)
    tilt = rng.normal(0, 0.45, 2)[:, None, None, None] * (a.z - a.z.mean())
    r = rng.uniform(1.3, 3.4)
    vessel = depth(here, y + tilt[0], x + tilt[1], r * rng.uniform(1, 2), r)
    if not (here.taken & (vessel > -0.5)).any():
      lay(here, vessel, rng.uniform(105, 150))


def _bowel(rng: np.random.Generator, a: Abdomen, y: float, x: float) -> bool:
  """Paints a loop about (y, x); False if there is no room for it."""
  tilt = rng.normal(0, 0.12, 2)[:, None, None, None] * (a.z - a.z.mean())
  ry, rx = rng.uniform(7, 16, 2)
  loop = depth(a, y + tilt[0], x + tilt[1], ry, rx, rng.uniform(1.8, 2.6))
  loop += rng.uniform(0.3, 1.2) * blob_noise(rng, a, 8)
  if (a.taken & (loop > -1)).any():
    return False
  lay(a, loop, rng.uniform(75, 105), 0.8)
  lumen = loop - rng.uniform(2, 3.2)
  content = rng.choice(
    ['fluid', 'contrast', 'gas', 'stool'], p=[0.5, 0.2, 0.15, 0.15]
  )
  fill = {'fluid': FLUID, 'contrast': 260.0, 'gas': FLUID, 'stool': 35.0}
  lay(a, lumen, fill[content], 0.8)
  if content == 'gas':  # It rises to the front, above a level.
    lay(a, np.minimum(lumen, y - 2 - a.y), -900, 0.8)
  if content == 'stool':
    holes = blob_noise(rng, a, 3) > 0.9
    lay(a, np.where(holes, lumen, -1), -300, 0.8)
  return True
