"""What all readers of files share: tables, hashes, faults of the disk."""

from collections.abc import Iterable, Sequence
import csv
import errno
import hashlib
from pathlib import Path

from data import atomic

_EDGE = 2**20  # Bytes at either end of a file that tell it from others.
_SHOWN = 10  # Names in one message.
_OUTSIDE = frozenset({
  errno.EACCES,
  errno.EPERM,
  errno.EIO,
  errno.ESTALE,
  errno.ENODEV,
  errno.ENOTCONN,
  errno.ETIMEDOUT,
  errno.EMFILE,
  errno.ENFILE,
  errno.ENOMEM,
})  # fmt: skip


def outside_fault(error: Exception) -> str | None:
  """Says what kept a file from being read; None where it is damaged itself."""
  if isinstance(error, MemoryError):
    return 'does not fit in memory' + (f' ({error})' if str(error) else '')
  if isinstance(error, OSError) and error.errno in _OUTSIDE:
    return f'cannot be read ({error}); see to its permissions and its disk'
  return None


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


def first_of(names: Sequence[str]) -> str:
  """Returns the names, or ten of them and how many more there are."""
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(map(str, names[:_SHOWN])) + more
