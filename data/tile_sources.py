"""Opens tiles that are image files: folders of classes, a pool, a zip."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import functools
import pathlib
import re
from typing import BinaryIO
import warnings
import zipfile

import numpy as np
from PIL import Image

from data import files
from data.images import on_white
from data.labelled_tiles import LabelledTiles, TileError
from data.labels import alike, leaks

COLUMNS = ('patient', 'x', 'y', 'label', 'zip_path')
EXTENSIONS = ('.png', '.jpg', '.jpeg')
_MODES = ('L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK')  # Eight bits per channel.

Open = Callable[[], BinaryIO]


def before_underscore(name: str) -> str:
  """Returns what precedes the first underscore: a file's patient or slide."""
  return name.split('_')[0]


def from_folders(
  root: pathlib.Path | str,
  group_of: Callable[[str], str] = before_underscore,
) -> LabelledTiles:
  """Opens `<root>/<class>/*.png|jpg|jpeg`, see `from_files`.

  Hidden files are passed over, and files of other kinds with a warning.

  Args:
    root: holds a folder for every class, at least two; classes are in the order
      of their names, capitals or not.
    group_of: returns the patient or slide of a file from its name without
      extension; '' where that tells none.

  Raises:
    TileError: naming every class without an image and every file that is no
      image, not a square of the common size, or without a group.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise TileError(f'{root}: no such folder. Check its path.')
  folders = [p.name for p in root.iterdir() if p.is_dir()]
  named = (name for name in folders if not files.hidden(name))
  classes = sorted(named, key=str.casefold)
  if len(classes) < 2:
    raise TileError(
      f'{root}: {len(classes)} folder(s) in it. One for each class is needed.'
    )
  paths = _images(root, '*/*')
  filled = {path.parent.name for path in paths}
  problems = [
    f'{root / name}: no image ({", ".join(EXTENSIONS)}) of this class. Remove'
    ' the folder or fill it.'
    for name in classes
    if name not in filled
  ]
  groups = [group_of(path.stem) for path in paths]
  problems += [
    f'{path}: its name tells no patient or slide'
    for path, one in zip(paths, groups, strict=True)
    if not one
  ]
  if len(set(groups)) == len(paths) > len(classes):
    warnings.warn(
      f'{root}: each tile counts as a patient or slide of its own: no two names'
      ' have the same before an underscore. If tiles are of one patient, call'
      ' them <patient>_<tile>: in several parts they make results too good',
      stacklevel=2,
    )
  labels = [classes.index(path.parent.name) for path in paths]
  return from_files(root, paths, labels, groups, classes, problems)


def from_pool(
  root: pathlib.Path | str, classes: tuple[str, ...]
) -> LabelledTiles:
  """Opens all `*.png|jpg|jpeg` in a folder and below, see `from_files`.

  Hidden files are passed over, and files of other kinds with a warning.

  Args:
    root: the folder. The patient or slide of a tile is the folder below `root`
      that it lies in or, of a tile in `root` itself, what precedes the first
      underscore of its name.
    classes: of all tiles here and elsewhere; these are of the first.

  Raises:
    TileError: if there is no tile, or naming every file that is no image or not
      a square of the common size.
  """
  root = pathlib.Path(root)
  paths = _images(root)
  if not paths:
    raise TileError(
      f'{root}: no image ({", ".join(EXTENSIONS)}) in this folder.'
      ' Give the folder of tiles.'
    )
  groups = [
    path.relative_to(root).parts[0]
    if path.parent != root
    else before_underscore(path.stem)
    for path in paths
  ]
  return from_files(root, paths, [0] * len(paths), groups, classes)


def _images(root: pathlib.Path, pattern: str = '**/*') -> list[pathlib.Path]:
  for line in files.left_out(root, EXTENSIONS, pattern):
    warnings.warn(line, stacklevel=3)
  return files.listed(root, EXTENSIONS, pattern)


def from_files(
  root: pathlib.Path,
  paths: Sequence[pathlib.Path],
  label: Sequence[int],
  group: Sequence[str],
  classes: Sequence[str],
  problems: Sequence[str] = (),
  size: int | None = None,
) -> LabelledTiles:
  """Opens image files; ids are their paths from `root`.

  Args:
    root: the folder they lie in.
    paths: of the files, [n].
    label: places in `classes`, [n].
    group: patients or slides, [n].
    classes: names of the classes.
    problems: what is wrong already, to be told with all else.
    size: side that all have, pixels. By default that of most; tiles that were
      cut at the border of their image, and so are shorter, are then left out
      with a warning.

  Raises:
    TileError: naming every file that is no square image of that size, and all
      `problems`.
  """
  return _opened(
    root,
    {str(path): functools.partial(path.open, 'rb') for path in paths},
    problems,
    size,
    id=np.array([path.relative_to(root).as_posix() for path in paths], str),
    label=np.array(label, np.int32),
    group=np.array(group, str),
    classes=tuple(classes),
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
  rows = files.read_csv(csv_path, COLUMNS, TileError)
  rows.sort(key=lambda row: row[1]['zip_path'])
  try:
    archive = zipfile.ZipFile(zip_path)
    entries = Counter(archive.namelist())
  except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as e:
    raise TileError(
      f'{zip_path}: cannot be read as a zip file ({e}). Copy it again.'
    ) from e
  problems, labelled, kept = [], set(), {}
  for line, row in rows:
    path = row['zip_path']
    name = f'{csv_path.name} line {line} ({path})'
    faults = [f'empty {c}' for c in COLUMNS if not row[c]]
    # NumPy would drop NUL, and merge names.
    faults += [f'a NUL byte in {c}' for c in COLUMNS if '\0' in row[c]]
    faults += [
      f'{c} {row[c]!r} is no whole number'
      for c in ('x', 'y')
      if row[c] and not re.fullmatch(r'-?\d{1,9}', row[c], re.ASCII)
    ]
    if path in labelled:
      faults.append('a second row of this file')
    elif path and path not in entries:
      faults.append(f'no such file in {zip_path.name}')
    elif entries[path] > 1:
      faults.append(f'{entries[path]} such files in {zip_path.name}')
    labelled.add(path)
    problems += [f'{name}: {fault}' for fault in faults]
    if not faults:
      kept[name] = row
  problems += [
    f'{zip_path.name}: {entry} has no row in {csv_path.name}'
    for entry in sorted(entries.keys() - labelled)
    if pathlib.PurePosixPath(entry).suffix.lower() in EXTENSIONS
    and not any(map(files.hidden, entry.split('/')))
  ]
  rows = list(kept.values())
  classes = tuple(sorted({row['label'] for row in rows}, key=_by_value))
  return _opened(
    csv_path,
    {
      name: functools.partial(archive.open, row['zip_path'])
      for name, row in kept.items()
    },
    problems,
    id=np.array([row['zip_path'] for row in rows], str),
    label=np.array([classes.index(row['label']) for row in rows], np.int32),
    group=np.array([row['patient'] for row in rows], str),
    classes=classes,
    xy=np.array([(int(row['x']), int(row['y'])) for row in rows], np.int32),
  )


def _opened(
  where: pathlib.Path,
  images: Mapping[str, Open],
  problems: Sequence[str],
  size: int | None = None,
  **columns,
) -> LabelledTiles:
  """Returns the set, or raises what is wrong with its files.

  Args:
    where: what messages begin with.
    images: opens each file, by what messages call it.
    problems: see `from_files`.
    size: likewise.
    **columns: of `LabelledTiles`.
  """
  if not images and not problems:
    problems = ['no tile']
  sizes, faults, cut = {}, [*problems], []
  for line in leaks(columns['group'].tolist()):
    warnings.warn(f'{where}: {line}', stacklevel=3)
  if names := alike(columns['classes']):
    faults.append(f'classes {names} are spelled apart. Spell each in one way.')
  for name, file in images.items():
    try:
      with file() as f, Image.open(f) as image:
        sizes[name], mode = image.size, image.mode
    except Exception as e:  # Pillow raises anything on broken headers.
      faults.append(f'{name}: not an image ({type(e).__name__}: {e})')
      continue
    if mode not in _MODES:
      faults.append(f'{name}: mode {mode}. 8-bit RGB or grey is needed.')
      del sizes[name]
  squares = Counter(w for w, h in sizes.values() if w == h)
  side = size or (squares.most_common(1)[0][0] if squares else 0)
  for name, (w, h) in sizes.items():
    if not size and max(w, h) <= side and min(w, h) < side:
      cut.append(name)
    elif (w, h) != (side, side):
      faults.append(
        f'{name}: {w} x {h} px, but tiles are squares'
        + (f' of {side} px here' if side else '')
        + '. Leave it out.'
      )
  if faults:
    raise TileError.listing(faults, str(where))
  items = list(images.items())
  tiles = LabelledTiles(read=lambda i: decode(*items[i]), size=side, **columns)
  if not cut:
    return tiles
  warnings.warn(
    f'{where}: {len(cut)} of {len(images)} tiles are left out: cut at the '
    f'border of their image, they are not {side} x {side} px ({cut[0]}, ...)',
    stacklevel=3,
  )
  return tiles.take(~np.isin(list(images), cut))


def _by_value(label: str) -> tuple[int, int, str]:
  digits = label.isascii() and label.isdigit()
  return (0, int(label), label) if digits else (1, 0, label.casefold())


def decode(name: str, file: Open) -> np.ndarray:
  """Returns an image, uint8 [S, S, 3]; transparency lies on white.

  Grey is that of each channel: networks and their normalisation are of RGB.

  Raises:
    TileError: if it cannot be decoded in full.
  """
  try:
    with file() as f, Image.open(f) as image:
      return np.asarray(on_white(image).convert('RGB'))
  except Exception as e:  # Pillow raises anything on broken files.
    raise TileError(
      f'{name}: cannot be decoded ({type(e).__name__}: {e}). Copy it again or '
      'leave it out.'
    ) from e
