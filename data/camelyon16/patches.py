"""Patches of CAMELYON16: their lists, the rule that draws them, their pixels.

The rule is that of NCRF and FW-RD.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import pathlib
import re

import numpy as np
import scipy

from data import files
from data.camelyon16 import slides
from data.labelled_tiles import LabelledTiles, TileError
from data.slides import Slide, SlideError
from data.tissue import otsu

SIZE = 256  # Side of a patch, level-0 pixels.
APART = 128  # Level-0 pixels between the centres of two patches, in x or y.
STRIDE = 64  # Level-0 pixels per pixel of a map: level 6.
CLASSES = ('tumor', 'normal')  # In FW-RD's order: normal is 1.
_DARKEST = 50  # A pixel of a map is nothing if any colour is at most this.
_ROW = re.compile(
  rf'(?P<key>(?P<slide>{slides.NAME}),(?P<x>\d{{1,9}}),(?P<y>\d{{1,9}}))',
  re.ASCII,
)
_OPEN = 32  # Slides kept open at a time.
# A pixel of a map and its diagonal neighbours at 2, which must be in it, too.
_INNER = np.zeros((5, 5), bool)
_INNER[::4, ::4] = _INNER[2, 2] = True


@dataclasses.dataclass(frozen=True)
class Patches:
  """Centres of patches.

  Attributes:
    slide: ids in lower case, str [n].
    xy: centres in level-0 pixels, int64 [n, 2].
  """

  slide: np.ndarray
  xy: np.ndarray

  def __len__(self) -> int:
    return len(self.slide)


def read(path: pathlib.Path | str) -> Patches:
  """Reads lines `slide,x,y`, the centre of a patch in level-0 pixels.

  Raises:
    TileError: naming every line that is not of this form, names no slide of
      CAMELYON16 or repeats another.
  """
  rows = slides.read_rows(path, _ROW, 'tumor_001,70592,125632')
  return Patches(
    np.array([row['slide'] for row in rows]),
    np.array([[row['x'], row['y']] for row in rows]).astype(np.int64),
  )


def write(path: pathlib.Path, patches: Patches) -> None:
  """Writes a list as `read` reads it."""
  rows = zip(patches.slide, *patches.xy.T, strict=True)
  files.write_csv(path, rows)


def sample(
  masks: Mapping[str, np.ndarray],
  sizes: Mapping[str, tuple[int, int]],
  count: int,
  seed: int,
  *,
  patch: int = SIZE,
  apart: int = APART,
  stride: int = STRIDE,
) -> Patches:
  """Draws patches at random within masks, by FW-RD's rule.

  A pixel of a mask is a candidate if its four diagonal neighbours at a distance
  of 2 are in the mask too; its centre is given as its upper left corner, a
  multiple of the stride, as in the released lists. Patches whose centres are
  closer than `apart` to an accepted one both in x and in y are discarded.
  Unlike there, so are patches that reach beyond the slide.

  Args:
    masks: of tumour or of normal tissue, bool [H, W] by slide id.
    sizes: (width, height) of the slides, level-0 pixels.
    count: wanted of every slide.
    seed: of the draws, which depend on it and on the slide's id alone.
    patch: side of a patch, level-0 pixels.
    apart: level-0 pixels.
    stride: level-0 pixels per pixel of the masks.

  Returns:
    At most `count` of every slide, in the order of ids and of drawing; fewer
    where no more fit, which the caller should tell.
  """
  names, centres = [], [np.zeros((0, 2), np.int64)]
  for name in sorted(masks):
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest)])
    candidates = scipy.ndimage.binary_erosion(masks[name], _INNER)
    xy = np.argwhere(candidates)[:, ::-1] * stride
    low, high = patch // 2, np.array(sizes[name]) - (patch - patch // 2)
    xy = rng.permutation(xy[((xy >= low) & (xy <= high)).all(1)])
    chosen = _spread(xy, count, apart)
    names += [name] * len(chosen)
    centres.append(chosen)
  return Patches(np.array(names, str), np.concatenate(centres))


def _spread(xy: np.ndarray, count: int, apart: int) -> np.ndarray:
  """Takes centres in turn that are not close to one taken before."""
  taken = np.empty((count, 2), np.int64)
  k = 0
  for centre in xy:
    if k == count:
      break
    if (np.abs(taken[:k] - centre) >= apart).any(1).all():
      taken[k] = centre
      k += 1
  return taken[:k]


def tissue_mask(image: np.ndarray) -> np.ndarray:
  """Returns True on tissue of an overview, bool [H, W].

  Tissue is more saturated (HSV) than Otsu's threshold, not brighter than it in
  all of red, green and blue, and above 50 in each of them.

  Args:
    image: uint8 [H, W, 3].
  """
  lowest, highest = image.min(-1), image.max(-1)
  saturation = (highest - lowest) / np.maximum(highest, 1)  # Of black: 0.
  colours = np.moveaxis(image / 255, -1, 0)
  bright = np.all([colour > otsu(colour) for colour in colours], 0)
  return (saturation > otsu(saturation)) & ~bright & (lowest > _DARKEST)


def tissue_map(slide: Slide, stride: int = STRIDE) -> np.ndarray:
  """Returns True on tissue of a slide, bool [H, W].

  H and W are those of the slide over the stride, rounded: the last pixel may
  reach half a stride beyond the border.

  Raises:
    SlideError: if the overview cannot be read.
  """
  return tissue_mask(slide.thumbnail(stride * slide.mpp))


def from_lists(
  files: Mapping[str, pathlib.Path],
  tumour: Patches,
  normal: Patches,
  *,
  size: int = SIZE,
) -> LabelledTiles:
  """Returns the patches of two lists, read at level 0.

  Args:
    files: of all their slides, by id in lower case.
    tumour: centres of the patches with tumour.
    normal: centres of those without.
    size: side of a patch, pixels.

  Returns:
    Tiles of the classes `CLASSES` in the order of the lists, tumour first;
    their group is the slide, `xy` their upper left corners, their ids
    '<slide>/x<x>_y<y>' with these.

  Raises:
    TileError: naming all slides that cannot be opened and patches that reach
      beyond their slide, or are in the lists twice.
  """
  slide = np.concatenate([tumour.slide, normal.slide])
  xy = np.concatenate([tumour.xy, normal.xy]) - size // 2
  problems = []
  for name in np.unique(slide).tolist():
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

  places = zip(slide, xy.tolist(), strict=True)
  return LabelledTiles(
    id=np.array([f'{name}/x{x}_y{y}' for name, (x, y) in places], str),
    label=np.repeat([0, 1], [len(tumour), len(normal)]).astype(np.int32),
    group=slide,
    classes=CLASSES,
    read=read,
    size=size,
    xy=xy,
  )
