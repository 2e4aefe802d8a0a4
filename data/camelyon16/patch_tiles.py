"""Opens the patches of lists as labelled tiles."""

from collections.abc import Mapping
import functools
import pathlib

import numpy as np

from data.camelyon16.patches import SIZE, Patches
from data.labelled_tiles import LabelledTiles, TileError
from data.slides import Slide, SlideError

CLASSES = ('tumor', 'normal')  # In FW-RD's order: normal is 1.
_OPEN = 32  # Slides kept open at a time.


def from_lists(
  files: Mapping[str, pathlib.Path],
  tumour: Patches,
  normal: Patches,
  *,
  size: int = SIZE,
) -> LabelledTiles:
  """Returns the patches of two lists, read at level 0.

  Args:
    files: of slides, by id in lower case.
    tumour: centres of the patches with tumour.
    normal: centres of those without.
    size: side of a patch, pixels.

  Returns:
    Tiles of the classes `CLASSES` in the order of the lists, tumour first;
    their group is the slide, `xy` their upper left corners, their ids
    '<slide>/x<x>_y<y>' with these.

  Raises:
    TileError: naming all slides that are missing or cannot be opened, and
      patches that reach beyond their slide or are in both lists.
  """
  slide = np.concatenate([tumour.slide, normal.slide])
  xy = np.concatenate([tumour.xy, normal.xy]) - size // 2
  problems = []
  names = np.unique(slide).tolist()
  if missing := [name for name in names if name not in files]:
    problems.append(f'{len(missing)} slide(s) missing: {", ".join(missing)}')
  for name in (name for name in names if name in files):
    try:
      with Slide(files[name], default_mpp=1.0) as opened:
        last = np.array([opened.width, opened.height]) - size
    except SlideError as e:
      problems.append(str(e))
      continue
    here = xy[slide == name]
    outside = here[((here < 0) | (here > last)).any(1)]
    problems += [
      f'{name}: the patch of {size} px around {(x + size // 2, y + size // 2)} '
      f'reaches beyond {files[name].name}'
      for x, y in outside.tolist()
    ]
  ids = np.array(
    [
      f'{name}/x{x}_y{y}'
      for name, (x, y) in zip(slide, xy.tolist(), strict=True)
    ],
    str,
  )
  both = sorted(set(ids[: len(tumour)]) & set(ids[len(tumour) :]))
  problems += [f'{i}: in both lists' for i in both]
  if problems:
    raise TileError.listing(problems, 'patches that cannot be used')
  # A slide that leaves the cache is closed when its last reader is done.
  opened = functools.lru_cache(_OPEN)(
    lambda name: Slide(files[name], default_mpp=1.0)
  )

  def read(i: int) -> np.ndarray:
    x, y = xy[i].tolist()
    try:
      return opened(str(slide[i])).read(x, y, 0, size, size)
    except SlideError as e:
      raise TileError(str(e)) from e

  label = np.repeat([0, 1], [len(tumour), len(normal)]).astype(np.int32)
  return LabelledTiles(
    id=ids,
    label=label,
    group=slide,
    classes=CLASSES,
    read=read,
    size=size,
    xy=xy,
  )
