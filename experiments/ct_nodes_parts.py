"""Splits the slices of nodes and places the box, by what is not tested."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from data import labelled_tiles
from data.ct import nodes, resample
from data.labelled_tiles import LabelledTiles
from data.splits import PARTS
from experiments.ct_nodes_slices import LARGEST, Slices
from experiments.patches import tiles as patch_tiles

FRACTIONS = (0.8, 0.1, 0.1)  # Ansari's.
FATES = ('nodes', 'cut by an end', 'at the border', 'kept', 'slices')
LARGER = 'larger than the box'


@dataclasses.dataclass(frozen=True)
class Parts:
  """The slices that the networks see, in a box of one size."""

  tiles: LabelledTiles  # [n, S, S, 1] float32 in [0, 1]
  inside: np.ndarray  # [n, S, S] bool, the node
  slices: Slices  # that they were taken from
  source: np.ndarray  # [n] int, place in `slices`
  rows: dict[str, np.ndarray]  # places in `tiles`, by `splits.PARTS`
  side: int  # S, in isotropic voxels
  # {class: {one of FATES or LARGER: number}}
  fates: dict[str, dict[str, int]]

  def every(self, channels: int) -> LabelledTiles:
    """All tiles, the grey value in each of `channels`."""
    if channels == 1:
      return self.tiles
    return dataclasses.replace(
      self.tiles,
      read=lambda i: np.repeat(self.tiles.read(i), channels, -1),
      channels=channels,
    )

  def of(self, part: str, channels: int) -> LabelledTiles:
    """Tiles of a part; `channels` as `every`."""
    return self.every(channels).take(self.rows[part])


def make(
  slices: Slices,
  classes: Sequence[str],
  *,
  seed: int,
  by: str,
  box_mm: float | None,
) -> Parts:
  """Splits, then places the box, then drops what lies at the border.

  The side of the box is chosen on training and validation slices. A node's
  slices that the box does not fit into are dropped; a node that reaches beyond
  its box stays, and is cut.

  Args:
    slices: of all nodes.
    classes: their labels.
    seed: of the split.
    by: 'patient', or 'slice' as in the paper, where slices of a patient (and,
      with all slices of a node, of one node) are trained and tested on.
    box_mm: side of the box; chosen by `nodes.choose_box` if None.

  Raises:
    TileError: if a class cannot be in every part.
  """
  label = slices.label[slices.node].astype(np.int32)
  patient = slices.patient[slices.node]
  whole = LabelledTiles(
    id=slices.id,
    label=label,
    group=patient,
    classes=tuple(classes),
    read=lambda i: slices.middle(i, int(slices.side[i]))[0],
    size=0,  # Of many sizes yet.
  )
  split = patch_tiles.split(
    whole, FRACTIONS, seed=seed, by={'patient': 'group', 'slice': 'tile'}[by]
  )
  if box_mm is None:
    known = np.unique(slices.node[np.concatenate(split[:2])])
    side = nodes.choose_box(slices.extent[known], slices.room[known], LARGEST)
  else:
    side = nodes.box_side(box_mm)
  kept = np.flatnonzero(slices.side >= side)
  place = np.full(len(label), -1)
  place[kept] = np.arange(len(kept))
  pieces = [slices.middle(i, side) for i in kept]
  if not pieces:
    raise labelled_tiles.TileError(
      f'a box of {side * resample.SPACING:.1f} mm fits around no node: give a'
      ' smaller --box_mm'
    )
  hu, inside = (np.stack(arrays) for arrays in zip(*pieces, strict=True))
  tiles = labelled_tiles.from_arrays(
    resample.window(hu)[..., None],
    label[kept],
    patient[kept].tolist(),
    classes,
    ids=slices.id[kept].tolist(),
  )
  rows = {
    part: place[found][place[found] >= 0]
    for part, found in zip(PARTS, split, strict=True)
  }
  for part, found in rows.items():
    for c in set(range(len(classes))) - set(tiles.label[found].tolist()):
      raise labelled_tiles.TileError(
        f'the {part} part has no {classes[c]} node whose box of'
        f' {side * resample.SPACING:.1f} mm is inside its slice: give a smaller'
        ' --box_mm, another --seed, or more data'
      )
  fates = {
    name: _fates(slices, c, kept, side) for c, name in enumerate(classes)
  }
  return Parts(tiles, inside, slices, kept, rows, side, fates)


def _fates(
  slices: Slices, c: int, kept: np.ndarray, side: int
) -> dict[str, int]:
  """What became of the nodes of a class."""
  mine = slices.label == c
  stays = np.zeros(len(mine), bool)
  stays[slices.node[kept]] = True
  counts = (
    mine.sum(),
    (mine & slices.is_cut).sum(),
    (mine & ~slices.is_cut & ~stays).sum(),
    (mine & stays).sum(),
    mine[slices.node[kept]].sum(),
  )
  large = slices.extent > side * resample.SPACING
  return {
    **{name: int(n) for name, n in zip(FATES, counts, strict=True)},
    LARGER: int((mine & stays & large).sum()),
  }
