"""Reads a DICOM series, whose geometry is that of its slices' positions.

SliceThickness and SpacingBetweenSlices are not looked at: slices may overlap or
leave gaps, and exporters fill those tags with either.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import locale
import pathlib
from typing import Any

import numpy as np

from data.ct.errors import VolumeError

_PREAMBLE = 128  # Bytes before the letters DICM.
_SERIES = '0020|000e'
_DESCRIPTION = '0008|103e'
_MODALITY = '0008|0060'
_FRAMES = '0028|0008'
_POSITION = '0020|0032'
_ORIENTATION = '0020|0037'
_PIXEL_SPACING = '0028|0030'
_RESCALE = ('0028|1052', '0028|1053')
_ALIKE = 1e-3  # Of millimetres and cosines written in decimals.
_STEP = 0.02  # Steps between slices may differ by this part of a step.


@dataclasses.dataclass(frozen=True)
class _Slice:
  path: pathlib.Path
  tags: dict[str, str]

  def numbers(self, tag: str, name: str, count: int) -> np.ndarray:
    """The values of a tag; a VolumeError names the file that lacks it."""
    try:
      found = np.array([float(v) for v in self.tags[tag].split('\\')])
    except (KeyError, ValueError) as e:
      raise VolumeError(f'{self.path}: no {name} ({tag})') from e
    if len(found) != count or not np.isfinite(found).all():
      raise VolumeError(f'{self.path}: {name} is {self.tags[tag]!r}')
    return found


@contextlib.contextmanager
def same_locale() -> Iterator[None]:
  """Keeps the locale: GDCM sets it to C, in which Python's text is ASCII."""
  before = locale.setlocale(locale.LC_ALL)
  try:
    yield
  finally:
    locale.setlocale(locale.LC_ALL, before)


@same_locale()
def read(folder: pathlib.Path, sitk: Any) -> Any:
  """Reads the one CT series of a folder.

  Args:
    folder: holds the slices, one file each; files without the DICOM preamble
      are passed over.
    sitk: the module SimpleITK.

  Returns:
    A SimpleITK image of float32 Hounsfield units, RescaleSlope and
    RescaleIntercept of each slice applied.

  Raises:
    VolumeError: if the folder holds no series or several, slices that lack a
      tag, differ in size, spacing or orientation, are doubled or missing, or
      are shifted against one another (a tilted gantry).
  """
  slices = _one_series(folder, _headers(folder, sitk))
  row, column, spacing = _plane(slices)
  place = np.stack(
    [s.numbers(_POSITION, 'ImagePositionPatient', 3) for s in slices]
  )
  normal = np.cross(row, column)
  depth = place @ normal
  order = np.argsort(depth)
  slices, place = [slices[i] for i in order], place[order]
  step = _step(folder, slices, depth[order])
  shift = (place - place[0]) - np.outer(depth[order] - depth[order][0], normal)
  if np.abs(shift).max() > max(_ALIKE, _STEP * spacing.min()):
    raise VolumeError(
      f'{folder}: its slices are shifted against one another by up to'
      f' {np.abs(shift).max():.2f} mm (a tilted gantry): straighten the series'
      ' and export it again'
    )
  planes = [_pixels(s, sitk) for s in slices]
  sizes = sorted({plane.shape for plane in planes})
  if len(sizes) > 1:
    raise VolumeError(f'{folder}: slices of different sizes: {sizes}')
  image = sitk.GetImageFromArray(np.stack(planes))
  # PixelSpacing names the distance between rows first.
  image.SetSpacing([float(s) for s in (spacing[1], spacing[0], step)])
  image.SetOrigin([float(x) for x in place[0]])
  axes = np.stack([row, column, normal], 1)
  image.SetDirection([float(x) for x in axes.ravel()])
  return image


def _headers(folder: pathlib.Path, sitk: Any) -> list[_Slice]:
  found = []
  for path in sorted(p for p in folder.iterdir() if p.is_file()):
    with path.open('rb') as file:
      is_dicom = file.read(_PREAMBLE + 4)[_PREAMBLE:] == b'DICM'
    if not is_dicom:
      if path.suffix.lower() in ('.dcm', '.ima'):
        raise VolumeError(f'{path}: no DICOM file')
      continue
    if path.name.upper() == 'DICOMDIR':
      continue
    reader = sitk.ImageFileReader()
    reader.SetImageIO('GDCMImageIO')
    reader.SetFileName(str(path))
    try:
      reader.ReadImageInformation()
    except RuntimeError as e:
      raise VolumeError(f'{path}: no DICOM image: {_last_line(e)}') from e
    tags = {k: reader.GetMetaData(k).strip() for k in reader.GetMetaDataKeys()}
    found.append(_Slice(path, tags))
  if not found:
    inner = sorted(p.name for p in folder.iterdir() if p.is_dir())
    hint = f'; it holds the folders {", ".join(inner[:5])}' if inner else ''
    raise VolumeError(f'{folder}: no DICOM files in it{hint}')
  return found


