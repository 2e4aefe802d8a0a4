"""Opens image files of one class: a pool that was labelled as a whole."""

import functools
import pathlib

import numpy as np

from data.labelled_tiles import LabelledTiles, TileError
from data.tile_images import EXTENSIONS, check_sizes, decode
from data.tile_sources import without_cut


def from_files(
  root: pathlib.Path | str, classes: tuple[str, ...]
) -> LabelledTiles:
  """Opens all `*.png|jpg|jpeg` in a folder and the folders below it.

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
  paths = sorted(
    path
    for path in root.rglob('*')
    if path.suffix.lower() in EXTENSIONS
    and not any(p.startswith('.') for p in path.relative_to(root).parts)
  )
  if not paths:
    raise TileError(
      f'{root}: no image ({", ".join(EXTENSIONS)}) in this folder'
    )
  names = [str(path) for path in paths]
  files = [functools.partial(path.open, 'rb') for path in paths]
  size, channels, cut, problems = check_sizes(names, files)
  if problems:
    raise TileError.listing(problems, str(root))
  inside = [path.relative_to(root) for path in paths]
  tiles = LabelledTiles(
    id=np.array([path.as_posix() for path in inside], str),
    label=np.zeros(len(paths), np.int32),
    group=np.array(
      [
        path.parts[0] if len(path.parts) > 1 else path.stem.split('_')[0]
        for path in inside
      ],
      str,
    ),
    classes=classes,
    read=lambda i: decode(names[i], files[i], channels),
    size=size,
    channels=channels,
  )
  return without_cut(tiles, names, cut, root)
