"""Reads a DICOM series, whose geometry is that of its slices' positions.

SliceThickness and SpacingBetweenSlices are not looked at: slices may overlap or
leave gaps, and exporters fill those tags with either.
"""

from collections.abc import Iterator
import contextlib
import locale
import pathlib
from typing import Any

import numpy as np

from data.ct import VolumeError, itk_reason, simpleitk

_PREAMBLE = 128  # Bytes before the letters DICM.
_SERIES = '0020|000e'
_DESCRIPTION = '0008|103e'
_MODALITY = '0008|0060'
_FRAMES = '0028|0008'
# Numbers that every slice must have: their tag, and how many there are.
_NUMBERS = {
  'ImageOrientationPatient': ('0020|0037', 6),
  'PixelSpacing': ('0028|0030', 2),
  'ImagePositionPatient': ('0020|0032', 3),
  'rescale intercept, without which there are no HU': ('0028|1052', 1),
  'rescale slope, without which there are no HU': ('0028|1053', 1),
}
_ALIKE = 1e-3  # Of millimetres and cosines written in decimals.
_STEP = 0.02  # Steps between slices may differ by this part of a step.


@contextlib.contextmanager
def same_locale() -> Iterator[None]:
  """Keeps the locale: GDCM sets it to C, in which Python's text is ASCII."""
  before = locale.setlocale(locale.LC_ALL)
  try:
    yield
  finally:
    locale.setlocale(locale.LC_ALL, before)


@same_locale()
def read(folder: pathlib.Path) -> Any:
  """Reads the one CT series of a folder.

  Args:
    folder: holds the slices, one file each; files without the DICOM preamble
      are passed over.

  Returns:
    A SimpleITK image of float32 Hounsfield units, RescaleSlope and
    RescaleIntercept of each slice applied.

  Raises:
    VolumeError: if the folder holds no series or several, slices that lack a
      tag, differ in size, spacing or orientation, are doubled or missing, or
      are shifted against one another (a tilted gantry).
  """
  files = _one_series(folder, _headers(folder))
  paths = list(files)
  axes, spacing, place, *_ = (
    np.stack([_numbers(path, tags, name) for path, tags in files.items()])
    for name in _NUMBERS
  )
  row, column = _directions(paths, axes, spacing)
  normal = np.cross(row, column)
  order = np.argsort(place @ normal)
  paths, place = [paths[i] for i in order], place[order]
  depth = place @ normal
  step = _step(folder, paths, depth)
  shift = np.abs(place - place[0] - np.outer(depth - depth[0], normal)).max()
  if shift > max(_ALIKE, _STEP * spacing.min()):
    raise VolumeError(
      f'{folder}: its slices are shifted against one another by up to'
      f' {shift:.2f} mm (a tilted gantry): straighten the series and export it'
      ' again'
    )
  sitk = simpleitk()
  try:
    image = sitk.ReadImage(
      [str(path) for path in paths], sitk.sitkFloat32, 'GDCMImageIO'
    )
  except RuntimeError as e:
    raise VolumeError(f'{folder}: cannot be decoded: {itk_reason(e)}') from e
  # PixelSpacing names the distance between rows first.
  image.SetSpacing([*spacing[0, ::-1].tolist(), step])
  image.SetOrigin(place[0].tolist())
  image.SetDirection(np.stack([row, column, normal], 1).ravel().tolist())
  return image


def _headers(folder: pathlib.Path) -> dict[pathlib.Path, dict[str, str]]:
  """Returns the tags of the folder's DICOM files, by file."""
  found = {}
  for path in sorted(p for p in folder.iterdir() if p.is_file()):
    with path.open('rb') as file:
      is_dicom = file.read(_PREAMBLE + 4)[_PREAMBLE:] == b'DICM'
    if not is_dicom and path.suffix.lower() in ('.dcm', '.ima'):
      raise VolumeError(f'{path}: no DICOM file')
    if not is_dicom or path.name.upper() == 'DICOMDIR':
      continue
    reader = simpleitk().ImageFileReader()
    reader.SetImageIO('GDCMImageIO')
    reader.SetFileName(str(path))
    try:
      reader.ReadImageInformation()
    except RuntimeError as e:
      raise VolumeError(f'{path}: no DICOM image: {itk_reason(e)}') from e
    keys = reader.GetMetaDataKeys()
    found[path] = {key: reader.GetMetaData(key).strip() for key in keys}
  if not found:
    inner = sorted(p.name for p in folder.iterdir() if p.is_dir())
    hint = f'; it holds the folders {", ".join(inner[:5])}' if inner else ''
    raise VolumeError(f'{folder}: no DICOM files in it{hint}')
  return found


