"""Turns what a command wrote into plain values that can be compared."""

import csv
import hashlib
import io
import json
import pathlib
import re
import struct
import zipfile

import h5py
import numpy as np
from PIL import Image

# What legitimately differs from one call to the next.
_VARIES = re.compile(
  r'(^|[_ ])(second|seconds|ms|time|times|memory|peak)([_ ]|$)'
  r'|^made_by$|^exported_by$|^versions$|^commit$|^command$|^machine$'
)
_HASH = re.compile(r'(?<![\w.])(?:[0-9a-f]{16}|[0-9a-f]{64})\b')
_CODE = re.compile(r'-[0-9a-f]{8}\b')  # Eight digits of a hash of the code.
_NUMBER = re.compile(r'(?<![\w.])[+-]?\d[\d,]*\.?\d*(?:[eE][+-]?\d+)?(?![\w.])')
_FULL = 64  # Values of an array that are kept one by one.
# Inputs and caches are not what a command is for.
_IGNORED = ('cache', '.matplotlib')


def snapshot(folder: pathlib.Path) -> dict[str, str]:
  """Returns a hash of every file below a folder, by relative path."""
  hashes = {}
  for path in sorted(folder.rglob('*')):
    name = path.relative_to(folder).as_posix()
    if path.is_file() and name.split('/')[0] not in _IGNORED:
      hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  return hashes


def changed(folder: pathlib.Path, before: dict[str, str]) -> dict:
  """Returns records of the files that are new or differ, by path."""
  records = {}
  after = snapshot(folder)
  for name, digest in after.items():
    if before.get(name) != digest:
      place = _place(name)
      if place not in records:
        records[place] = read(folder / name, folder)
  for name in sorted(before.keys() - after.keys()):
    place = _place(name)
    if not any(_place(other) == place for other in after):
      records[place] = {'kind': 'removed'}
  return dict(sorted(records.items()))


def _place(name: str) -> str:
  """Names a file; those whose names are drawn share the name of a folder."""
  checkpoint = re.match(r'(.*checkpoints)/', name)
  if checkpoint:
    return checkpoint[1]
  tile = re.match(r'(.*topk/.*_\d+)_-?\d+\.\d+\.png$', name)
  if tile:  # Its score, which may round otherwise.
    return f'{tile[1]}_<score>.png'
  folder, _, last = name.rpartition('/')
  return f'{folder}/events' if last.startswith('events.out') else name


def read(path: pathlib.Path, folder: pathlib.Path) -> dict:
  """Returns the record of a file: its kind, and its values as plain ones."""
  name = path.relative_to(folder).as_posix()
  if _place(name) != name and path.suffix != '.png':  # A name that is drawn.
    return {'kind': 'present'}
  readers = {
    '.csv': _csv,
    '.json': _json,
    '.geojson': _json,
    '.jsonl': _jsonl,
    '.h5': _h5,
    '.npy': _npy,
    '.npz': _npz,
    '.png': _png,
    '.safetensors': _safetensors,
    '.kmil': _zip,
    '.md': _text,
  }
  reader = readers.get(path.suffix)
  if reader is None:
    return {'kind': 'present', 'empty': path.stat().st_size == 0}
  try:
    values = reader(path)
  except Exception as fault:  # That it cannot be read is what is recorded.
    values = {'unreadable': type(fault).__name__}
  return {'kind': path.suffix[1:], **plain(values, folder)}


def plain(values, folder: pathlib.Path):
  """Drops what varies, and puts names in place of paths and hashes."""
  if isinstance(values, dict):
    return {
      str(key): plain(value, folder)
      for key, value in values.items()
      if not _VARIES.search(str(key))
    }
  if isinstance(values, list | tuple):
    return [plain(value, folder) for value in values]
  if isinstance(values, np.generic):
    return plain(values.item(), folder)
  if isinstance(values, bytes):
    return plain(values.decode('utf-8', 'replace'), folder)
  if isinstance(values, str):
    values = values.replace(str(folder), '<folder>')
    return _CODE.sub('-<code>', _HASH.sub('<sha256>', values))
  if values is None or isinstance(values, bool | int | float):
    return values
  return str(values)


