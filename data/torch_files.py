"""Reads files that torch.save wrote, without torch.

Since torch 1.6 such a file is a zip archive: `data.pkl` describes what it
holds, `data/<key>` are the numbers of a tensor. Before, the description and the
numbers stood one after the other. The description is a pickle, of which only
the instructions and names that named tensors take are let through, and these
names stand for objects of this module: no file can make it run or allocate
anything else.
"""

from collections.abc import Callable
import dataclasses
import io
import math
import pathlib
import pickle
import pickletools
from typing import Any, BinaryIO, ClassVar, NamedTuple
import zipfile

import numpy as np

_LARGEST_PICKLE = 2**23  # Bytes; a tensor takes about 200 of them.
_MOST_ARGUMENTS, _MOST_AXES = 8, 64
_DTYPES = {
  'HalfStorage': 'f2',
  'BFloat16Storage': 'u2',
  'FloatStorage': 'f4',
  'DoubleStorage': 'f8',
  'LongStorage': 'i8',
  'IntStorage': 'i4',
}
# None builds objects but REDUCE, and none allocates more than the pickle is
# long.
_OPCODES = frozenset(
  'PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2'
  ' TUPLE3 BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE'
  ' GLOBAL STACK_GLOBAL BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET BINPERSID'
  ' REDUCE BUILD EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS'.split()
)
_OLD_MAGIC = 0x1950A86A20F9469CFC6C  # The first pickle before torch 1.6.


class Storage(NamedTuple):
  """Numbers in a file."""

  kind: str  # A key of _DTYPES.
  key: str  # Their name.
  count: int

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(_DTYPES[self.kind])


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file, whose numbers `[()]` reads, as an h5py.Dataset's."""

  storage: Storage
  offset: int  # Of the first element among the numbers.
  shape: tuple[int, ...]
  stride: tuple[int, ...]  # Elements from one to the next along every axis.
  # Of a storage, the bytes; and whether the first of a number is the highest.
  read: Callable[[Storage], tuple[bytes, bool]]

  def __post_init__(self):
    """Raises ValueError if it takes other numbers than it has."""
    if not isinstance(self.storage, Storage):
      raise ValueError('it has no numbers')
    count = self.storage.count
    sizes = (count, self.offset, *self.shape, *self.stride)
    if not all(isinstance(n, int) and n >= 0 for n in sizes):
      raise ValueError('its shape makes no sense')
    last = self.offset + sum(
      (n - 1) * step for n, step in zip(self.shape, self.stride, strict=True)
    )
    size = math.prod(self.shape)
    # Repeated elements (stride 0) could make it as large as one likes.
    if size > count or (size and last >= count):
      raise ValueError(
        f'its shape {list(self.shape)} takes more than the {count}'
        ' numbers that are there'
      )

  @property
  def dtype(self) -> np.dtype:
    """The type of the numbers; float32 of bfloat16, without loss."""
    own = self.storage.dtype
    return np.dtype('f4') if own.kind == 'u' else own

  def __getitem__(self, everything: tuple[()]) -> np.ndarray:
    """Returns the numbers.

    Raises:
      ValueError: if some are missing.
      Exception: of many kinds, if the file is damaged.
    """
    storage = self.storage
    content, big = self.read(storage)
    if len(content) != storage.count * storage.dtype.itemsize:
      raise ValueError(
        f'{storage.count} numbers are announced, {len(content)} bytes are there'
      )
    there = storage.dtype.newbyteorder('>' if big else '<')
    flat = np.frombuffer(content, there).astype(storage.dtype)
    if flat.dtype.kind == 'u':
      flat = (flat.astype(np.uint32) << 16).view(np.float32)
    steps = [step * flat.itemsize for step in self.stride]
    return np.lib.stride_tricks.as_strided(
      flat[self.offset :], self.shape, steps
    ).copy()


def load(path: pathlib.Path) -> Any:
  """Returns what a file holds: a `Tensor`, or dicts of tensors by name.

  Numbers, texts and lists may be among them.

  Raises:
    ValueError: saying why, if it holds anything else.
    Exception: of many kinds, if it is damaged or cannot be read.
  """
  with path.open('rb') as file:
    if zipfile.is_zipfile(file):
      return _of_archive(path)
    file.seek(0)
    return _of_pickles(path, file)


def _of_archive(path: pathlib.Path) -> Any:
  def read(storage):
    size = storage.count * storage.dtype.itemsize
    with path.open('rb') as file, zipfile.ZipFile(file) as archive:
      root = _root(archive)
      content = _member(archive, f'{root}data/{storage.key}', size)
      big = f'{root}byteorder' in archive.namelist() and (
        _member(archive, f'{root}byteorder', 16) == b'big'
      )
    return content, big

  with path.open('rb') as file, zipfile.ZipFile(file) as archive:
    name = f'{_root(archive)}data.pkl'
    description = _member(archive, name, _LARGEST_PICKLE)
  return _unpickled(io.BytesIO(description), read)


