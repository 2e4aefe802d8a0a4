"""Opens tiles that are image files: folders of classes, a zip with a CSV."""

from collections.abc import Callable, Sequence
import csv
import functools
import pathlib
import re
import warnings
import zipfile

import numpy as np

from data.labelled_tiles import LabelledTiles, TileError
from data.tile_images import EXTENSIONS, Open, check_sizes, decode

COLUMNS = ('patient', 'x', 'y', 'label', 'zip_path')


def from_folders(
  root: pathlib.Path | str, *, group: str | Callable[[str], str] = r'[^_]+'
) -> LabelledTiles:
  """Opens `<root>/<class>/*.png|jpg|jpeg`.

  Hidden files and files of other kinds are passed over; tiles that were cut at
  the border of their image, and so are too short, are left out with a
  warning. The id of a tile is
  '<class>/<file name>', and tiles are in the order of their ids.

  Args:
    root: holds a folder for every class, at least two; classes are in the order
      of their names.
    group: patient or slide of a file, from its name without extension: a
      function, or a regular expression whose first group, or whole match, at
      the beginning of the name it is. By default what precedes the first
      underscore.

  Raises:
    TileError: naming every class without an image and every file that is no
      image, not a square of the common size, or without a group.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise TileError(f'{root}: no such folder')
  folders = sorted(p for p in root.iterdir() if p.is_dir() and _shown(p))
  if len(folders) < 2:
    raise TileError(
      f'{root}: {len(folders)} folder(s) in it; one for each class is needed'
    )
  problems, paths = [], []
  for folder in folders:
    found = sorted(
      p
      for p in folder.iterdir()
      if p.suffix.lower() in EXTENSIONS and p.is_file() and _shown(p)
    )
    paths += found
    if not found:
      problems.append(
        f'{folder}: no image ({", ".join(EXTENSIONS)}) of this class; remove '
        'the folder or fill it'
      )
  group_of = _by_pattern(group) if isinstance(group, str) else group
  groups = [group_of(p.stem) for p in paths]
  problems += [
    f'{path}: its name has no group by the rule {group!r}'
    for path, g in zip(paths, groups, strict=True)
    if not g
  ]
  names = [str(p) for p in paths]
  files = [functools.partial(p.open, 'rb') for p in paths]
  classes = tuple(folder.name for folder in folders)
  return _make(
    root,
    names,
    files,
    problems,
    id=np.array([f'{p.parent.name}/{p.name}' for p in paths], str),
    label=np.array([classes.index(p.parent.name) for p in paths], np.int32),
    group=np.array([g or '' for g in groups], str),
    classes=classes,
  )


def from_zip(
  zip_path: pathlib.Path | str, csv_path: pathlib.Path | str
) -> LabelledTiles:
  """Opens the tiles of a zip file that a table labels.

  Groups are patients, ids the paths in the zip, and tiles are in the order of
  their ids, whatever the order of the rows. Tiles that were cut at the border
  of their image, and so are too short, are left out with a warning.

  Args:
    zip_path: the images.
    csv_path: columns patient, x, y, label and zip_path; x and y are whole
      numbers. Classes are the labels that occur, numbers by value.

  Raises:
    TileError: if either file cannot be read or a column is missing; or naming
      every row with an empty or wrong cell or without an image, and every image
      without a row, broken, or not a square of the common size.
  """
  zip_path, csv_path = pathlib.Path(zip_path), pathlib.Path(csv_path)
  rows = sorted(_rows(csv_path), key=lambda row: row['zip_path'])
  try:
    archive = zipfile.ZipFile(zip_path)
    entries = set(archive.namelist())
  except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as e:
    raise TileError(
      f'{zip_path}: cannot be read as a zip file ({e}); copy it again'
    ) from e
  problems, labelled = [], set()
  kept = []
  for row in rows:
    name = f'{csv_path.name} line {row["line"]} ({row["zip_path"]})'
    faults = [f'empty {c}' for c in COLUMNS if not row[c]]
    faults += [
      f'{c} {row[c]!r} is no whole number'
      for c in ('x', 'y')
      if row[c] and not re.fullmatch(r'-?\d{1,9}', row[c], re.ASCII)
    ]
    if row['zip_path'] in labelled:
      faults.append('a second row of this file')
    elif row['zip_path'] and row['zip_path'] not in entries:
      faults.append(f'no such file in {zip_path.name}')
    labelled.add(row['zip_path'])
    problems += [f'{name}: {fault}' for fault in faults]
    if not faults:
      kept.append((name, row))
  problems += [
    f'{zip_path.name}: {entry} has no row in {csv_path.name}'
    for entry in sorted(entries)
    if pathlib.PurePosixPath(entry).suffix.lower() in EXTENSIONS
    and entry not in labelled
    and all(map(_shown, map(pathlib.Path, entry.split('/'))))
  ]
  classes = tuple(sorted({row['label'] for _, row in kept}, key=_by_value))
  return _make(
    csv_path,
    [name for name, _ in kept],
    [functools.partial(archive.open, row['zip_path']) for _, row in kept],
    problems,
    id=np.array([row['zip_path'] for _, row in kept], str),
    label=np.array([classes.index(row['label']) for _, row in kept], np.int32),
    group=np.array([row['patient'] for _, row in kept], str),
    classes=classes,
    xy=np.array([(int(r['x']), int(r['y'])) for _, r in kept], np.int32),
  )


def _make(
  where: pathlib.Path,
  names: list[str],
  files: list[Open],
  problems: list[str],
  **columns,
) -> LabelledTiles:
  """Returns the set, or raises what is wrong with its files."""
  if not names and not problems:
    problems = ['no tile']
  size, channels, cut, more = check_sizes(names, files)
  if problems + more:
    raise TileError.listing(problems + more, str(where))
  tiles = LabelledTiles(
    read=lambda i: decode(names[i], files[i], channels),
    size=size,
    channels=channels,
    **columns,
  )
  return without_cut(tiles, names, cut, where)


def without_cut(
  tiles: LabelledTiles,
  names: Sequence[str],
  cut: Sequence[int],
  where: pathlib.Path,
) -> LabelledTiles:
  """Leaves out tiles that are smaller than the others, with a warning.

  Args:
    tiles: all of them.
    names: of all, for the warning.
    cut: rows of those that are too small.
    where: they are from.
  """
  if not cut:
    return tiles
  warnings.warn(
    f'{where}: {len(cut)} of {len(names)} tiles are left out: cut at the '
    f'border of their image, they are not {tiles.size} x {tiles.size} px '
    f'({names[cut[0]]}, ...)',
    stacklevel=4,
  )
  return tiles.take(np.setdiff1d(np.arange(len(names)), cut))


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
  """Returns the cells of `COLUMNS`, and the line, of every row."""
  try:
    with path.open(newline='', encoding='utf-8-sig') as f:
      reader = csv.DictReader(f)
      columns = reader.fieldnames or []
      rows = [(reader.line_num, row) for row in reader]
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise TileError(f'{path}: cannot be read as CSV ({e})') from e
  missing = [c for c in COLUMNS if c not in columns]
  if missing:
    raise TileError(
      f'{path}: no column {", ".join(missing)}; found {", ".join(columns)}; a '
      f'header {",".join(COLUMNS)} is needed'
    )
  cells = [
    {c: (row[c] or '').strip() for c in COLUMNS} | {'line': line}
    for line, row in rows
  ]
  nul = [
    f'line {row["line"]}: a NUL byte'
    for row in cells
    if any('\0' in row[c] for c in COLUMNS)  # NumPy would drop it.
  ]
  if nul:
    raise TileError.listing(nul, str(path))
  return cells


def _by_pattern(pattern: str) -> Callable[[str], str]:
  compiled = re.compile(pattern)

  def group_of(name: str) -> str:
    found = compiled.match(name)
    return (found[1] if compiled.groups else found[0]) if found else ''

  return group_of


def _by_value(label: str) -> tuple[int, int, str]:
  digits = label.isascii() and label.isdigit()
  return (0, int(label), label) if digits else (1, 0, label)


def _shown(path: pathlib.Path) -> bool:
  return not path.name.startswith('.') and path.name != '__MACOSX'
