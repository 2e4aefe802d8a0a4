"""Reads the tensor of a file that torch.save wrote, without torch.

Such a file is a zip archive: `data.pkl` describes the tensor, `data/<key>`
holds its numbers. The description is a pickle, of which only the instructions
and names that a plain tensor takes are let through, and these names stand for
functions of this module: no file can make it run or allocate anything else.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import io
import math
from pathlib import Path
import pickle
import pickletools
import zipfile

import numpy as np

from data import files

_LARGEST_PICKLE = 2**16  # Bytes; a tensor's takes about 200.
_DTYPES = {
  'HalfStorage': 'f2',
  'BFloat16Storage': 'u2',
  'FloatStorage': 'f4',
}
# Of these a tensor's pickle is made; none builds objects but REDUCE, and none
# allocates more than the pickle is long.
_OPCODES = frozenset(
  'PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2'
  ' TUPLE3 BININT BININT1 BININT2 LONG1 BINUNICODE SHORT_BINUNICODE GLOBAL'
  ' STACK_GLOBAL BINPUT MEMOIZE BINGET BINPERSID REDUCE'.split()
)
_OLD = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # Before torch 1.6.


class TorchFileError(ValueError):
  """A file without a plain tensor to read: what is wrong, and what to do."""


@dataclasses.dataclass(frozen=True)
class Description:
  """A tensor as its file describes it, before any number is read.

  Attributes:
    kind: 'HalfStorage', 'BFloat16Storage' or 'FloatStorage'.
    key: name of the numbers in the archive.
    count: of the numbers there.
    offset: of the first element among them.
    shape: of the tensor.
    stride: from one element to the next, in elements, for every axis.
  """

  kind: str
  key: str
  count: int
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]


def describe(path: Path | str) -> Description:
  """Returns shape and type of the tensor in a file.

  Raises:
    TorchFileError: if the file is damaged, older than torch 1.6, holds
      anything but one tensor of 16 or 32 bits, or cannot be read for reasons
      outside it (memory, permissions, disk).
    OSError: if there is no such file.
  """
  with _opened(Path(path)) as (archive, root):
    return _describe(archive, root)


def read(path: Path | str) -> np.ndarray:
  """Returns the tensor in a file; bfloat16 becomes float32, without loss.

  Raises:
    TorchFileError, OSError: as `describe`, or if numbers are missing.
  """
  with _opened(Path(path)) as (archive, root):
    found = _describe(archive, root)
    dtype = np.dtype(_DTYPES[found.kind])
    order = '<'
    if f'{root}byteorder' in archive.namelist():
      order = '>' if _bytes(archive, f'{root}byteorder', 16) == b'big' else '<'
    size = found.count * dtype.itemsize
    content = _bytes(archive, f'{root}data/{found.key}', size)
    if len(content) != size:
      raise TorchFileError(
        f'{found.count} numbers are announced, {len(content)} bytes are there'
      )
    flat = np.frombuffer(content, dtype.newbyteorder(order)).astype(dtype)
    if found.kind == 'BFloat16Storage':
      flat = (flat.astype(np.uint32) << 16).view(np.float32)
    steps = [step * flat.itemsize for step in found.stride]
    return np.lib.stride_tricks.as_strided(
      flat[found.offset :], found.shape, steps
    ).copy()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, str]]:
  """Yields the archive and the folder in it; names the file in all errors."""
  try:
    with path.open('rb') as file:
      if file.read(len(_OLD)) == _OLD:
        raise TorchFileError('it was written by torch before 1.6')
      with zipfile.ZipFile(file) as archive:
        roots = [
          name.removesuffix('data.pkl')
          for name in archive.namelist()
          if name.count('/') == 1 and name.endswith('/data.pkl')
        ]
        if len(roots) != 1:
          raise TorchFileError('it has no data.pkl, or several')
        yield archive, roots[0]
  except FileNotFoundError:
    raise
  except Exception as error:  # Damaged archives raise errors of many kinds.
    if fault := files.outside_fault(error):
      raise TorchFileError(f'{path}: {fault}.') from error
    said = str(error) or type(error).__name__
    raise TorchFileError(
      f'{path}: no tensor that can be read without torch ({said}). Save the'
      ' features alone, as a float32 tensor [N, D], with torch 1.6 or later:'
      ' torch.save(features, path); or use the .h5 file of the slide.'
    ) from error


def _bytes(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
  """Returns a member of at most `limit` bytes, which torch never compresses."""
  info = archive.getinfo(name)
  if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
    raise TorchFileError(f'{name} is compressed, or larger than it should be')
  return archive.read(info)


def _describe(archive: zipfile.ZipFile, root: str) -> Description:
  found = _unpickled(_bytes(archive, f'{root}data.pkl', _LARGEST_PICKLE))
  if not isinstance(found, Description):
    raise TorchFileError(f'it holds {type(found).__name__}, not one tensor')
  whole = all(
    isinstance(n, int) and n >= 0
    for n in (found.count, found.offset, *found.shape, *found.stride)
  )
  if found.kind not in _DTYPES:
    raise TorchFileError(f'its numbers are of type {found.kind}')
  if not whole or len(found.shape) != len(found.stride):
    raise TorchFileError('its shape makes no sense')
  last = found.offset + sum(
    (n - 1) * step for n, step in zip(found.shape, found.stride, strict=True)
  )
  size = math.prod(found.shape)
  # Repeated elements (stride 0) could make it as large as one likes.
  if size > found.count or (size and last >= found.count):
    raise TorchFileError(
      f'its shape {list(found.shape)} takes more than the {found.count} numbers'
      ' that are there'
    )
  return found


class _Unpickler(pickle.Unpickler):
  """Follows a pickle in which names are those of one tensor, or an error."""

  def find_class(self, module: str, name: str):
    match module, name:
      case 'torch._utils', '_rebuild_tensor_v2':
        return _description
      case 'collections', 'OrderedDict':
        return lambda: None  # The hooks of a tensor that has none.
      case 'torch', kind if kind.endswith('Storage'):
        return kind
    raise TorchFileError(f'it asks for {module} {name}')

  def persistent_load(self, label: tuple) -> tuple[str, str, int]:
    """Returns kind, key and count of the numbers that a tensor refers to."""
    _, kind, key, _, count = label
    # Of nested tuples even the text may be endless.
    if not isinstance(kind, str) or not isinstance(key, str | int):
      raise TorchFileError('it names its numbers in an unknown way')
    return kind, str(key), count


def _description(numbers, offset, shape, stride, *_) -> Description:
  """Stands for the function by which torch rebuilds a tensor."""
  return Description(*numbers, offset, tuple(shape), tuple(stride))


def _unpickled(content: bytes) -> object:
  for opcode, _, _ in pickletools.genops(content):
    if opcode.name not in _OPCODES:
      raise TorchFileError(f'{opcode.name} has no place in a tensor')
  return _Unpickler(io.BytesIO(content)).load()
