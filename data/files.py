"""What all readers and writers of files share."""

from collections.abc import Collection, Iterable, Iterator, Sequence
import contextlib
import csv
import hashlib
import os
from pathlib import Path
import uuid

_EDGE = 2**20  # Bytes at either end of a file that tell it from others.
_SHOWN = 10  # Names in one message.


def listed(
  folder: Path, extensions: Collection[str] | None = None, pattern: str = '**/*'
) -> list[Path]:
  """Returns the files in a folder and below, sorted, but no hidden ones.

  Args:
    folder: nothing is found where there is none.
    extensions: what names end in, lower case; any by default.
    pattern: '*' for the folder alone.
  """
  return sorted(
    path
    for path in folder.glob(pattern)
    if (extensions is None or path.suffix.lower() in extensions)
    and path.is_file()
    and not any(map(hidden, path.relative_to(folder).parts))
  )


def hidden(name: str) -> bool:
  """Returns whether a file or folder of that name is for nobody to see."""
  return name.startswith('.') or name == '__MACOSX'


def hash_of_edges(path: Path, middle: bool = False) -> str:
  """Returns a hash of a file's size, first and last megabyte.

  It tells large files apart in milliseconds.

  Args:
    path: of the file.
    middle: what lies between counts as well: every byte. Files of two megabytes
      and less have the same hash either way.
  """
  size = path.stat().st_size
  content = hashlib.sha256(f'{size}'.encode())
  with path.open('rb') as f:
    content.update(f.read(_EDGE))
    for left in range(size - 2 * _EDGE if middle else 0, 0, -_EDGE):
      content.update(f.read(min(left, _EDGE)))
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


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
  """Yields a hidden name beside `path`; what was written there takes its place.

  The file is flushed to disk and renamed when the block ends, so that whoever
  opens `path`, at any moment and after any kill, finds the old content, the new
  or none. If the block raises, `path` stays as it was.

  Args:
    path: the file to write; its folder is made if absent.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
  try:
    yield part
    with part.open('rb') as file:
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def write_csv(path: Path | str, rows: Iterable[Iterable]) -> None:
  """Writes the rows of a table in UTF-8, its header first."""
  with (
    replacing(path) as part,
    part.open('w', newline='', encoding='utf-8') as file,
  ):
    csv.writer(file, lineterminator='\n').writerows(rows)


def first_of(names: Sequence[str]) -> str:
  """Returns the names, or ten of them and how many more there are."""
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(map(str, names[:_SHOWN])) + more
