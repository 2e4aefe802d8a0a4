"""What all readers and writers of files share."""

import codecs
import collections
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
import contextlib
import csv
import errno
import filecmp
import functools
import hashlib
import io
import os
from pathlib import Path
import platform
import re
import shutil
import threading
import unicodedata
import uuid
import warnings

_OF_SYSTEMS = '__macosx', 'thumbs.db', 'desktop.ini'
_EDGE = 2**20  # Bytes at either end of a file that tell it from others.
_SHOWN = 10  # Names in one message.
_SEPARATORS = ',;\t|'  # Of cells; the first that gives the columns.
_END = '\0'  # A row of its own, unless a quotation mark is open.
_LARGEST = 2**28  # Bytes of a table; a device has no end.
_WORKBOOK = b'PK\x03\x04', b'\xd0\xcf\x11\xe0'  # What .xlsx, .xls begin with.
# Of a file that is being written: .<name>.<machine>-<process>-<12 digits>.
_PART = re.compile(r'^\..+\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{12}$')
_swept: set[tuple[int, Path]] = set()  # (process, folder)
_sweeping = threading.Lock()


def place(path: Path | str) -> Path:
  """Returns a path, or of a URL what has the same methods for reading.

  What reads gs://, s3:// or https:// may have to be installed: the first use
  of the path says so.
  """
  if isinstance(path, str) and '://' in path:
    import upath  # Takes a fifth of a second.

    return upath.UPath(path)
  return Path(path) if isinstance(path, str) else path


def listed(
  folder: Path, extensions: Collection[str] | None = None, pattern: str = '**/*'
) -> list[Path]:
  """Returns the files in a folder and below, sorted, but no hidden ones.

  Linked folders are followed. Links to what is not there are listed as files,
  so that whoever opens one names it.

  Args:
    folder: nothing is found where there is none.
    extensions: what names end in, lower case; any by default.
    pattern: '*' for the folder alone, '*/*' for those in it alone.
  """
  everything = pattern == '**/*'
  return sorted(
    path
    for path in (_below(folder) if everything else folder.glob(pattern))
    if (extensions is None or path.suffix.lower() in extensions)
    and (path.is_file() or broken(path))
    and not any(map(hidden, path.relative_to(folder).parts))
  )


def left_out(
  folder: Path, extensions: Collection[str], pattern: str = '**/*'
) -> list[str]:
  """Returns a line on the files of other extensions, see `listed`, if any."""
  everything = listed(folder, pattern=pattern)
  names = [p.name for p in everything if p.suffix.lower() not in extensions]
  return [
    f'{folder}: left out, as their names do not end in {", ".join(extensions)}:'
    f' {first_of(names)}. Convert or rename those that are meant.'
  ] * bool(names)


def _below(folder: Path) -> Iterator[Path]:
  """Yields what is below a folder; one that is reached twice counts once.

  Links are followed last: what they repeat keeps its own path.
  """
  folders, seen = collections.deque([folder]), set()
  while folders:
    parent = folders.popleft()
    real = parent.resolve()
    if real in seen or not parent.is_dir():
      continue
    seen.add(real)
    try:
      paths = sorted(parent.iterdir())
    except OSError as e:
      warnings.warn(f'{parent}: left out, cannot be read ({e})', stacklevel=3)
      continue
    yield from paths
    for path in paths:
      if path.is_dir() and not hidden(path.name):
        (folders.append if path.is_symlink() else folders.appendleft)(path)


def broken(path: Path) -> bool:
  """Returns whether a path is a link to what is not there."""
  return path.is_symlink() and not path.exists()


def link_fault(path: Path) -> str:
  """Returns what is wrong with a link to what is not there; '' of others."""
  if not os.path.islink(path) or exists(path):
    return ''
  return (
    f'{path}: a link to {path.readlink()}, which does not exist. Mend the link'
    ' or remove it.'
  )


def hidden(name: str) -> bool:
  """Returns whether a file or folder of that name is for nobody to see."""
  return name.startswith('.') or name.lower() in _OF_SYSTEMS


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


def clean(text: str) -> str:
  """Returns a text as it is compared: Unicode NFC, without spaces about it."""
  return unicodedata.normalize('NFC', text).strip()


def exists(path: Path) -> bool:
  """Whether a file is there: none is of a name that no file can have."""
  return os.path.exists(path)  # Path.exists raises for what is too long.


def read_text(path: Path | str, error: type[Exception]) -> str:
  """Returns the text of a table: UTF-8, or UTF-16 with a byte order mark.

  Args:
    path: the file.
    error: what is raised, naming the file, if it cannot be read.
  """
  kind = 'its text is not in UTF-8'
  try:
    with place(path).open('rb') as file:
      content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
      raise ValueError(f'it has more than {_LARGEST} bytes; is it a table?')
    if content.startswith(_WORKBOOK):
      kind = 'it is a workbook of a spreadsheet'
    elif content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
      return content.decode('utf-16')
    elif b'\0' not in content[:2]:  # UTF-16 without a mark has one there.
      return content.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    line = content[: e.start].count(b'\n') + 1
    kind += f' (line {line}: {content[max(e.start - 20, 0) : e.end]!r})'
  except Exception as e:  # Buckets raise errors of many kinds.
    raise error(f'{path}: cannot be read as CSV: {e}') from e
  raise error(
    f'{path}: cannot be read as CSV: {kind}. Save it as "CSV UTF-8" (in a'
    ' spreadsheet: Save as, or Export).'
  )


