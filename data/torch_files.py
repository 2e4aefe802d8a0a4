"""Reads the tensor of a file that torch.save wrote, without torch.

Such a file is a zip archive: `data.pkl` describes the tensor, `data/<key>`
holds its numbers. The description is a pickle, of which only the instructions
and names that a plain tensor takes are let through, and these names stand for
functions of this module: no file can make it run or allocate anything else.
"""

from collections.abc import Callable, Iterator
import contextlib
import io
import math
from pathlib import Path
import pickle
import pickletools
from typing import NamedTuple
import zipfile

import numpy as np

_LARGEST_PICKLE = 2**16  # Bytes; a tensor's takes about 200.
_DTYPES = {
  'HalfStorage': 'f2',
  'BFloat16Storage': 'u2',
  'FloatStorage': 'f4',
  'DoubleStorage': 'f8',
}
# Of these a tensor's pickle is made; none builds objects but REDUCE, and none
# allocates more than the pickle is long.
_OPCODES = frozenset(
  'PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2'
  ' TUPLE3 BININT BININT1 BININT2 LONG1 BINUNICODE SHORT_BINUNICODE GLOBAL'
  ' STACK_GLOBAL BINPUT MEMOIZE BINGET BINPERSID REDUCE'.split()
)


class Tensor:
  """The tensor in a file, whose numbers `[()]` reads, as an h5py.Dataset's.

  Attributes:
    shape: of the tensor.
    dtype: float16, float64, or float32, which bfloat16 becomes without loss.
  """

  def __init__(self, path: Path):
    """Reads what the file says of its tensor.

    Raises:
      ValueError: saying why, if the file holds anything but one tensor of 16,
        32 or 64 bits.
      Exception: of many kinds, if it is damaged or cannot be read.
    """
    self._path = path
    with _opened(path) as member:
      layout = _unpickled(member('data.pkl', _LARGEST_PICKLE))
    if not isinstance(layout, _Layout):
      raise ValueError(f'it holds {type(layout).__name__}, not one tensor')
    self._layout, self.shape = layout, layout.shape
    kind = _DTYPES[layout.kind]
    self.dtype = np.dtype('f4' if kind == 'u2' else kind)

  def __getitem__(self, everything: tuple[()]) -> np.ndarray:
    """Returns the numbers; raises as `__init__`, or if some are missing."""
    layout, big = self._layout, False
    dtype = np.dtype(_DTYPES[layout.kind])
    size = layout.count * dtype.itemsize
    with _opened(self._path) as member:
      content = member(f'data/{layout.key}', size)
      with contextlib.suppress(KeyError):  # There is none before torch 2.1.
        big = member('byteorder', 16) == b'big'
    if len(content) != size:
      raise ValueError(
        f'{layout.count} numbers are announced, {len(content)} bytes are there'
      )
    flat = np.frombuffer(content, dtype.newbyteorder('>' if big else '<'))
    flat = flat.astype(dtype)
    if layout.kind == 'BFloat16Storage':
      flat = (flat.astype(np.uint32) << 16).view(np.float32)
    steps = [step * flat.itemsize for step in layout.stride]
    return np.lib.stride_tricks.as_strided(
      flat[layout.offset :], self.shape, steps
    ).copy()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Callable[[str, int], bytes]]:
  """Yields what returns a member of the archive of at most so many bytes."""
  with zipfile.ZipFile(path) as archive:
    roots = [
      name.removesuffix('data.pkl')
      for name in archive.namelist()
      if name.count('/') == 1 and name.endswith('/data.pkl')
    ]
    if len(roots) != 1:
      raise ValueError('it has no data.pkl, or several')

    def member(name: str, limit: int) -> bytes:
      info = archive.getinfo(roots[0] + name)
      # torch never compresses.
      if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
        raise ValueError(f'{name} is compressed, or larger than it should be')
      return archive.read(info)

    yield member


class _Layout(NamedTuple):
  """A tensor as its file describes it."""

  kind: str  # A key of _DTYPES.
  key: str  # Name of the numbers in the archive.
  count: int  # Of the numbers there.
  offset: int  # Of the first element among them.
  shape: tuple[int, ...]
  stride: tuple[int, ...]  # Elements from one to the next along every axis.


def _layout(numbers, offset, shape, stride, *_) -> _Layout:
  """Stands for the function by which torch rebuilds a tensor."""
  tensor = _Layout(*numbers, offset, tuple(shape), tuple(stride))
  sizes = (tensor.count, tensor.offset, *tensor.shape, *tensor.stride)
  whole = all(isinstance(n, int) and n >= 0 for n in sizes)
  if not whole or len(tensor.shape) != len(tensor.stride):
    raise ValueError('its shape makes no sense')
  last = tensor.offset + sum(
    (n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True)
  )
  size = math.prod(tensor.shape)
  # Repeated elements (stride 0) could make it as large as one likes.
  if size > tensor.count or (size and last >= tensor.count):
    raise ValueError(
      f'its shape {list(tensor.shape)} takes more than the {tensor.count}'
      ' numbers that are there'
    )
  return tensor


class _Unpickler(pickle.Unpickler):
  """Follows a pickle in which names are those of one tensor, or an error."""

  def find_class(self, module: str, name: str):
    match module, name:
      case 'torch._utils', '_rebuild_tensor_v2':
        return _layout
      case 'collections', 'OrderedDict':
        return lambda: None  # The hooks of a tensor that has none.
      case 'torch', kind if kind.endswith('Storage'):
        return kind
    raise ValueError(f'it asks for {module} {name}')

  def persistent_load(self, label: tuple) -> tuple[str, str, int]:
    """Returns kind, key and count of the numbers that a tensor refers to."""
    _, kind, key, _, count = label
    # Of nested tuples even the text may be endless.
    if not isinstance(kind, str) or not isinstance(key, str | int):
      raise ValueError('it names its numbers in an unknown way')
    if kind not in _DTYPES:
      raise ValueError(f'its numbers are of type {kind}')
    return kind, str(key), count


def _unpickled(content: bytes) -> object:
  for opcode, _, _ in pickletools.genops(content):
    if opcode.name not in _OPCODES:
      raise ValueError(f'{opcode.name} has no place in a tensor')
  return _Unpickler(io.BytesIO(content)).load()
