"""Lists of patch centres: read, checked against slides, and drawn anew."""

from collections.abc import Mapping
import csv
import dataclasses
import hashlib
import pathlib

import numpy as np

from data import atomic
from data.camelyon16.slides import part
from data.camelyon16.tissue import STRIDE
from data.labelled_tiles import TileError

SIZE = 256  # Side of a patch, level-0 pixels.
APART = 128  # Level-0 pixels between the centres of two patches, in x or y.
_INNER = 2  # Pixels of the map to the diagonal neighbours that must be in it.


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

  def of(self, slide: str) -> np.ndarray:
    """Returns the centres in one slide, [k, 2]."""
    return self.xy[self.slide == slide]


def read(path: pathlib.Path | str) -> Patches:
  """Reads lines `slide,x,y`, the centre of a patch in level-0 pixels.

  Raises:
    TileError: naming every line that is not of this form, names no slide of
      CAMELYON16 or repeats another.
  """
  path = pathlib.Path(path)
  try:
    with path.open(newline='', encoding='utf-8-sig') as f:
      reader = csv.reader(f)
      rows = [(reader.line_num, row) for row in reader if row]
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise TileError(f'{path}: cannot be read as CSV: {e}') from e
  seen, problems = {}, []
  for line, row in rows:
    cells = [cell.strip() for cell in row]
    try:
      name, x, y = cells[0].lower(), int(cells[1]), int(cells[2])
      part(name)
      if len(cells) != 3 or min(x, y) < 0 or max(x, y) >= 2**31:
        raise ValueError
    except (IndexError, ValueError):
      problems.append(
        f'line {line}: found {",".join(row)[:80]!r}; slide,x,y is needed, such '
        'as tumor_001,70592,125632'
      )
      continue
    first = seen.setdefault((name, x, y), line)
    if first != line:
      problems.append(f'line {line}: the same patch as line {first}')
  if not rows:
    problems.append('no lines')
  if problems:
    raise TileError.listing(problems, str(path))
  return Patches(
    np.array([name for name, _, _ in seen]),
    np.array([[x, y] for _, x, y in seen], np.int64),
  )


def write(path: pathlib.Path, patches: Patches) -> None:
  """Writes a list as `read` reads it."""
  with atomic.replacing(path) as file, file.open('w', encoding='utf-8') as f:
    for slide, (x, y) in zip(patches.slide, patches.xy, strict=True):
      f.write(f'{slide},{x},{y}\n')


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
  slides, centres = [], [np.zeros((0, 2), np.int64)]
  for name in sorted(masks):
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest)])
    xy = np.argwhere(_inner(masks[name]))[:, ::-1] * stride
    low, high = patch // 2, np.array(sizes[name]) - (patch - patch // 2)
    xy = rng.permutation(xy[((xy >= low) & (xy <= high)).all(1)])
    chosen = _spread(xy, count, apart)
    slides += [name] * len(chosen)
    centres.append(chosen)
  return Patches(np.array(slides, str), np.concatenate(centres))


def _inner(mask: np.ndarray) -> np.ndarray:
  """True where a pixel and its four diagonal neighbours at 2 are in a mask."""
  height, width = mask.shape
  padded = np.pad(mask, _INNER)
  found = mask.copy()
  for dy in (0, 2 * _INNER):
    for dx in (0, 2 * _INNER):
      found &= padded[dy : dy + height, dx : dx + width]
  return found


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