def numbers(text: str) -> list[list[str]]:
  """Returns the numbers of every row of a printed table, as they are written.

  A row has gaps between its columns; a sentence has none.
  """
  lines = (line.strip() for line in text.splitlines())
  rows = (_NUMBER.findall(line) for line in lines if '  ' in line)
  return [row for row in rows if row]


def printed(text: str, folder: pathlib.Path):
  """Returns what was printed: JSON by its keys, tables by their cells."""
  try:
    return plain(json.loads(text), folder)
  except ValueError:
    return _tables(text) or numbers(text)


def _tables(text: str) -> list[dict]:
  """Returns the tables of a text in Markdown, without columns that vary."""
  tables, kept = [], []
  for line in map(str.strip, text.splitlines()):
    if not line.startswith('|'):
      kept = []
      continue
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    if not kept:  # The first line of a table names its columns.
      kept = [i for i, name in enumerate(cells) if not _VARIES.search(name)]
      tables.append({'columns': [cells[i] for i in kept], 'rows': []})
    elif not set(line) <= set('|:- '):
      tables[-1]['rows'].append([cells[i] for i in kept if i < len(cells)])
  return tables


def _csv(path):
  with path.open(newline='', encoding='utf-8') as file:
    rows = list(csv.reader(file))
  columns, rows = (rows[0], rows[1:]) if rows else ([], [])
  kept = [i for i, name in enumerate(columns) if not _VARIES.search(name)]
  width = len(columns)
  return {
    'columns': [columns[i] for i in kept],
    'rows': [
      [row[i] for i in kept] if len(row) == width else row for row in rows
    ],
  }


def _json(path):
  values = json.loads(path.read_text(encoding='utf-8'))
  if path.name == 'config.json' and isinstance(values.get('decides'), list):
    values['decides'] = dict.fromkeys(values['decides'], True)
  return {'values': values}


def _jsonl(path):
  lines = path.read_text(encoding='utf-8').splitlines()
  return {'lines': [json.loads(line) for line in lines]}


def array(values) -> dict:
  """Returns the shape of an array and its values, or a summary of many."""
  values = np.asarray(values)
  record = {'shape': list(values.shape)}
  flat = values.reshape(-1)
  if flat.size <= _FULL:
    record['values'] = flat.tolist()
  elif flat.dtype.kind in 'biuf':
    known = flat.astype(np.float64)
    record['mean'] = float(known.mean())
    record['mean_square'] = float((known**2).mean())
    record['some'] = known[:: max(1, flat.size // 8)][:8].tolist()
  return record


def _h5(path):
  sets, attributes = {}, {}

  def visit(name, item):
    if isinstance(item, h5py.Dataset):
      sets[name] = array(item[()])
    if item.attrs:
      attributes[name] = _attributes(item)

  with h5py.File(path, 'r', locking=False) as file:
    attributes['/'] = _attributes(file)
    file.visititems(visit)
  return {'sets': sets, 'attributes': attributes}


def _attributes(item):
  return {
    name: value.tolist() if isinstance(value, np.ndarray) else value
    for name, value in sorted(item.attrs.items())
  }


def _npy(path):
  return array(np.load(path))


def _npz(path):
  with np.load(path) as arrays:
    return {'sets': {name: array(arrays[name]) for name in arrays.files}}


def _png(path):
  with Image.open(path) as image:
    return {'size': list(image.size)}


def _header(data: bytes) -> dict:
  """Returns type and shape of every tensor of a safetensors file."""
  (length,) = struct.unpack_from('<Q', data)
  header = json.loads(data[8 : 8 + length])
  header.pop('__metadata__', None)
  return {
    name: [header[name]['dtype'], header[name]['shape']]
    for name in sorted(header)
  }


def _safetensors(path):
  return {'tensors': _header(path.read_bytes())}


def _zip(path):
  """Returns the names in a zip file, its JSON and its tensors' shapes."""
  record = {}
  with zipfile.ZipFile(path) as archive:
    for name in sorted(archive.namelist()):
      data = archive.read(name)
      if name.endswith('.json'):
        record[name] = json.loads(data)
      elif name.endswith('.safetensors'):
        record[name] = _header(data)
      elif name.endswith('.csv'):
        record[name] = list(csv.reader(io.StringIO(data.decode())))
      else:
        record[name] = 'present'
  return {'members': record}


def _text(path):
  return {'tables': _tables(path.read_text(encoding='utf-8'))}
