"""Puts volumes on an isotropic grid and HU into a grey window."""

from collections.abc import Callable

import numpy as np
import scipy

SPACING = 0.79  # mm; Ansari's.
WINDOW = (-135.0, 215.0)  # HU; Ansari's, for the abdomen.
# Order of the spline, what lies beyond the border, and how many voxels beyond
# the region a value depends on; a cubic B-spline's coefficients depend on all,
# by less than 1e-6 beyond 12.
_MODES = {
  'linear': (1, 'nearest', 1),
  'nearest': (0, 'nearest', 1),
  'bspline': (3, 'mirror', 12),
}


def window(hu: np.ndarray) -> np.ndarray:
  """Maps HU in `WINDOW` to [0, 1], clipped; float32."""
  low, high = WINDOW
  return np.clip((hu - low) / (high - low), 0, 1).astype(np.float32)


def shape(size: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, ...]:
  """Size of the isotropic grid that covers as much as `size` voxels do."""
  return tuple(
    max(1, round(n * s / SPACING)) for n, s in zip(size, spacing, strict=True)
  )


def region(
  read: Callable[[tuple[slice, ...]], np.ndarray],
  size: tuple[int, ...],
  spacing: tuple[float, ...],
  start: tuple[int, ...],
  stop: tuple[int, ...],
  mode: str,
) -> np.ndarray:
  """Returns a part of a resampled volume, of which only that is computed.

  The outer faces of the first voxels of both grids coincide, so that voxel i of
  the isotropic grid has its centre at (i + 1/2) SPACING / spacing - 1/2
  voxels.
  Beyond the centres of the outermost voxels, 'linear' and 'nearest' repeat them
  and 'bspline' (cubic; Unser, IEEE Signal Processing Magazine 1999) mirrors the
  volume at them, as ITK does. A half rounds up. Nothing is smoothed before:
  where the grid is coarser than `spacing`, fine detail is sampled as it is.

  Args:
    read: returns the voxels of native slices, as an array's `__getitem__`.
    size: of the native volume, in voxels.
    spacing: of its axes, in mm.
    start: first voxel of the part on the isotropic grid.
    stop: the voxel after its last.
    mode: 'linear', 'nearest' or 'bspline'.

  Returns:
    float32 array of shape `stop - start`; of 'nearest', of the native type.
  """
  order, border, margin = _MODES[mode]
  step = SPACING / np.array(spacing)
  first = (np.array(start) + 0.5) * step - 0.5
  last = (np.array(stop) - 0.5) * step - 0.5
  edge = np.array(size) - 1
  low = np.clip(np.floor(first) - margin, 0, edge).astype(int)
  high = np.clip(np.ceil(last) + margin, 0, edge).astype(int)
  native = read(tuple(map(slice, low, high + 1)))
  return scipy.ndimage.affine_transform(
    native,
    step,
    first - low,
    tuple(np.subtract(stop, start)),
    output=native.dtype if mode == 'nearest' else np.float32,
    order=order,
    mode=border,
  )
