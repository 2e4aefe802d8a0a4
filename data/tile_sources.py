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
from data.labelled_tiles import LabelledTiles, TileError

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
  """Opens `<root>/<class>/*.png|jpg|jpeg`.

  Hidden files and files of other kinds are passed over; tiles that were cut at
  the border of their image, and so are too short, are left out with a
  warning. The id of a tile is
  '<class>/<file name>', and tiles are in the order of their ids.

  Args:
    root: holds a folder for every class, at least two; classes are in the order
      of their names.
    group_of: returns the patient or slide of a file from its name without
      extension; '' where that tells none.

  Raises:
    TileError: naming every class without an image and every file that is no
      image, not a square of the common size, or without a group.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise TileError(f'{root}: no such folder')
  folders = sorted(p for p in root.iterdir() if p.is_dir() and _shown(p.name))
  if len(folders) < 2:
    raise TileError(
      f'{root}: {len(folders)} folder(s) in it; one for each class is needed'
    )
  of_class = {folder: _images(folder, '*') for folder in folders}
  problems = [
    f'{folder}: no image ({", ".join(EXTENSIONS)}) of this class; remove the'
    ' folder or fill it'
    for folder, paths in of_class.items()
    if not paths
  ]
  paths = [path for paths in of_class.values() for path in paths]
  groups = [group_of(path.stem) for path in paths]
  problems += [
    f'{path}: its name tells no patient or slide'
    for path, one in zip(paths, groups, strict=True)
    if not one
  ]
  classes = tuple(folder.name for folder in folders)
  return _opened(
    root,
    {str(path): functools.partial(path.open, 'rb') for path in paths},
    problems,
    id=np.array([f'{p.parent.name}/{p.name}' for p in paths], str),
    label=np.array([classes.index(p.parent.name) for p in paths], np.int32),
    group=np.array(groups, str),
    classes=classes,
  )


def from_pool(
  root: pathlib.Path | str, classes: tuple[str, ...]
) -> LabelledTiles:
  """Opens all `*.png|jpg|jpeg` in a folder and below, labelled as a whole.

  Hidden files and files of other kinds are passed over, and so are tiles that
  were cut at the border of their image, with one side too short. Ids are paths
  from `root`, in whose order the tiles are.

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
  paths = _images(root, '**/*')
  if not paths:
    raise TileError(
      f'{root}: no image ({", ".join(EXTENSIONS)}) in this folder'
    )
  inside = [path.relative_to(root) for path in paths]
  groups = [
    path.parts[0] if len(path.parts) > 1 else before_underscore(path.stem)
    for path in inside
  ]
  return _opened(
    root,
    {str(path): functools.partial(path.open, 'rb') for path in paths},
    id=np.array([path.as_posix() for path in inside], str),
    label=np.zeros(len(paths), np.int32),
    group=np.array(groups, str),
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
  rows = files.read_csv(csv_path, COLUMNS, TileError)
  rows.sort(key=lambda row: row[1]['zip_path'])
  try:
    archive = zipfile.ZipFile(zip_path)
    entries = set(archive.namelist())
  except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as e:
    raise TileError(
      f'{zip_path}: cannot be read as a zip file ({e}); copy it again'
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
    labelled.add(path)
    problems += [f'{name}: {fault}' for fault in faults]
    if not faults:
      kept[name] = row
  problems += [
    f'{zip_path.name}: {entry} has no row in {csv_path.name}'
    for entry in sorted(entries - labelled)
    if pathlib.PurePosixPath(entry).suffix.lower() in EXTENSIONS
    and all(map(_shown, entry.split('/')))
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
  problems: Sequence[str] = (),
  **columns,
) -> LabelledTiles:
  """Returns the set, or raises what is wrong with its files.

  Tiles that are smaller than the others are left out with a warning.
  """
  if not images and not problems:
    problems = ['no tile']
  size, channels, cut, more = check_sizes(images)
  if problems := [*problems, *more]:
    raise TileError.listing(problems, str(where))
  items = list(images.items())
  tiles = LabelledTiles(
    read=lambda i: decode(*items[i], channels),
    size=size,
    channels=channels,
    **columns,
  )
  if not cut:
    return tiles
  warnings.warn(
    f'{where}: {len(cut)} of {len(images)} tiles are left out: cut at the '
    f'border of their image, they are not {size} x {size} px ({cut[0]}, ...)',
    stacklevel=3,
  )
  return tiles.take(~np.isin(list(images), cut))


def _images(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  """Returns the images of a folder that match a glob and are not hidden."""
  return sorted(
    path
    for path in folder.glob(pattern)
    if path.suffix.lower() in EXTENSIONS
    and path.is_file()
    and all(map(_shown, path.relative_to(folder).parts))
  )


def _by_value(label: str) -> tuple[int, int, str]:
  digits = label.isascii() and label.isdigit()
  return (0, int(label), label) if digits else (1, 0, label)


def _shown(name: str) -> bool:
  return not name.startswith('.') and name != '__MACOSX'


def check_sizes(
  images: Mapping[str, Open],
) -> tuple[int, int, list[str], list[str]]:
  """Looks at the headers of image files.

  Args:
    images: opens each, by what messages call it.

  Returns:
    S and C of the tiles, the names of tiles that were cut at the border of
    their image, and the problems. S is the side of most squares; C is 1 if
    every file is grey, else 3. Cut tiles are shorter and no side is longer.
  """
  sizes, modes, problems, cut = {}, set(), [], []
  for name, file in images.items():
    try:
      with file() as f, Image.open(f) as image:
        size, mode = image.size, image.mode
    except Exception as e:  # Pillow raises anything on broken headers.
      problems.append(f'{name}: not an image that can be read ({_text(e)})')
      continue
    if mode not in _MODES:
      problems.append(f'{name}: mode {mode}; 8-bit RGB or grey is needed')
    else:
      modes.add(mode)
      sizes[name] = size
  squares = Counter(w for w, h in sizes.values() if w == h)
  side = squares.most_common(1)[0][0] if squares else 0
  for name, (w, h) in sizes.items():
    if max(w, h) <= side and min(w, h) < side:
      cut.append(name)
    elif (w, h) != (side, side):
      problems.append(
        f'{name}: {w} x {h} px; tiles are squares'
        + (f' of {side} px here' if side else '')
        + '; leave it out'
      )
  return side, 1 if modes == {'L'} else 3, cut, problems


def decode(name: str, file: Open, channels: int) -> np.ndarray:
  """Returns an image, uint8 [S, S, channels]; transparency lies on white.

  Raises:
    TileError: if it cannot be decoded in full.
  """
  try:
    with file() as f, Image.open(f) as image:
      image = on_white(image).convert('L' if channels == 1 else 'RGB')
      pixels = np.asarray(image)
  except Exception as e:  # Pillow raises anything on broken files.
    raise TileError(
      f'{name}: cannot be decoded ({_text(e)}); copy it again or leave it out'
    ) from e
  return pixels.reshape(*pixels.shape[:2], channels)


def on_white(image: Image.Image) -> Image.Image:
  """Returns an image on white, like glass, where it is transparent."""
  if not image.has_transparency_data:
    return image
  white = Image.new('RGBA', image.size, 'white')
  return Image.alpha_composite(white, image.convert('RGBA'))


def _text(error: Exception) -> str:
  return str(error) or type(error).__name__
