"""Files made to do harm: bombs, links, code, nesting.

`FILES` has, by name, the reader that is given one, and what puts it in the
place of a sound file.
"""

from collections.abc import Callable
import io
import pathlib
import pickle
import struct
import zipfile

import h5py
import numpy as np
import reader_fuzz_test as fuzz
from readers import READERS, RUN
import torch
import torch_files_test as tensors


class Trap:
  """Ends the process that unpickles it."""

  def __reduce__(self):
    return pathlib.os._exit, (7,)


def write_features(path: pathlib.Path, name: str, kind: str) -> None:
  """Writes a dataset that lies elsewhere, or is far larger than its file."""
  other, shape = path.with_name('other'), (4, 16)
  np.ones(64, np.float32).tofile(other)
  with h5py.File(path, 'a') as file:
    del file[name]
    match kind:
      case 'external':
        raw = [(str(other), 0, 256)]
        file.create_dataset(name, shape, 'f4', external=raw)
      case 'virtual':
        layout = h5py.VirtualLayout(shape, 'f4')
        layout[:] = h5py.VirtualSource(other, 'x', shape)
        file.create_virtual_dataset(name, layout)
      case 'link':
        file[name] = h5py.ExternalLink(str(other), 'x')
      case 'circle':
        file[name] = h5py.SoftLink(f'/{name}')
      case 'claim':
        file.create_dataset(name, (2**26, 6), 'f4')
      case 'bomb':
        pieces = {'chunks': (2**22, 64), 'compression': 'gzip'}
        rows = file.create_dataset(name, (2**24, 64), 'f4', **pieces)
        for i in range(4):
          rows.id.write_direct_chunk((i * 2**22, 0), b'x' * 1000)
        file.pop('coords', None)


def zipped(name: str, content: bytes, method=zipfile.ZIP_DEFLATED) -> bytes:
  """Returns an archive, of twelve files if the name has a place for one."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', method) as archive:
    for name in dict.fromkeys(name.format(i) for i in range(12)):
      archive.writestr(name, content)
  return file.getvalue()


def claiming(width: int, height: int) -> bytes:
  """Returns a picture that says that it is larger than it is."""
  sound = fuzz.mask()
  head = b'IHDR' + struct.pack('>2I', width, height) + sound[24:29]
  crc = struct.pack('>I', zipfile.crc32(head))
  return sound[:12] + head + crc + sound[33:]


def put(name: str, content: bytes | Callable, *args) -> Callable:
  """Returns what puts a content, or what a function returns, into a file."""

  def spoil(folder):
    (folder / name).write_bytes(content(*args) if args else content)

  return spoil


def by(write: Callable, pattern: str, *args) -> Callable:
  """Returns what calls a function with the first file of a pattern."""
  return lambda folder: write(min(folder.glob(pattern)), *args)


def trap(path: pathlib.Path) -> None:
  torch.save({'w': Trap()}, path)


_DEEP = b'[' * 100_000 + b']' * 100_000
_SLIDE = '0-001.x'
_SCORES = f'{RUN}/fold_*/attention/*.h5'
_TENSOR = f'tensors/{_SLIDE}.pt'
_MASK = 'masks/test_001_mask_level5.png'
_HARM = {
  **{
    f'CLAM {kind}': by(
      write_features, f'features/{_SLIDE}.h5', 'features', kind
    )
    for kind in ('external', 'virtual', 'link', 'circle', 'claim', 'bomb')
  },
  **{
    f'tile scores {kind}': by(write_features, _SCORES, 'attention', kind)
    for kind in ('external', 'virtual', 'link', 'circle', 'claim', 'bomb')
  },
  'CLAM labels': put('labels.csv', b'a,' * 10**7),
  'CLAM quotes': put('labels.csv', b'"' * 10**7),
  'tensors pickle': put(_TENSOR, pickle.dumps(Trap())),
  'tensors trap': by(trap, _TENSOR),
  'tensors nested': put(_TENSOR, tensors.archive, tensors.NESTED),
  'tensors claim': put(
    _TENSOR, tensors.archive, tensors.tensor(2**40, 0, (1, 16), (16, 1))
  ),
  'tensors bomb': put(_TENSOR, zipped, 'a/data.pkl', bytes(2**28)),
  'weights pickle': put('weights.pth', pickle.dumps(Trap())),
  'weights trap': by(trap, 'weights.pth'),
  'weights bomb': put('weights.pth', zipped, 'a/data.pkl', bytes(2**28)),
  'weights claim': put('weights.safetensors', struct.pack('<Q', 2**62) + b'{}'),
  'export bomb': put('model.kmil', zipped, 'card.json', bytes(2**28)),
  'export nested': put('model.kmil', zipped, 'card.json', _DEEP, 0),
  'models config': put(f'{RUN}/config.json', _DEEP),
  'models summary': put(f'{RUN}/summary.json', _DEEP),
  'report nested': put(f'{RUN}/summary.json', _DEEP),
  'outlines entities': put('outlines/two.xml', fuzz.bomb()),
  'outlines nested': put('outlines/one.geojson', _DEEP),
  'outlines deep': put('outlines/two.xml', b'<a>' * 10**5),
  'tiles zip bomb': put('tiles.zip', zipped, '{:03}.png', bytes(2**26)),
  'tiles zip claim': put(
    'tiles.zip', zipped, '{:03}.png', claiming(2**30, 2**30)
  ),
  'tile folders claim': put('annotated/pos/p0_1.png', claiming, 2**30, 2**30),
  'images claim': put('images/00.png', claiming, 30_000, 30_000),
  'lesions claim': put(_MASK, claiming, 30_000, 30_000),
}
FILES = {
  name: (next(r for r in READERS if name.startswith(r)), spoil)
  for name, spoil in _HARM.items()
}
