"""Hashes that tell large files apart in milliseconds."""

import hashlib
from pathlib import Path

_EDGE = 2**20  # Bytes at either end of a file that tell it from others.


def of_edges(path: Path) -> str:
  """Returns a hash of a file's size, first and last megabyte."""
  size = path.stat().st_size
  content = hashlib.sha256(f'{size}'.encode())
  with path.open('rb') as f:
    content.update(f.read(_EDGE))
    f.seek(max(size - _EDGE, 0))
    content.update(f.read())
  return content.hexdigest()
