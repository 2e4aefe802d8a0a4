"""What all readers and writers of files share."""

from collections.abc import Collection, Iterable, Iterator, Sequence
import contextlib
import csv
import errno
import functools
import hashlib
import os
from pathlib import Path
import platform
import re
import shutil
import threading
import uuid

_EDGE = 2**20  # Bytes at either end of a file that tell it from others.
_SHOWN = 10  # Names in one message.
# Of a file that is being written: .<name>.<machine>-<process>-<12 digits>.
_PART = re.compile(r'^\..+\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{12}$')
_swept: set[tuple[int, Path]] = set()  # (process, folder)
_sweeping = threading.Lock()


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


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
  """Yields a hidden name beside `path`; what was written there takes its place.

  The file is flushed to disk and renamed when the block ends, so that whoever
  opens `path`, at any moment and after any kill, finds the old content, the new
  or none. If the block raises, `path` stays as it was. What killed processes
  left half written in the folder is removed.

  Args:
    path: the file to write; its folder is made if absent.

  Raises:
    OSError: if it cannot be written; names `path` if no other file.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  _sweep(path.parent.resolve())
  code = f'{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}'
  part = path.with_name(f'.{path.name}.{code}')
  try:
    yield part
    _flush(part)
    part.replace(path)
    with contextlib.suppress(OSError):  # Some disks flush no folders.
      _flush(path.parent)
  except OSError as e:
    if e.filename is not None:
      raise
    text = e.strerror or str(e)
    raise OSError(e.errno or errno.EIO, text, str(path)) from e
  finally:
    part.unlink(missing_ok=True)


def free_space(folder: Path) -> int:
  """Returns how many bytes are free where a folder is, or will be."""
  folder = folder.absolute()
  place = next(p for p in (folder, *folder.parents) if p.is_dir())
  return shutil.disk_usage(place).free


def _flush(path: Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _sweep(folder: Path) -> None:
  """Removes what killed processes left there, once before this one writes."""
  with _sweeping:
    if (os.getpid(), folder) in _swept:
      return
    _swept.add((os.getpid(), folder))
    for name in os.listdir(folder):
      found = _PART.search(name)
      if found and found[1] == _machine() and not _runs(int(found[2])):
        (folder / name).unlink(missing_ok=True)


def _runs(process: int) -> bool:
  """Returns whether another process of that number runs on this machine."""
  try:
    os.kill(process, 0)
  except OSError as e:
    return e.errno == errno.EPERM
  return process != os.getpid()


@functools.cache
def _machine() -> str:
  """Returns a code of the machine, or container, whose processes we see."""
  space = os.path.basename(os.path.realpath('/proc/self/ns/pid'))
  return hashlib.sha256(f'{platform.node()} {space}'.encode()).hexdigest()[:8]


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
