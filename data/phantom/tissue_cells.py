"""Fills a node's regions with cells, ground substance and fibres."""

import numpy as np

from data.phantom import anatomy, nuclei, texture
from data.phantom.anatomy import (
  BLOOD,
  CAPSULE,
  CORD,
  CRUSH,
  FAT,
  FIBROSIS,
  GERMINAL,
  MANTLE,
  PARACORTEX,
  REGIONS,
  SINUS,
  TRABECULA,
  VESSEL,
)

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


def _table(values: dict[int, float]) -> np.ndarray:
  """Returns the values as an array over regions; 0 where none is given."""
  table = np.zeros(REGIONS, np.float32)
  table[list(values)] = list(values.values())
  return table


def _matrix(
  rng: np.random.Generator, node: anatomy.Node, shape: tuple[int, int]
) -> np.ndarray:
  """Returns the eosin density of everything between the nuclei, [H, W]."""

  def spread(column):
    table = _table({k: v[column] for k, v in _EOSIN.items()})
    return texture.enlarge(table[node.region], shape)

  def repeat(pattern):
    y, x = rng.integers(0, texture.PERIOD, 2)
    return texture.stretch(pattern, shape, y, x)

  grain = repeat(texture.grain())
  eosin = spread(0) * (1 + 0.2 * grain)
  # Fibres run along the capsule or, deeper, one of two ways.
  layers = texture.enlarge(node.depth / 5.5, shape)
  layers = layers + 0.35 * repeat(texture.grain())
  straight = np.abs(np.cos(node.orientation)) > 0.7
  inner = np.where(
    texture.enlarge(straight.astype(np.float32), shape) > 0.5,
    repeat(texture.fibre()),
    repeat(texture.fibre().T),
  )
  rim = np.isin(node.region, (CAPSULE, SINUS)).astype(np.float32)
  fibres = np.where(
    texture.enlarge(rim, shape) > 0.5, np.sin(2 * np.pi * layers), inner
  )
  eosin += spread(1) * fibres
  # Gaps: slits between cells that let the light through.
  gaps = spread(2) + 0.11 * repeat(texture.grain())
  eosin *= 1 - np.clip((gaps - 0.2) * 6, 0, 0.92)
  fat = texture.enlarge((node.region == FAT).astype(np.float32), shape)
  eosin += 0.75 * fat.clip(0, 1) * repeat(texture.fat())
  return eosin.clip(0, out=eosin)


def fill(
  rng: np.random.Generator,
  node: anatomy.Node,
  shape: tuple[int, int],
  taken: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws a node without its lesions.

  Args:
    rng: where the randomness comes from.
    node: the anatomy.
    shape: size of the result in level-0 pixels.
    taken: where lesions leave no room for other cells, bool [h, w].

  Returns:
    Haematoxylin and eosin densities, float32 [H, W].
  """
  haematoxylin = np.zeros(shape, np.float32)
  eosin = _matrix(rng, node, shape)
  crowding = 1 + 0.22 * texture.noise(rng, node.region.shape, 25)
  region = np.where(taken, anatomy.GLASS, node.region)
  rows, columns = np.nonzero(region)
  if not len(rows):
    return haematoxylin, eosin
  low = np.array([rows.min(), columns.min()]) * SCALE
  high = np.array([rows.max() + 1, columns.max() + 1]) * SCALE
  for kind, (pitch, shares) in _CELLS.items():
    table = _table(shares)
    if kind == 'histiocyte':
      table[SINUS] *= node.histiocytes
    yx = low + texture.jittered_grid(rng, high - low, pitch)
    at = (yx / SCALE).astype(int)
    at = at.clip(0, np.array(region.shape) - 1)
    at = (at[:, 0], at[:, 1])
    keep = rng.random(len(yx)) < table[region[at]] * crowding[at]
    yx, at = yx[keep], (at[0][keep], at[1][keep])
    library = nuclei.stamps(kind)
    angles = None
    if kind == 'spindle':
      angles = node.orientation[at] + rng.normal(0, 0.25, len(yx))
    picks = nuclei.choose(rng, library, angles, len(yx))
    nuclei.paste(haematoxylin, library, picks, yx)
    if kind == 'histiocyte':
      bodies = nuclei.bodies(15)
      picks = nuclei.choose(rng, bodies, None, len(yx))
      nuclei.paste(eosin, 0.42 * bodies, picks, yx + rng.normal(0, 3, yx.shape))
    if kind == 'debris':  # Tingible bodies lie in pale macrophages.
      bodies = nuclei.bodies(13)
      picks = nuclei.choose(rng, bodies, None, len(yx))
      nuclei.thin(haematoxylin, bodies, picks, yx + 9)
      nuclei.paste(haematoxylin, library, picks, yx + 6)
  blood = np.argwhere((region == BLOOD) & (rng.random(region.shape) < 0.55))
  bodies = nuclei.bodies(6)
  picks = nuclei.choose(rng, bodies, None, len(blood))
  yx = blood * SCALE + rng.uniform(0, SCALE, blood.shape)
  nuclei.paste(eosin, 1.25 * bodies, picks, yx)
  return haematoxylin, eosin
