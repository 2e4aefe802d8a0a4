"""Puts volumes on an isotropic grid and HU into a grey window."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

SPACING = 0.79  # mm; Ansari's.
WINDOW = (-135.0, 215.0)  # HU; Ansari's, for the abdomen.
MODES = ('linear', 'nearest', 'bspline')
# Voxels beyond the region that a value depends on; the B-spline's coefficients
# depend on all, by less than 1e-6 beyond 12.
_MARGIN = {'linear': 1, 'nearest': 1, 'bspline': 12}


def window(
  hu: np.ndarray, low: float = WINDOW[0], high: float = WINDOW[1]
) -> np.ndarray:
  """Maps HU from `low` to `high` to [0, 1], clipped; float32."""
  return np.clip((hu - low) / (high - low), 0, 1).astype(np.float32)


def shape(
  size: tuple[int, ...], spacing: tuple[float, ...], target: float = SPACING
) -> tuple[int, ...]:
  """Size of the isotropic grid that covers as much as `size` voxels do."""
  return tuple(
    max(1, round(n * s / target)) for n, s in zip(size, spacing, strict=True)
  )


def region(
  read: Callable[[tuple[slice, ...]], np.ndarray],
  size: tuple[int, ...],
  spacing: tuple[float, ...],
  start: tuple[int, ...],
  stop: tuple[int, ...],
  mode: str,
  target: float = SPACING,
) -> np.ndarray:
  """Returns a part of a resampled volume, of which only that is computed.

  The outer faces of the first voxels of both grids coincide, so that voxel i of
  the isotropic grid has its centre at (i + 1/2) target / spacing - 1/2 voxels.
  Beyond the centres of the outermost voxels, 'linear' and 'nearest' repeat them
  and 'bspline' (cubic; Unser, IEEE Signal Processing Magazine 1999) mirrors the
  volume at them, as ITK does. A half rounds up. Nothing is smoothed before:
  where `target` is coarser than `spacing`, fine detail is sampled as it is.

  Args:
    read: returns the voxels of native slices, as an array's `__getitem__`.
    size: of the native volume, in voxels.
    spacing: of its axes, in mm.
    start: first voxel of the part on the isotropic grid.
    stop: the voxel after its last.
    mode: one of `MODES`.
    target: spacing of the isotropic grid in mm.

  Returns:
    float32 array of shape `stop - start`; of 'nearest', of the native type.
  """
  if mode not in MODES:
    raise ValueError(f'mode {mode!r}: there are {", ".join(MODES)}')
  places, needed = [], []
  for n, s, a, b in zip(size, spacing, start, stop, strict=True):
    place = (np.arange(a, b) + 0.5) * (target / s) - 0.5
    low = int(np.clip(np.floor(place[0]) - _MARGIN[mode], 0, n - 1))
    high = int(np.clip(np.ceil(place[-1]) + _MARGIN[mode], 0, n - 1))
    places.append(place - low)
    needed.append(slice(low, high + 1))
  found = read(tuple(needed))
  if mode != 'nearest':
    found = found.astype(np.float32)
  # The axis that grows most comes last.
  growth = [len(p) / n for p, n in zip(places, found.shape, strict=True)]
  for axis in np.argsort(growth):
    found = _along(found, int(axis), places[axis], mode)
  return found


def volume(
  array: np.ndarray,
  spacing: tuple[float, ...],
  mode: str,
  target: float = SPACING,
) -> np.ndarray:
  """Returns the whole of `array` on the isotropic grid; see `region`."""
  full = shape(array.shape, spacing, target)
  start = (0,) * array.ndim
  return region(
    array.__getitem__, array.shape, spacing, start, full, mode, target
  )


def _along(
  array: np.ndarray, axis: int, place: np.ndarray, mode: str
) -> np.ndarray:
  """Interpolates at places of one axis."""
  last = array.shape[axis] - 1
  if mode == 'nearest':
    index = np.floor(place + 0.5).astype(int).clip(0, last)
    return array.take(index, axis)
  if mode == 'bspline' and last:
    array = ndimage.spline_filter1d(
      array, order=3, axis=axis, output=np.float32, mode='mirror'
    )
    first = np.floor(place).astype(int) - 1
    t = (place - np.floor(place)).astype(np.float32)
    weights = (
      (1 - t) ** 3 / 6,
      (4 - 6 * t**2 + 3 * t**3) / 6,
      (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6,
      t**3 / 6,
    )
    taps = [(_mirrored(first + k, last), w) for k, w in enumerate(weights)]
  else:
    place = place.clip(0, last)
    low = np.floor(place).astype(int)
    t = (place - low).astype(np.float32)
    taps = [(low, 1 - t), (np.minimum(low + 1, last), t)]
  wide = [1] * array.ndim
  wide[axis] = -1
  return sum(
    array.take(index, axis) * weight.reshape(wide) for index, weight in taps
  )


def _mirrored(index: np.ndarray, last: int) -> np.ndarray:
  """Reflects indices at 0 and `last`, which are not repeated."""
  index = np.abs(index) % (2 * last)
  return np.minimum(index, 2 * last - index)
