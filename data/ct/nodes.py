"""Finds the nodes of a mask and cuts square slices around them."""

import dataclasses

import numpy as np
import scipy

from data.ct import resample
from data.ct.volumes import Volume

# mm^3, a ball 4 mm wide: what is smaller is a slip of the brush.
_SPECK = 33.5
_TOUCHING = np.ones((3, 3, 3))  # Voxels that share a corner are one node.


@dataclasses.dataclass(frozen=True)
class Node:
  """A connected part of a mask."""

  index: int  # among the parts of the mask, from 1
  box: tuple[slice, slice, slice]  # its bounding box in voxels, z, y, x
  volume: float  # mm^3
  extent: float  # larger side of its bounding box in a slice, mm
  is_cut: bool  # touches the first or the last slice
  corner: tuple[int, int]  # y, x: its middle, a corner of isotropic voxels
  # Largest even side, in isotropic voxels, of a square about `corner` that is
  # inside the slices.
  room: int


@dataclasses.dataclass(frozen=True)
class NodeSlice:
  """An axial slice through a node on the isotropic grid, the node amidst."""

  z: float  # of the slice, from the volume's lower face, mm
  hu: np.ndarray  # [S, S] float32
  inside: np.ndarray  # [S, S] bool, the node


def parts(mask: np.ndarray, value: int | None = None) -> np.ndarray:
  """Numbers the connected parts of a mask from 1.

  Args:
    mask: 0 outside of nodes, [Z, Y, X].
    value: the only one that counts. Otherwise all values but 0 do, and voxels
      of different values are of different parts.

  Returns:
    int32 [Z, Y, X]; voxels that share a face, an edge or a corner are of one
    part.
  """
  numbered = np.zeros(mask.shape, np.int32)
  count = 0
  values = np.unique(mask[mask != 0]) if value is None else [value]
  for each in values:
    here, added = scipy.ndimage.label(mask == each, _TOUCHING)
    numbered[here > 0] = here[here > 0] + count
    count += added
  return numbered


def find(
  numbered: np.ndarray, spacing: tuple[float, float, float]
) -> tuple[list[Node], int]:
  """Measures the parts of a mask.

  Args:
    numbered: of `parts`, [Z, Y, X].
    spacing: of z, y, x in mm.

  Returns:
    The nodes by index, and how many parts were left out as specks: smaller
    than a ball 4 mm wide.
  """
  voxels = np.bincount(numbered.ravel())
  full = np.array(resample.shape(numbered.shape, spacing))
  nodes = []
  for index, box in enumerate(scipy.ndimage.find_objects(numbered), 1):
    volume = float(voxels[index] * np.prod(spacing))
    if volume < _SPECK:
      continue
    low, high = np.array([(side.start, side.stop) for side in box]).T
    middle = (low + high) / 2 * spacing / resample.SPACING
    corner = np.floor(middle + 0.5).astype(int)[1:]
    room = 2 * int(np.minimum(corner, full[1:] - corner).min())
    nodes.append(
      Node(
        index=index,
        box=box,
        volume=volume,
        extent=float(((high - low) * spacing)[1:].max()),
        is_cut=bool(low[0] == 0 or high[0] == len(numbered)),
        corner=tuple(corner.tolist()),
        room=room,
      )
    )
  return nodes, len(voxels) - 1 - len(nodes)


def box_side(mm: float) -> int:
  """The smallest even number of isotropic voxels that is at least `mm` long."""
  return 2 * int(np.ceil(mm / resample.SPACING / 2 - 1e-9))


def choose_box(extent: np.ndarray, room: np.ndarray, largest: int) -> int:
  """Side, in isotropic voxels, of the square that suits the most nodes.

  Ansari's box "encloses the most number of lymph nodes"; nodes whose box would
  cross the border are lost. So it is the side at which the most nodes fit into
  their box and their box into the slice; the smallest on a tie.

  Args:
    extent: of every node, mm, [m]; m is at least 1.
    room: likewise, [m].
    largest: side not to exceed; even.
  """
  needed = np.array([box_side(mm) for mm in extent])
  sides = np.unique(needed.clip(2, largest))
  fits = [((needed <= side) & (side <= room)).sum() for side in sides]
  return int(sides[np.argmax(fits)])


def cut(
  volume: Volume,
  numbered: np.ndarray,
  node: Node,
  side: int,
  *,
  mode: str,
  every: bool,
) -> list[NodeSlice]:
  """Cuts slices of a node on the isotropic grid, HU resampled linearly.

  Args:
    volume: where it lies.
    numbered: of `parts`.
    node: of `find`.
    side: of the slices, in isotropic voxels; even and at most its `room`.
    mode: how the mask is resampled; at 0.5 of a B-spline a voxel is inside.
    every: whether to return all slices that hold the node, or the one in which
      it is largest, the lowest of several.

  Returns:
    The slices from feet to head; none if the node is so thin that no voxel of
    the isotropic grid falls into it.
  """
  size, spacing = volume.hu.shape, volume.spacing
  low = [c - side // 2 for c in node.corner]
  high = [c + side // 2 for c in node.corner]

  def square(read, first: int, last: int, mode: str) -> np.ndarray:
    start, stop = (first, *low), (last, *high)
    return resample.region(read, size, spacing, start, stop, mode)

  step = spacing[0] / resample.SPACING
  first = max(0, int(node.box[0].start * step) - 1)
  last = int(node.box[0].stop * step) + 2
  last = min(resample.shape(size, spacing)[0], last)
  mask = lambda at: (numbered[at] == node.index).astype(np.float32)
  inside = square(mask, first, last, mode) >= 0.5
  area = inside.sum((1, 2))
  rows = np.flatnonzero(area)
  if not every and len(rows):
    rows = [area.argmax()]
  pieces = []
  for z in (first + int(row) for row in rows):
    (hu,) = square(volume.hu.__getitem__, z, z + 1, 'linear')
    z_mm = (z + 0.5) * resample.SPACING
    pieces.append(NodeSlice(z_mm, hu, inside[z - first]))
  return pieces
