"""Writes files that are there in full or not at all."""

from collections.abc import Iterable, Iterator
import contextlib
import csv
import os
import pathlib
import uuid


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a hidden name beside `path`; what was written there takes its place.

  The file is flushed to disk and renamed when the block ends, so that whoever
  opens `path`, at any moment and after any kill, finds the old content, the new
  or none. If the block raises, `path` stays as it was.

  Args:
    path: the file to write; its folder is made if absent.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
  try:
    yield part
    with part.open('rb') as file:
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def write_csv(path: str | pathlib.Path, rows: Iterable[Iterable]) -> None:
  """Writes rows as CSV in UTF-8, lines ended by a line feed."""
  with (
    replacing(path) as part,
    part.open('w', newline='', encoding='utf-8') as file,
  ):
    csv.writer(file, lineterminator='\n').writerows(rows)
