"""Checks a NIfTI file for what its reader would mend silently.

ITK takes a spacing of 0 for 1 mm, and NaN and the missing end of a file for
zeros. None of them was measured.
"""

import gzip
import math
import pathlib
import struct
from typing import IO, Any
import zlib

import numpy as np

from data.ct.errors import VolumeError

# Offset and struct code of what is needed of either version's header.
_FIELDS = {
  348: {
    'dim': (40, '8h'),
    'type': (70, 'h'),
    'bits': (72, 'h'),
    'pixdim': (76, '8f'),
    'offset': (108, 'f'),
    'codes': (252, '2h'),
  },
  540: {
    'dim': (16, '8q'),
    'type': (12, 'h'),
    'bits': (14, 'h'),
    'pixdim': (104, '8d'),
    'offset': (168, 'q'),
    'codes': (344, '2i'),
  },
}
_FLOATS = {16: 'f4', 64: 'f8'}  # By the code of the type.
_BLOCK = 1 << 24
_LARGEST_HEADER = 1 << 26  # Bytes before the voxels, with all extensions.


def check(path: pathlib.Path) -> None:
  """Checks that a file is one whole 3-D volume on a known grid.

  Raises:
    VolumeError: if it is not, or holds NaN or infinity; names the file and what
      is wrong.
  """
  opener = gzip.open if path.name.endswith('.gz') else open
  try:
    with opener(path, 'rb') as file:
      header, order = _header(path, file.read(540))
      if not 0 <= header['offset'] < _LARGEST_HEADER:
        raise VolumeError(
          f'{path}: its voxels begin at byte {header["offset"]:g}; the header'
          ' is damaged: copy the file again'
        )
      _check_grid(path, header)
      file.seek(0)
      before = file.read(int(header['offset']))
      length = len(before) + _check_values(path, header, order, file)
  except (EOFError, OSError, zlib.error) as e:
    raise VolumeError(f'{path}: cannot be read to its end: {e}') from e
  voxels = math.prod(header['dim'][1 : header['dim'][0] + 1])
  needed = int(header['offset']) + voxels * header['bits'] // 8
  if length < needed:
    raise VolumeError(
      f'{path}: {length} of {needed} bytes are there: the file was cut short'
    )


def _check_grid(path: pathlib.Path, header: dict[str, Any]) -> None:
  dim = header['dim']
  count = dim[0] if 1 <= dim[0] <= 7 else 0
  size = dim[1 : 1 + count]
  if count < 3 or min(size) < 1 or any(n != 1 for n in size[3:]):
    raise VolumeError(
      f'{path}: its size is {" x ".join(map(str, size))}; one 3-D volume is'
      ' needed'
    )
  spacing = header['pixdim'][1:4]
  if not all(math.isfinite(s) and s > 0 for s in spacing):
    shown = ', '.join(f'{s:g}' for s in spacing)
    raise VolumeError(
      f'{path}: no voxel spacing (pixdim is {shown}): millimetres cannot be'
      ' told; convert the original files again'
    )
  if not any(header['codes']):
    raise VolumeError(
      f'{path}: neither qform nor sform is set: which axis runs from head to'
      ' feet cannot be told; convert the original files again'
    )


def _check_values(
  path: pathlib.Path, header: dict[str, Any], order: str, file: IO[bytes]
) -> int:
  """Reads to the end; returns how many bytes there were."""
  kind = _FLOATS.get(header['type'])
  length = bad = 0
  while block := file.read(_BLOCK):
    if kind:
      whole = len(block) // int(kind[1]) * int(kind[1])
      values = np.frombuffer(block[:whole], order + kind)
      bad += len(values) - int(np.isfinite(values).sum())
    length += len(block)
  if bad:
    raise VolumeError(
      f'{path}: {bad} voxels are NaN or infinite: nothing can be made up for'
      ' them; leave the volume out, or convert the original files again'
    )
  return length


def _header(path: pathlib.Path, head: bytes) -> tuple[dict[str, Any], str]:
  """The fields of `_FIELDS`, and the byte order."""
  for order in '<>':
    size = struct.unpack(f'{order}i', head[:4])[0] if len(head) > 3 else 0
    if size in _FIELDS and len(head) >= size:
      values = {
        name: struct.unpack_from(order + code, head, at)
        for name, (at, code) in _FIELDS[size].items()
      }
      single = {name: values[name][0] for name in ('type', 'bits', 'offset')}
      return values | single, order
  raise VolumeError(f'{path}: no NIfTI header')