def _one_series(folder: pathlib.Path, slices: list[_Slice]) -> list[_Slice]:
  series: dict[str, list[_Slice]] = {}
  for s in slices:
    series.setdefault(s.tags.get(_SERIES, ''), []).append(s)
  if len(series) > 1:
    named = '; '.join(
      f'{uid} ({held[0].tags.get(_DESCRIPTION) or "no description"},'
      f' {len(held)} files)'
      for uid, held in series.items()
    )
    raise VolumeError(
      f'{folder}: {len(series)} series: {named}; give each a folder of its own'
      ' and name that of the CT'
    )
  for s in slices:
    modality = s.tags.get(_MODALITY, 'CT')
    if modality != 'CT':
      raise VolumeError(f'{s.path}: its modality is {modality}, not CT')
    if s.tags.get(_FRAMES, '1') not in ('', '1'):
      raise VolumeError(
        f'{s.path}: {s.tags[_FRAMES]} frames in one file; convert it to NIfTI'
      )
    for tag in _RESCALE:
      s.numbers(tag, 'rescale slope or intercept, without which no HU', 1)
  return slices


def _plane(slices: Sequence[_Slice]) -> tuple[np.ndarray, ...]:
  """Directions of a row and a column, and spacing (of rows, of columns)."""
  values = [
    np.concatenate(
      [
        s.numbers(_ORIENTATION, 'ImageOrientationPatient', 6),
        s.numbers(_PIXEL_SPACING, 'PixelSpacing', 2),
      ]
    )
    for s in slices
  ]
  for s, value in zip(slices, values, strict=True):
    if np.abs(value - values[0]).max() > _ALIKE:
      raise VolumeError(
        f'{s.path}: its orientation or pixel spacing is not that of'
        f' {slices[0].path.name}: no slice of the same volume'
      )
  row, column, spacing = np.split(values[0], [3, 6])
  if spacing.min() <= 0:
    raise VolumeError(f'{slices[0].path}: PixelSpacing is {spacing}')
  lengths = [np.linalg.norm(row), np.linalg.norm(column)]
  if abs(row @ column) > _ALIKE or np.abs(np.array(lengths) - 1).max() > _ALIKE:
    raise VolumeError(
      f'{slices[0].path}: ImageOrientationPatient is no pair of perpendicular'
      ' directions'
    )
  return row / lengths[0], column / lengths[1], spacing


def _step(
  folder: pathlib.Path, slices: list[_Slice], depth: np.ndarray
) -> float:
  """Distance between slices, in mm; they must be equally far apart."""
  if len(slices) < 2:
    raise VolumeError(f'{folder}: one slice only; a volume has several')
  steps = np.diff(depth)
  step = float(np.median(steps))
  closest = int(steps.argmin())
  if steps[closest] < max(_ALIKE, _STEP * step):
    names = f'{slices[closest].path.name} and {slices[closest + 1].path.name}'
    raise VolumeError(
      f'{folder}: {names} are at the same position: remove what is doubled'
    )
  odd = np.abs(steps - step) > _STEP * step + _ALIKE
  if odd.any():
    i = int(odd.argmax())
    between = f'{slices[i].path.name} and {slices[i + 1].path.name}'
    missing = round(steps[i] / step) - 1
    what = (
      f'{missing} slice{"s" * (missing > 1)} missing'
      if missing > 0 and abs(steps[i] / step - missing - 1) < 0.1
      else 'unequal steps'
    )
    raise VolumeError(
      f'{folder}: {what}: {steps[i]:.3f} mm between {between}, {step:.3f} mm'
      ' elsewhere; export the whole series again'
    )
  return float((depth[-1] - depth[0]) / (len(depth) - 1))


def _pixels(s: _Slice, sitk: Any) -> np.ndarray:
  try:
    image = sitk.ReadImage(str(s.path), sitk.sitkFloat32, 'GDCMImageIO')
  except RuntimeError as e:
    raise VolumeError(f'{s.path}: cannot be decoded: {_last_line(e)}') from e
  plane = sitk.GetArrayFromImage(image)
  if plane.ndim != 3 or len(plane) != 1:
    raise VolumeError(f'{s.path}: no grey slice, its shape is {plane.shape}')
  return plane[0]


def _last_line(error: Exception) -> str:
  return str(error).strip().splitlines()[-1].strip()