def _root(archive: zipfile.ZipFile) -> str:
  roots = [
    name.removesuffix('data.pkl')
    for name in archive.namelist()
    if name.count('/') == 1 and name.endswith('/data.pkl')
  ]
  if len(roots) != 1:
    raise ValueError('it has no data.pkl, or several')
  return roots[0]


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
  """Returns a member of at most so many bytes."""
  info = archive.getinfo(name)
  # torch never compresses.
  if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
    raise ValueError(f'{name} is compressed, or larger than it should be')
  return archive.read(info)


def _of_pickles(path: pathlib.Path, file: BinaryIO) -> Any:
  """Returns what a file from before torch 1.6 holds."""
  if _unpickled(file) != _OLD_MAGIC:
    raise ValueError('it is neither an archive nor a pickle of torch')
  _unpickled(file)  # The version of the format.
  system, starts = _unpickled(file), _Dict()

  def read(storage):
    with path.open('rb') as file:
      file.seek(starts[storage.key])
      size = storage.count * storage.dtype.itemsize
      return file.read(size), not system['little_endian']

  storages: dict[str, Storage] = {}
  content = _unpickled(file, read, storages)
  for key in _unpickled(file):
    count = int.from_bytes(file.read(8), 'little')
    starts[key] = file.tell()
    file.seek(count * storages[key].dtype.itemsize, io.SEEK_CUR)
  return content


class _Dict(dict):
  """A dict whose keys are texts or numbers, and which starts empty.

  To hash nested tuples may take forever, or crash.
  """

  def __init__(self) -> None:
    super().__init__()

  def __setitem__(self, key: Any, value: Any) -> None:
    if not isinstance(key, str | int):
      raise ValueError('it has a key that is no name')
    super().__setitem__(key, value)


# In Python, whose instructions can be replaced.
class _Unpickler(pickle._Unpickler):
  """Follows a pickle in which names are those of tensors, or an error."""

  dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

  def __init__(
    self,
    file: BinaryIO,
    tensor: Callable[..., Any],
    storages: dict[str, Storage],
  ):
    super().__init__(file)
    self._tensor, self._storages = tensor, storages

  def load_empty_dict(self) -> None:
    self.append(_Dict())

  dispatch[pickle.EMPTY_DICT[0]] = load_empty_dict

  def load_reduce(self) -> None:
    # A long tuple would be copied by each of many calls.
    if len(self.stack[-1]) > _MOST_ARGUMENTS:
      raise ValueError('it gives a tensor too many arguments')
    super().load_reduce()

  dispatch[pickle.REDUCE[0]] = load_reduce

  def load_build(self) -> None:
    self.stack.pop()  # Attributes, which are dropped.
    if not isinstance(self.stack[-1], _Dict):
      raise ValueError('it gives attributes to what has none')

  dispatch[pickle.BUILD[0]] = load_build

  def find_class(self, module: str, name: str) -> Any:
    match module, name:
      case 'torch._utils', '_rebuild_tensor_v2':
        return self._tensor
      case 'torch._utils', '_rebuild_parameter':
        return lambda tensor, *_: tensor
      case 'collections', 'OrderedDict':
        return _Dict
      case 'torch', kind if kind.endswith('Storage'):
        return kind
    raise ValueError(f'it asks for {module} {name}')

  def persistent_load(self, label: tuple) -> Storage:
    """Returns the numbers that a tensor refers to."""
    if len(label) == 6 and label[5] is None:  # No part of others' numbers.
      label = label[:5]
    match label:
      # Of nested tuples even the text may be endless.
      case [_, str(kind), str() | int() as key, _, count]:
        storage = Storage(kind, str(key), count)
      case _:
        raise ValueError('it names its numbers in an unknown way')
    if kind not in _DTYPES:
      raise ValueError(f'its numbers are of type {kind}')
    return self._storages.setdefault(storage.key, storage)


def _unpickled(
  file: BinaryIO,
  read: Callable[[Storage], tuple[bytes, bool]] | None = None,
  storages: dict[str, Storage] | None = None,
) -> Any:
  """Returns what the next pickle of a file holds.

  Args:
    file: stands at its start, and at its end afterwards.
    read: of the tensors.
    storages: to which those of the tensors are added.
  """
  start = file.tell()
  description = io.BytesIO(file.read(_LARGEST_PICKLE))
  for opcode, _, _ in pickletools.genops(description):
    if opcode.name not in _OPCODES:
      raise ValueError(f'{opcode.name} has no place in tensors')
  file.seek(start + description.tell())
  description.seek(0)

  def tensor(storage, offset, shape, stride, *_):
    if len(shape) > _MOST_AXES or len(shape) != len(stride):
      raise ValueError('its shape makes no sense')
    return Tensor(storage, offset, tuple(shape), tuple(stride), read)

  return _Unpickler(
    description, tensor, {} if storages is None else storages
  ).load()
