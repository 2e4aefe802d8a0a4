"""Reads a DICOM series, whose geometry is that of its slices' positions.

SliceThickness and SpacingBetweenSlices are not looked at: slices may overlap or
leave gaps, and exporters fill those tags with either.
"""

import collections
import pathlib
import struct
from typing import Any

import numpy as np

from data import files
from data.ct import VolumeError, check_size, itk_errors, simpleitk

_PREAMBLE = 128  # Bytes before the letters DICM.
# Transfer syntaxes that are not explicit, little endian and stored as they are.
_IMPLICIT, _BIG, _DEFLATED = (
  f'1.2.840.10008.1.2{end}'.encode() for end in ('', '.2', '.1.99')
)
# Value representations whose length has four bytes.
_LONG = b'OB OD OF OL OV OW SQ SV UC UN UR UT UV'.split()
_OPEN = 0xFFFFFFFF  # A length that is not told: a delimiter ends the element.
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
  'Rows': ('0028|0010', 1),
  'Columns': ('0028|0011', 1),
}
_ALIKE = 1e-3  # Of millimetres and cosines written in decimals.
_LARGEST = 1e7  # mm and HU.
_STEP = 0.02  # Steps between slices may differ by this part of a step.


def read(folder: pathlib.Path) -> Any:
  """Reads the one CT series of a folder.

  Args:
    folder: holds the slices, one file each; files without the DICOM preamble
      and names that begin with a dot are passed over.

  Returns:
    A SimpleITK image of float32 Hounsfield units, RescaleSlope and
    RescaleIntercept of each slice applied.

  Raises:
    VolumeError: if the folder holds no series or several, slices that lack a
      tag, differ in size, spacing or orientation, are doubled or missing, or
      are shifted against one another (a tilted gantry).
  """
  slices = _one_series(folder)
  paths = list(slices)
  axes, spacing, place, *_, rows, columns = (
    np.stack([_numbers(path, tags, name) for path, tags in slices.items()])
    for name in _NUMBERS
  )
  plane = np.concatenate([axes, spacing, rows, columns], 1)
  away = np.abs(plane - plane[0]).max(1)
  if away.max() > _ALIKE:
    raise VolumeError(
      f'{paths[away.argmax()]}: its orientation or pixel spacing, or its'
      f' size, is not that of {paths[0].name}. Take it out of the folder.'
    )
  voxels = int((rows * columns).sum())
  check_size(folder, voxels, 4, sum(path.stat().st_size for path in paths))
  pair = axes[0].reshape(2, 3)
  skew = np.abs(pair @ pair.T - np.eye(2)).max()
  if skew > 2 * _ALIKE or spacing.min() <= 0:
    raise VolumeError(
      f'{paths[0]}: no grid: ImageOrientationPatient is {axes[0]} and must be'
      f' two perpendicular directions, PixelSpacing is {spacing[0]}'
    )
  row, column = pair / np.linalg.norm(pair, axis=1, keepdims=True)
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
  with itk_errors(f'{folder}: cannot be decoded'):
    image = sitk.ReadImage(
      [str(path) for path in paths], sitk.sitkFloat32, 'GDCMImageIO'
    )
  # PixelSpacing names the distance between rows first.
  image.SetSpacing([*spacing[0, ::-1].tolist(), step])
  image.SetOrigin(place[0].tolist())
  image.SetDirection(np.stack([row, column, normal], 1).ravel().tolist())
  return image


def _one_series(folder: pathlib.Path) -> dict[pathlib.Path, dict[str, str]]:
  """Returns the tags of the slices of the folder's one CT series, by file."""
  slices = {}
  for path in files.listed(folder, pattern='*'):
    if fault := files.link_fault(path):
      raise VolumeError(fault)
    with path.open('rb') as file:
      is_dicom = file.read(_PREAMBLE + 4)[_PREAMBLE:] == b'DICM'
    if not is_dicom and path.suffix.lower() in ('.dcm', '.ima'):
      raise VolumeError(f'{path}: no DICOM file. Copy it again.')
    if is_dicom and path.name.upper() != 'DICOMDIR':
      slices[path] = _tags(path)
  if not slices:
    inner = sorted(p.name for p in folder.iterdir() if p.is_dir())
    hint = f', but the folders {", ".join(inner[:5])}' if inner else ''
    raise VolumeError(f'{folder}: no DICOM files in it{hint}. Give a series.')
  uids = [tags.get(_SERIES, '') for tags in slices.values()]
  if len(count := collections.Counter(uids)) > 1:
    described = [tags.get(_DESCRIPTION) for tags in slices.values()]
    named = '; '.join(
      f'{uid} ({described[uids.index(uid)] or "no description"}, {n} files)'
      for uid, n in count.items()
    )
    raise VolumeError(
      f'{folder}: {len(count)} series: {named}. Give each a folder of its own'
      ' and name that of the CT.'
    )
  if len(slices) < 2:
    raise VolumeError(f'{folder}: one slice only. Export the whole series.')
  return slices


