"""Reads CT volumes in Hounsfield units, and the masks drawn on them."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from data.ct import VolumeError, dicom, nifti, simpleitk

_STRAIGHT = 0.6  # Degrees below which an axis counts as straight.
_ALIKE = 0.01  # Of a voxel: how far two grids may be apart.
_SIDES = 0.1, 20.0  # mm: sides of voxels that a CT may have.
_VALUES = 256  # Of a mask; a CT has thousands.
_SAMPLE = 10**6  # Voxels that tell whether a volume is in HU.


@dataclasses.dataclass(frozen=True)
class Volume:
  """A CT volume: z from feet to head, y from front to back, x to the left."""

  path: pathlib.Path
  hu: np.ndarray  # [Z, Y, X] float32
  spacing: tuple[float, float, float]  # of z, y, x in mm
  origin: tuple[float, float, float]  # centre of the first voxel, z, y, x, mm
  # Directions of x, y and z, nearly the patient's, as columns.
  direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def read(path: str | pathlib.Path) -> Volume:
  """Reads a NIfTI file, or a folder with the slices of a DICOM series.

  Axes are turned and permuted to those of `Volume`; nothing is interpolated.

  Raises:
    VolumeError: if there is no such file, it is damaged, without spacing or
      not one 3-D volume, its axes are oblique to the patient's, or a value is
      not finite; the message names the file.
  """
  path = pathlib.Path(path)
  reader = dicom if path.is_dir() else nifti
  volume = _straight(path, reader.read(path))
  with np.errstate(over='ignore'):
    hu = volume.hu.astype(np.float32, copy=False)
  if not np.isfinite(hu).all():
    raise VolumeError(
      f'{path}: with slope and intercept, values are not finite. Convert the'
      ' original files again.'
    )
  return dataclasses.replace(volume, hu=hu)


def read_mask(path: str | pathlib.Path, like: Volume) -> np.ndarray:
  """Reads the mask drawn on a volume.

  Args:
    path: a NIfTI file.
    like: the volume.

  Returns:
    int32 [Z, Y, X], 0 outside nodes, in the axes of `like`.

  Raises:
    VolumeError: if the file cannot be read, or the mask is empty, has values
      that are no whole numbers from 0 on, or lies on another grid (size,
      spacing, origin or direction).
  """
  path = pathlib.Path(path)
  if path.is_dir():
    raise VolumeError(f'{path}: a folder. Give the NIfTI file of a mask.')
  own = _straight(path, nifti.read(path, like.hu.size))
  mask = own.hu
  far = _ALIKE / max(like.hu.shape)  # At the edge it is that of a voxel.
  for name, mine, theirs, tolerance in (
    ('size', mask.shape, like.hu.shape, 0),
    ('spacing', own.spacing, like.spacing, far * np.array(like.spacing)),
    ('origin', own.origin, like.origin, _ALIKE * np.array(like.spacing)),
    ('direction', own.direction, like.direction, far),
  ):
    if (np.abs(np.subtract(mine, theirs)) > tolerance).any():
      shown = (f'({", ".join(f"{v:g}" for v in x)})' for x in (mine, theirs))
      axes = ' (z, y, x)' * (len(mine) == 3)
      raise VolumeError(
        f'{path}: another grid than {like.path}: its {name}{axes} is'
        f' {next(shown)}, not {next(shown)}. Draw or resample the mask on the'
        ' grid of its volume.'
      )
  with np.errstate(invalid='ignore'):
    whole = mask.astype(np.int32)
  if not np.array_equal(whole, mask) or whole.min() < 0:
    odd = mask[(whole != mask) | (whole < 0)][0]
    raise VolumeError(
      f'{path}: {odd:g} in a mask. Label with 0, 1, 2 and so on.'
    )
  count = len(np.unique(whole[whole != 0]))
  if not count:
    raise VolumeError(f'{path}: an empty mask. Mark nodes or leave it out.')
  if count > _VALUES:
    raise VolumeError(
      f'{path}: {count} values in a mask, as if it were the CT. Give the mask.'
    )
  return whole


def hu_warning(volume: Volume) -> str | None:
  """Returns why the values may not be those of a CT in HU."""
  some = volume.hu.ravel()[:: max(1, volume.hu.size // _SAMPLE)]
  low, most, high = np.percentile(some, (1, 90, 99))
  if low >= 0:
    return 'hardly a value is negative, but fat is -100 HU and air -1000'
  if most < -500:
    return 'most values are below -500, as if the intercept counted twice'
  if most > 700:
    return 'many values are above 700, which only bone is in HU'
  if high - low < 50:
    return 'hardly two values are 50 apart, as if they were scaled'
  return 'some are below -5000, but air is -1000 HU' if low < -5000 else None


def write(path: str | pathlib.Path, array: np.ndarray, volume: Volume) -> None:
  """Writes an array [Z, Y, X] as NIfTI on the grid of `volume`."""
  sitk = simpleitk()
  image = sitk.GetImageFromArray(array)
  image.SetSpacing([float(s) for s in volume.spacing[::-1]])
  image.SetOrigin([float(x) for x in volume.origin[::-1]])
  sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)


def _straight(path: pathlib.Path, image: Any) -> Volume:
  """Returns an image, whatever its values, along the axes of `Volume`."""
  direction = np.array(image.GetDirection()).reshape(3, 3)
  # From each axis to the nearest of the patient's.
  nearest = np.abs(direction).max(0).clip(max=1)
  angle = np.degrees(np.arccos(nearest.min()))
  if angle > _STRAIGHT:
    raise VolumeError(
      f"{path}: oblique: an axis is {angle:.1f} degrees off the patient's."
      ' Resample it to an axial grid.'
    )
  sides = image.GetSpacing()
  if not (min(sides) >= _SIDES[0] and max(sides) <= _SIDES[1]):
    shown = ' x '.join(f'{side:g}' for side in sides)
    raise VolumeError(
      f'{path}: a voxel spacing of {shown} mm. That of a CT is {_SIDES[0]:g} to'
      f' {_SIDES[1]:g}. If the header has metres, centimetres or micrometres,'
      ' convert the original files again.'
    )
  sitk = simpleitk()
  image = sitk.DICOMOrient(image, 'LPS')
  array = sitk.GetArrayFromImage(image)
  grid = image.GetSpacing()[::-1], image.GetOrigin()[::-1], image.GetDirection()
  return Volume(path, array, *grid)
