"""What all readers of files share: tables and hashes."""

from collections.abc import Iterable, Sequence
import csv
import hashlib
from pathlib import Path

from data import atomic

_EDGE = 2**20  # Bytes at either end of a file that tell it from others.


def hash_of_edges(path: Path) -> str:
  """Returns a hash of a file's size, first and last megabyte.

  It tells large files apart in milliseconds.
  """
  size = path.stat().st_size
  content = hashlib.sha256(f'{size}'.encode())
  with path.open('rb') as f:
    content.update(f.read(_EDGE))
    f.seek(max(size - _EDGE, 0))
    content.update(f.read())
  return content.hexdigest()


def read_csv(
  path: Path | str, columns: Sequence[str], error: type[Exception]
) -> list[tuple[int, dict[str, str]]]:
  """Returns the line and the cells, by column, of every row of a table.

  Cells are stripped; one that is absent is empty. What stands beyond the last
  column is a list under None.

  Args:
    path: a CSV file with a header, UTF-8.
    columns: what the header must have, once each; others are read as well.
    error: what is raised, naming the file, if it cannot be read or lacks one.
  """
  try:
    with Path(path).open(newline='', encoding='utf-8-sig') as f:
      reader = csv.DictReader(f)
      rows = [(reader.line_num, row) for row in reader]
      header = reader.fieldnames or []
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise error(f'{path}: cannot be read as CSV: {e}') from e
  if missing := [c for c in columns if c not in header]:
    raise error(
      f'{path}: no column {", ".join(missing)}; found {", ".join(header)};'
      f' a header {",".join(columns)} is needed'
    )
  if twice := [c for c in columns if header.count(c) > 1]:
    raise error(f'{path}: several columns {", ".join(twice)}')
  return [
    (
      line,
      {c: v.strip() if isinstance(v, str) else v or '' for c, v in row.items()},
    )
    for line, row in rows
  ]


def write_rows(path: Path | str, rows: Iterable[Sequence]) -> None:
  """Writes the rows of a table in UTF-8, its header first; see `atomic`."""
  with (
    atomic.replacing(path) as part,
    part.open('w', newline='', encoding='utf-8') as f,
  ):
    csv.writer(f).writerows(rows)


def first_of(names: Sequence[str], limit: int = 5) -> str:
  """Returns a few names for a message, and how many more there are."""
  more = f' and {len(names) - limit} more' if len(names) > limit else ''
  return ', '.join(names[:limit]) + more
