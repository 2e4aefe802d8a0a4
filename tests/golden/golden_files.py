"""Holds files that the project writes in a test against stored ones."""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib

from golden_commands import WIDTHS
import golden_comparer
from golden_pictures import STORED
import golden_reader
import golden_subset


@contextlib.contextmanager
def stored(name: str, folder: pathlib.Path) -> Iterator[None]:
  """Compares what is written below a folder with stored/files/<name>.json.

  With STORE_FILES in the environment that is written anew.
  """
  before = golden_reader.snapshot(folder)
  yield
  files = golden_reader.changed(folder, before)
  for file in files.values():
    file.pop('size', None)  # Of a picture, which fonts decide.
  path = STORED / 'files' / f'{name}.json'
  if 'STORE_FILES' in os.environ:
    path.parent.mkdir(exist_ok=True)
    path.write_text(golden_subset.pretty(files) + '\n', encoding='utf-8')
  golden = json.loads(path.read_text(encoding='utf-8'))
  outcome = golden_comparer.compare(golden, files, WIDTHS['fixed'])
  assert not outcome.differences, '\n'.join(map(str, outcome.differences[:8]))