def _one_series(
  folder: pathlib.Path, files: dict[pathlib.Path, dict[str, str]]
) -> dict[pathlib.Path, dict[str, str]]:
  """Returns the files, which are one CT series of single slices."""
  series: dict[str, list[str]] = {}
  for tags in files.values():
    described = tags.get(_DESCRIPTION) or 'no description'
    series.setdefault(tags.get(_SERIES, ''), []).append(described)
  if len(series) > 1:
    named = '; '.join(
      f'{uid} ({held[0]}, {len(held)} files)' for uid, held in series.items()
    )
    raise VolumeError(
      f'{folder}: {len(series)} series: {named}; give each a folder of its own'
      ' and name that of the CT'
    )
  for path, tags in files.items():
    if (modality := tags.get(_MODALITY, 'CT')) != 'CT':
      raise VolumeError(f'{path}: its modality is {modality}, not CT')
    if (frames := tags.get(_FRAMES, '1')) not in ('', '1'):
      raise VolumeError(
        f'{path}: {frames} frames in one file; convert it to NIfTI'
      )
  if len(files) < 2:
    raise VolumeError(f'{folder}: one slice only; a volume has several')
  return files


def _numbers(path: pathlib.Path, tags: dict[str, str], name: str) -> np.ndarray:
  """Returns one of `_NUMBERS`; a VolumeError names the file that lacks it."""
  tag, count = _NUMBERS[name]
  try:
    found = np.array([float(v) for v in tags[tag].split('\\')])
  except (KeyError, ValueError) as e:
    raise VolumeError(f'{path}: no {name} ({tag})') from e
  if len(found) != count or not np.isfinite(found).all():
    raise VolumeError(f'{path}: {name} is {tags[tag]!r}')
  return found


def _directions(
  paths: list[pathlib.Path], axes: np.ndarray, spacing: np.ndarray
) -> np.ndarray:
  """Returns the directions of a row and a column, [2, 3], alike in all slices.

  Args:
    paths: of n slices, for messages.
    axes: ImageOrientationPatient, [n, 6].
    spacing: PixelSpacing, [n, 2].
  """
  plane = np.concatenate([axes, spacing], 1)
  for path, away in zip(paths, np.abs(plane - plane[0]).max(1), strict=True):
    if away > _ALIKE:
      raise VolumeError(
        f'{path}: its orientation or pixel spacing is not that of'
        f' {paths[0].name}: no slice of the same volume'
      )
  if spacing.min() <= 0:
    raise VolumeError(f'{paths[0]}: PixelSpacing is {spacing[0]}')
  pair = axes[0].reshape(2, 3)
  if np.abs(pair @ pair.T - np.eye(2)).max() > 2 * _ALIKE:
    raise VolumeError(
      f'{paths[0]}: ImageOrientationPatient is no pair of perpendicular'
      ' directions'
    )
  return pair / np.linalg.norm(pair, axis=1, keepdims=True)


def _step(
  folder: pathlib.Path, paths: list[pathlib.Path], depth: np.ndarray
) -> float:
  """Distance between slices, in mm; they must be equally far apart."""
  steps = np.diff(depth)
  step = float(np.median(steps))
  between = lambda i: f'{paths[i].name} and {paths[i + 1].name}'
  closest = int(steps.argmin())
  if steps[closest] < max(_ALIKE, _STEP * step):
    raise VolumeError(
      f'{folder}: {between(closest)} are at the same position: remove what is'
      ' doubled'
    )
  odd = np.abs(steps - step) > _STEP * step + _ALIKE
  if odd.any():
    i = int(odd.argmax())
    missing = round(steps[i] / step) - 1
    what = 'unequal steps'
    if missing > 0 and abs(steps[i] / step - missing - 1) < 0.1:
      what = f'{missing} slice{"s" * (missing > 1)} missing'
    raise VolumeError(
      f'{folder}: {what}: {steps[i]:.3f} mm between {between(i)}, {step:.3f} mm'
      ' elsewhere; export the whole series again'
    )
  return float((depth[-1] - depth[0]) / (len(depth) - 1))
