"""Files made to do harm: bombs, links, code, nesting.

`FILES` has, by name, the reader that is given one, and what puts it in the
place of a sound file.
"""

import gzip
import io
import pathlib
import pickle
import re
import struct
import zipfile

import h5py
import numpy as np
import reader_fuzz_test as samples
from readers import READERS
import torch
import torch_files_test as tensors

_SLIDE = '0-001.x'
_RUN = 'kmil_s1'
_BIG = 2**40


def _features(path: pathlib.Path, kind: str) -> None:
  """Writes an HDF5 file whose features are elsewhere, or far too many."""
  other, shape = path.with_name('other'), (4, 16)
  np.ones(64, np.float32).tofile(other)
  path.unlink()
  with h5py.File(path, 'w') as file:
    file['coords'] = np.zeros((4, 2), np.int32)
    match kind:
      case 'external':
        raw = [(str(other), 0, 256)]
        file.create_dataset('features', shape, 'f4', external=raw)
      case 'virtual':
        layout = h5py.VirtualLayout(shape, 'f4')
        layout[:] = h5py.VirtualSource(other, 'x', shape)
        file.create_virtual_dataset('features', layout)
      case 'link':
        file['features'] = h5py.ExternalLink(str(other), 'x')
      case 'circle':
        file['features'] = h5py.SoftLink('/features')
      case 'bomb':
        pieces = {'chunks': (2**22, 64), 'compression': 'gzip'}
        rows = file.create_dataset('features', (2**24, 64), 'f4', **pieces)
        for i in range(4):
          rows.id.write_direct_chunk((i * 2**22, 0), b'x' * 1000)
        del file['coords']
      case 'claim':
        file.create_dataset('features', (2**38, 1024), 'f4')
        del file['coords']


def _into(name: str, content, *args):
  """Returns what puts a content, or what a function returns, into a file."""

  def spoil(folder):
    path = folder / name
    path.write_bytes(content(*args) if args else content)
    return {'file': name, 'kind': 'hostile'}

  return spoil


def _by(write, pattern: str, *args):
  """Returns what calls a function with the first file of a pattern."""

  def spoil(folder):
    path = min(folder.glob(pattern))
    write(path, *args)
    return {'file': path.relative_to(folder).as_posix(), 'kind': 'hostile'}

  return spoil


def _scores(path: pathlib.Path, kind: str) -> None:
  """Writes tile scores that are elsewhere, or far too many."""
  with h5py.File(path, 'a') as file:
    other = path.with_name('other')
    with h5py.File(other, 'w') as second:
      file.copy('attention', second)
    del file['attention']
    if kind == 'link':
      file['attention'] = h5py.ExternalLink(str(other), 'attention')
    else:
      file.create_dataset('attention', (2**26, 6), 'f4')


