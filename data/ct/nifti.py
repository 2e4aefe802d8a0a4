"""Reads a NIfTI file, after a look for what ITK would mend silently.

ITK takes a spacing of 0 for 1 mm, and NaN and the missing end of a file for
zeros. None of them was measured. Where pixdim and sform disagree it takes the
lengths of one and the directions of the other; of an sform whose axes are not
at right angles, the directions of qform.
"""

from collections.abc import Iterator
import contextlib
import gzip
import math
import pathlib
import tempfile
from typing import Any
import zlib

import numpy as np
import scipy

from data.ct import VolumeError, check_size, itk_errors, simpleitk

_FIELDS = ('dim', 'type', 'bits', 'pixdim', 'offset', 'codes', 'turn', 'sform')
# Of the headers of both versions, by their size: types and places of `_FIELDS`.
_HEADERS = {
  348: (
    ['8i2', 'i2', 'i2', '8f4', 'f4', '2i2', '3f4', '(3,4)f4'],
    [40, 70, 72, 76, 108, 252, 256, 280],
  ),
  540: (
    ['8i8', 'i2', 'i2', '8f8', 'i8', '2i4', '3f8', '(3,4)f8'],
    [16, 12, 14, 104, 168, 344, 352, 400],
  ),
}
# Of one number per voxel: its bits by the code of the type.
_BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64}
_BITS |= {256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}
# pixdim and sform may differ by this part of either, and sform's axes be off a
# right angle by this cosine.
_SCALES = 0.01
_FLOATS = {16: 'f4', 64: 'f8'}  # By the code of the type.
_LARGEST_HEADER = 1 << 26  # Bytes before the voxels, with all extensions.


def read(path: pathlib.Path, like: int | None = None) -> Any:
  """Reads a file that is one whole 3-D volume on a known grid.

  Args:
    path: .nii or .nii.gz, in small letters or capitals.
    like: of a mask, the voxels of its volume, which it may not exceed.

  Returns:
    A SimpleITK image; a fourth dimension of length 1 is none.

  Raises:
    VolumeError: if it is not, or holds NaN or infinity; names the file and what
      is wrong.
  """
  if not path.is_file():
    raise VolumeError(f'{path}: no such file. Mend its path in the table.')
  if not path.name.lower().endswith(('.nii', '.nii.gz')):
    raise VolumeError(
      f'{path}: neither .nii, .nii.gz nor a folder. Convert it.'
    )
  sitk = simpleitk()
  suffix = check(path, like)
  with itk_errors(f'{path}: cannot be read'), _named(path, suffix) as name:
    image = sitk.ReadImage(str(name), imageIO='NiftiImageIO')
  while image.GetDimension() > 3:
    image = image[..., 0]
  return image


@contextlib.contextmanager
def _named(path: pathlib.Path, suffix: str) -> Iterator[pathlib.Path]:
  """Yields a name of the file for ITK, which takes a .nii beside a .nii.gz."""
  with tempfile.TemporaryDirectory() as folder:
    link = pathlib.Path(folder, f'volume{suffix}')
    link.symlink_to(path.resolve())
    yield link


def check(path: pathlib.Path, like: int | None = None) -> str:
  """Checks the bytes of a file, see `read`; returns how its name should end.

  What its header declares is checked before anything else is read.
  """
  try:
    with path.open('rb') as file:
      packed = file.read(2) == b'\x1f\x8b'
    with gzip.open(path) if packed else path.open('rb') as file:
      content = file.read(max(_HEADERS))
      header, order, voxels = _header(path, content)
      itemsize = header['bits'].item() // 8
      offset = int(header['offset'].item())
      if like is not None and voxels > like:
        raise VolumeError(
          f'{path}: another grid than its volume: {voxels} voxels, not {like}.'
          ' Draw or resample the mask on the grid of its volume.'
        )
      stored = path.stat().st_size if like is None else None
      check_size(path, voxels, itemsize, stored)
      needed = offset + voxels * itemsize
      content += file.read(max(0, needed - len(content)))
      file.read(_LARGEST_HEADER)  # The end of a packed file is its checksum.
  except (EOFError, OSError, zlib.error) as e:
    raise VolumeError(f'{path}: cannot be read ({e}). Copy it again.') from e
  if len(content) < needed:
    raise VolumeError(
      f'{path}: {len(content)} of {needed} bytes are there: the file was cut'
      ' short. Copy it again.'
    )
  if kind := _FLOATS.get(header['type'].item()):
    values = np.frombuffer(content, order + kind, voxels, offset)
    if bad := values.size - np.isfinite(values).sum():
      raise VolumeError(
        f'{path}: {bad} voxels are NaN or infinite: nothing can be made up for'
        ' them. Leave the volume out, or convert the original files again.'
      )
  return '.nii.gz' if packed else '.nii'


def _header(path: pathlib.Path, content: bytes) -> tuple[np.void, str, int]:
  """Returns a header without a fault, its byte order and number of voxels."""
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
      f'{path}: its size is {" x ".join(map(str, size)) or "unknown"}. One 3-D'
      ' volume is needed. Take one out of it.'
    )
  kind, bits = header['type'].item(), header['bits'].item()
  if _BITS.get(kind) != bits:
    raise VolumeError(
      f'{path}: its voxels are of type {kind} with {bits} bits: several values'
      ' per voxel, or none that is a number. One is needed.'
    )
  spacing = header['pixdim'][1:4]
  if not (np.isfinite(spacing) & (spacing > 0)).all():
    shown = ', '.join(f'{s:g}' for s in spacing)
    raise VolumeError(
      f'{path}: no voxel spacing (pixdim is {shown}), so that sizes are'
      ' unknown. Convert the original files again.'
    )
  if not (header['codes'] > 0).any():
    raise VolumeError(
      f'{path}: neither qform nor sform is set: which axis runs from head to'
      ' feet is unknown. Convert the original files again.'
    )
  if fault := _contradiction(header):
    raise VolumeError(f'{path}: {fault}. Convert the original files again.')
  offset = header['offset'].item()
  if not 0 <= offset < _LARGEST_HEADER:
    raise VolumeError(
      f'{path}: its voxels begin at byte {offset:g}. The header is damaged:'
      ' copy the file again.'
    )
  return header, order, math.prod(size)


def _contradiction(header: np.void) -> str | None:
  """In what sform contradicts pixdim or itself, or qform by a turn."""
  by_qform, by_sform = header['codes'] > 0
  columns = header['sform'][:, :3].astype(float)
  if not by_sform or not columns.any():  # ITK takes qform, or refuses it.
    return None
  spacing = header['pixdim'][1:4].astype(float)
  scales = np.linalg.norm(columns, axis=0)
  if not np.allclose(scales, spacing, rtol=_SCALES, atol=0):
    shown = (' x '.join(f'{s:.4g}' for s in some) for some in (spacing, scales))
    return (
      f'its voxel spacing is {next(shown)} mm by pixdim and {next(shown)} mm by'
      ' sform'
    )
  columns /= scales
  if np.abs(columns.T @ columns - np.eye(3)).max() > _SCALES:
    return 'its axes are not at right angles by sform, as of a tilted gantry'
  x, y, z = turn = header['turn'].astype(float)
  if not by_qform or not np.abs(turn).max() <= 1:
    return None
  w = math.sqrt(max(0, 1 - x * x - y * y - z * z))
  axes = scipy.spatial.transform.Rotation.from_quat((x, y, z, w)).as_matrix()
  axes[:, 2] *= -1 if header['pixdim'][0] < 0 else 1
  if np.abs(axes - columns).max() > 0.5:
    return 'qform and sform turn its axes differently'
  return None