def read_rows(
  path: Path | str,
  error: type[Exception],
  fits: Callable[[list[str]], bool] = bool,
) -> list[tuple[int, list[str]]]:
  """Returns the line and the cells of every row that has any, the header too.

  Args:
    path: a CSV file, see `read_text`.
    error: what is raised, naming the file, if it cannot be read.
    fits: whether cells may be those of the first row. They are separated by
      commas; or by semicolons, tabs or bars, if only so they fit.
  """
  # A first line `sep=;` is for spreadsheets.
  text = re.sub(r'\Asep=.(?=[\r\n])', '', read_text(path, error))

  def rows(separator: str) -> Iterator[tuple[int, list[str]]]:
    lines = io.StringIO(f'{text}\n{_END}', newline='')
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    for cells in reader:
      if any(map(str.strip, cells)):
        yield reader.line_num, cells

  try:
    some = (s for s in _SEPARATORS if fits(next(rows(s))[1]))
    *table, (_, last) = rows(next(some, ','))
    if last != [_END]:
      line = table[-1][0] if table else 0
      raise csv.Error(f'a quotation mark after line {line} is never closed')
  except csv.Error as e:
    raise error(f'{path}: cannot be read as CSV: {e}') from e
  return table


def read_csv(
  path: Path | str, columns: Sequence[str], error: type[Exception]
) -> list[tuple[int, dict[str, str]]]:
  """Returns the line and the cells, by column, of every row of a table.

  Cells and names of columns are as `clean` makes them, but paths are only
  stripped; a cell that is absent is empty. What stands beyond the last column
  is a list under None. Rows of empty cells are none.

  Args:
    path: a CSV file with a header, see `read_rows`.
    columns: what the header must have, once each; others are read as well.
    error: what is raised, naming the file, if it cannot be read or lacks one.
  """
  fits = lambda row: set(columns) <= set(map(clean, row))
  (_, header), *rows = read_rows(path, error, fits) or [(0, [])]
  header = list(map(clean, header))
  if missing := [c for c in columns if c not in header]:
    raise error(
      f'{path}: no column {", ".join(missing)} (found: {", ".join(header)}).'
      f' Write the header {",".join(columns)}.'
    )
  if twice := [c for c in columns if header.count(c) > 1]:
    raise error(f'{path}: several columns {", ".join(twice)}. Keep one.')
  table = []
  for line, cells in rows:
    row = dict.fromkeys(header, '')
    for name, cell in zip(header, cells, strict=False):
      row[name] = cell.strip() if name.endswith('path') else clean(cell)
    if len(cells) > len(header):
      row[None] = cells[len(header) :]
    table.append((line, row))
  return table


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
  if path.is_dir():
    raise IsADirectoryError(errno.EISDIR, 'Is a directory', str(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  _sweep(path.parent.resolve())
  code = f'{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}'
  part = path.with_name(f'.{path.name[:40]}.{code}')  # At most 255 bytes.
  try:
    yield part
    if path.is_file() and filecmp.cmp(part, path, shallow=False):
      return  # Its time stays: what was made of it is made of this.
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


@functools.cache
def memory(root: Path = Path('/')) -> int:
  """Returns the bytes of memory of this machine; of its container, if less.

  Args:
    root: where the system tells of itself.
  """
  sizes = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
  groups = root / 'proc/self/cgroup'
  for line in groups.read_text().splitlines() if groups.exists() else ():
    _, kinds, group = line.split(':', 2)
    folder, limit = root / 'sys/fs/cgroup', 'memory.max'
    if kinds:  # The first version of groups.
      folder, limit = folder / 'memory', 'memory.limit_in_bytes'
    if kinds in ('', 'memory'):
      below = folder / group.lstrip('/')
      for place in (below, *below.parents):
        with contextlib.suppress(OSError, ValueError):  # None, or 'max'.
          sizes.append(int((place / limit).read_text()))
  return min(sizes)


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
      match = _PART.search(name)
      if match and match[1] == _machine() and not _runs(int(match[2])):
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
    part.open(
      'w', newline='', encoding='utf-8', errors='backslashreplace'
    ) as file,
  ):
    csv.writer(file, lineterminator='\n').writerows(rows)


def counted(n: int, noun: str) -> str:
  """Returns '1 slide', or '2 slides'."""
  return f'{n} {noun}{"s" * bool(n != 1)}'


def first_of(names: Sequence[str]) -> str:
  """Returns the names, or ten of them and how many more there are."""
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(map(str, names[:_SHOWN])) + more