def _zip(names: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', method) as archive:
    for name, content in names.items():
      archive.writestr(name, content)
  return file.getvalue()


def _tiles(content: bytes) -> bytes:
  return _zip({f'{i:03}.png': content for i in range(12)})


def _png(width: int, height: int) -> bytes:
  """Returns a picture that claims to be larger than it is."""
  sound = samples.mask()
  head = b'IHDR' + struct.pack('>2I', width, height) + sound[24:29]
  return sound[:12] + head + struct.pack('>I', zipfile.crc32(head)) + sound[33:]


def _volume(*sides: int) -> bytes:
  content = bytearray(samples.volume())
  struct.pack_into('<8h', content, 40, 3, *sides, 1, 1, 1, 1)
  return gzip.compress(bytes(content) + bytes(2**20))


def _dicom(path: pathlib.Path) -> None:
  """Makes a slice claim 65535 rows and columns."""
  content = path.read_bytes()
  for tag in b'(\0\x10\0\2\0\0\0', b'(\0\x11\0\2\0\0\0':
    at = content.index(tag) + len(tag)
    content = content[:at] + b'\xff\xff' + content[at + 2 :]
  path.write_bytes(content)


def _slide(path: pathlib.Path) -> None:
  """Makes a slide claim billions of pixels."""
  content = path.read_bytes()
  for tag in b'\0\1', b'\1\1':  # Width and height.
    large = tag + b'\4\0\1\0\0\0\xff\xff\xff\x7f'
    content = re.sub(
      tag + b'[\3\4]\0\1\0\0\0....', large, content, flags=re.DOTALL
    )
  path.write_bytes(content)


class _Trap:
  """Ends the process that unpickles it."""

  def __reduce__(self):
    import os

    return os._exit, (7,)


def _pickled(path: pathlib.Path) -> None:
  torch.save({'w': _Trap()}, path)


_DEEP = b'[' * 100_000 + b']' * 100_000
_SCORES = f'{_RUN}/fold_*/attention/*.h5'
_TENSOR = f'tensors/{_SLIDE}.pt'
_MASK = 'masks/test_001_mask_level5.png'
_LARGE = 2**30 - 1, 2**30 - 1
_TRAP = pickle.dumps(_Trap())
_HEADER = b'{"w":{"dtype":"F32","shape":[9]}}'
_HARM = [
  *(
    (f'CLAM {kind}', _by(_features, f'features/{_SLIDE}.h5', kind))
    for kind in ('external', 'virtual', 'link', 'circle', 'bomb', 'claim')
  ),
  ('CLAM labels', _into('labels.csv', b'a,' * 10**7)),
  ('CLAM quotes', _into('labels.csv', b'"' * 10**7)),
  ('tile scores claim', _by(_scores, _SCORES, 'claim')),
  ('tile scores link', _by(_scores, _SCORES, 'link')),
  ('tensors pickle', _into(_TENSOR, _TRAP)),
  ('tensors trap', _by(_pickled, _TENSOR)),
  ('tensors nested', _into(_TENSOR, tensors.archive, tensors.NESTED)),
  (
    'tensors claim',
    _into(_TENSOR, tensors.archive, tensors.tensor(_BIG, 0, (1, 16), (16, 1))),
  ),
  ('tensors bomb', _into(_TENSOR, _zip, {'a/data.pkl': bytes(2**28)})),
  ('weights trap', _by(_pickled, 'weights.pth')),
  ('weights pickle', _into('weights.pth', _TRAP)),
  ('weights bomb', _into('weights.pth', _zip, {'a/data.pkl': bytes(2**28)})),
  (
    'weights claim',
    _into('weights.safetensors', struct.pack('<Q', 2**62) + _HEADER),
  ),
  ('export bomb', _into('model.kmil', _zip, {'card.json': bytes(2**28)})),
  ('export nested', _into('model.kmil', _zip, {'card.json': _DEEP}, 0)),
  ('models config', _into(f'{_RUN}/config.json', _DEEP)),
  ('models summary', _into(f'{_RUN}/summary.json', _DEEP)),
  ('report nested', _into(f'{_RUN}/summary.json', _DEEP)),
  ('outlines entities', _into('outlines/two.xml', samples.bomb())),
  ('outlines nested', _into('outlines/one.geojson', _DEEP)),
  ('outlines deep', _into('outlines/two.xml', b'<a>' * 10**5)),
  ('volumes claim', _into('raw.nii', _volume, 32767, 32767, 32767)),
  ('volumes bomb', _into('p0_image.nii.gz', _volume, 2000, 2000, 99)),
  ('volumes mask', _into('p0_mask.nii.gz', _volume, 2000, 2000, 99)),
  ('volumes gzip', _into('p0_image.nii.gz', gzip.compress, bytes(2**29), 1)),
  ('DICOM claim', _by(_dicom, 'series/*')),
  ('tiles zip bomb', _into('tiles.zip', _tiles, bytes(2**26))),
  ('tiles zip claim', _into('tiles.zip', _tiles, _png(*_LARGE))),
  ('tile folders claim', _into('annotated/pos/p0_1.png', _png, *_LARGE)),
  ('images claim', _into('images/00.png', _png, 30_000, 30_000)),
  ('lesions claim', _into(_MASK, _png, 30_000, 30_000)),
  ('slides claim', _by(_slide, 'slides/b.tiff')),
]
FILES = {
  name: (next(r for r in READERS if name.startswith(r)), spoil)
  for name, spoil in _HARM
}
