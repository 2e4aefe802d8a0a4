"""Reads a NIfTI file, after a look for what ITK would mend silently.

ITK takes a spacing of 0 for 1 mm, and NaN and the missing end of a file for
zeros. None of them was measured.
"""

import gzip
import math
import pathlib
from typing import Any
import zlib

import numpy as np

from data.ct import VolumeError, itk_errors, simpleitk

_FIELDS = ('dim', 'type', 'bits', 'pixdim', 'offset', 'codes')
# Of the headers of both versions, by their size: types and places of `_FIELDS`.
_HEADERS = {
  348: (['8i2', 'i2', 'i2', '8f4', 'f4', '2i2'], [40, 70, 72, 76, 108, 252]),
  540: (['8i8', 'i2', 'i2', '8f8', 'i8', '2i4'], [16, 12, 14, 104, 168, 344]),
}
_FLOATS = {16: 'f4', 64: 'f8'}  # By the code of the type.
_LARGEST_HEADER = 1 << 26  # Bytes before the voxels, with all extensions.


def read(path: pathlib.Path) -> Any:
  """Reads a file that is one whole 3-D volume on a known grid.

  Returns:
    A SimpleITK image; a fourth dimension of length 1 is none.

  Raises:
    VolumeError: if it is not, or holds NaN or infinity; names the file and what
      is wrong.
  """
  if not path.exists():
    raise VolumeError(f'{path}: no such file. Mend its path in the table.')
  if not path.name.endswith(('.nii', '.nii.gz')):
    raise VolumeError(
      f'{path}: neither .nii, .nii.gz nor a folder. Convert it.'
    )
  sitk = simpleitk()
  check(path)
  with itk_errors(f'{path}: cannot be read'):
    image = sitk.ReadImage(str(path), imageIO='NiftiImageIO')
  while image.GetDimension() > 3:
    image = image[..., 0]
  return image


def check(path: pathlib.Path) -> None:
  """Checks the bytes of a file; see `read`."""
  opener = gzip.open if path.name.endswith('.gz') else open
  try:
    with opener(path, 'rb') as file:
      content = file.read()
  except (EOFError, OSError, zlib.error) as e:
    raise VolumeError(f'{path}: cannot be read ({e}). Copy it again.') from e
  length, order = int.from_bytes(content[:4], 'little'), '<'
  if length not in _HEADERS:
    length, order = int.from_bytes(content[:4], 'big'), '>'
  if length not in _HEADERS or len(content) < length:
    raise VolumeError(f'{path}: no NIfTI header. Copy or convert it again.')
  layout = dict(zip(('formats', 'offsets'), _HEADERS[length], strict=True))
  layout = np.dtype({'names': _FIELDS} | layout).newbyteorder(order)
  header = np.frombuffer(content, layout, 1)[0]
  count, *size = header['dim'].tolist()
  size = size[:count] if 1 <= count <= 7 else []
  if len(size) < 3 or min(size) < 1 or any(n != 1 for n in size[3:]):
    raise VolumeError(
      f'{path}: its size is {" x ".join(map(str, size))}; one 3-D volume is'
      ' needed. Take one out of it.'
    )
  spacing = header['pixdim'][1:4]
  if not (np.isfinite(spacing) & (spacing > 0)).all():
    shown = ', '.join(f'{s:g}' for s in spacing)
    raise VolumeError(
      f'{path}: no voxel spacing (pixdim is {shown}): millimetres cannot be'
      ' told; convert the original files again'
    )
  if not header['codes'].any():
    raise VolumeError(
      f'{path}: neither qform nor sform is set: which axis runs from head to'
      ' feet cannot be told; convert the original files again'
    )
  offset = header['offset'].item()
  if not 0 <= offset < _LARGEST_HEADER:
    raise VolumeError(
      f'{path}: its voxels begin at byte {offset:g}; the header is damaged:'
      ' copy the file again'
    )
  voxels = math.prod(size)
  needed = int(offset) + voxels * header['bits'].item() // 8
  if len(content) < needed:
    raise VolumeError(
      f'{path}: {len(content)} of {needed} bytes are there: the file was cut'
      ' short. Copy it again.'
    )
  if kind := _FLOATS.get(header['type'].item()):
    values = np.frombuffer(content, order + kind, voxels, int(offset))
    if bad := values.size - np.isfinite(values).sum():
      raise VolumeError(
        f'{path}: {bad} voxels are NaN or infinite: nothing can be made up for'
        ' them; leave the volume out, or convert the original files again'
      )