def check(path: pathlib.Path) -> None:
  """Checks that all a file's elements declare is there.

  GDCM allocates what they declare and searches the rest of the file in other
  ways, for gigabytes and minutes.

  Raises:
    VolumeError: naming the element that is longer than the file.
  """
  content, at, syntax = path.read_bytes(), _PREAMBLE + 4, b''
  order, is_data, in_fragments = '<', False, False
  while at + 12 <= len(content):
    if not is_data and content[at : at + 2] != b'\2\0':
      is_data, order = True, '>' if syntax == _BIG else '<'
      if syntax == _DEFLATED:
        raise VolumeError(f'{path}: packed as a whole. Export it uncompressed.')
    *tag, kind = struct.unpack_from(f'{order}2H2s', content, at)
    is_item, is_named = tag[0] == 0xFFFE, kind.isalpha() and kind.isupper()
    if is_item or not is_named or (is_data and syntax == _IMPLICIT):
      kind, form, place = b'', 'I', 4
    else:
      form, place = ('I', 8) if kind in _LONG else ('H', 6)
    (size,) = struct.unpack_from(order + form, content, at + place)
    at += place + struct.calcsize(form)
    if size != _OPEN and size > len(content) - at:
      raise VolumeError(
        f'{path}: its element {tag[0]:04x},{tag[1]:04x} has {size} bytes by its'
        f' header, and {len(content) - at} are there. Copy it again.'
      )
    if tag == [2, 0x10]:
      syntax = content[at : at + size].strip(b'\0 ')
    if size == _OPEN and kind == b'UN':  # Implicit inside.
      return
    if tag == [0xFFFE, 0xE0DD] or tag[0] == 0x7FE0:
      in_fragments = size == _OPEN
    # What holds others is entered.
    if not (size == _OPEN or kind == b'SQ' or (is_item and not in_fragments)):
      at += size


def _tags(path: pathlib.Path) -> dict[str, str]:
  """Returns the tags of a file, which is one slice of a CT."""
  check(path)
  with itk_errors(f'{path}: no DICOM image'):
    reader = simpleitk().ImageFileReader()
    reader.SetImageIO('GDCMImageIO')
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    tags = {k: reader.GetMetaData(k).strip() for k in reader.GetMetaDataKeys()}
  if (modality := tags.get(_MODALITY, 'CT')) != 'CT':
    raise VolumeError(f'{path}: its modality is {modality}. Give a CT.')
  if (frames := tags.get(_FRAMES, '1')) not in ('', '1'):
    raise VolumeError(f'{path}: {frames} frames in one file. Use NIfTI.')
  return tags


def _numbers(path: pathlib.Path, tags: dict[str, str], name: str) -> np.ndarray:
  """Returns one of `_NUMBERS`; a VolumeError names the file that lacks it."""
  tag, count = _NUMBERS[name]
  try:
    numbers = np.array([float(v) for v in tags[tag].split('\\')])
  except (KeyError, ValueError) as e:
    raise VolumeError(f'{path}: no {name} ({tag}). Export it again.') from e
  if len(numbers) != count or not (np.abs(numbers) < _LARGEST).all():
    raise VolumeError(f'{path}: {name} is {tags[tag]!r}. Export it again.')
  return numbers


def _step(
  folder: pathlib.Path, paths: list[pathlib.Path], depth: np.ndarray
) -> float:
  """Distance between slices, in mm; they must be equally far apart."""
  steps = np.diff(depth)
  step = float(np.median(steps))
  closest = int(steps.argmin())
  doubled = steps[closest] < max(_ALIKE, _STEP * step)
  i = closest if doubled else int(np.abs(steps - step).argmax())
  if doubled or abs(steps[i] - step) > _STEP * step + _ALIKE:
    missing = round(steps[i] / max(step, _ALIKE)) - 1
    what = 'doubled slices' if doubled else 'unequal steps'
    if missing > 0 and abs(steps[i] / step - missing - 1) < 0.1:
      what = f'{files.counted(missing, "slice")} missing'
    raise VolumeError(
      f'{folder}: {what}: {steps[i]:.3f} mm between {paths[i].name} and'
      f' {paths[i + 1].name}, {step:.3f} mm elsewhere. Export the whole series'
      ' again, each slice once.'
    )
  return float((depth[-1] - depth[0]) / (len(depth) - 1))
