"""Reads image files of tiles: sizes when a set is opened, pixels when asked."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image

from data.labelled_tiles import TileError

EXTENSIONS = ('.png', '.jpg', '.jpeg')
_MODES = ('L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK')  # Eight bits per channel.

Open = Callable[[], BinaryIO]


def check_sizes(
  names: Sequence[str], files: Sequence[Open]
) -> tuple[int, int, list[int], list[str]]:
  """Looks at the headers of image files.

  Args:
    names: what messages call the files, at least one.
    files: opens each.

  Returns:
    S and C of the tiles, the places of tiles that were cut at the border of
    their image, and the problems. S is the side of most squares; C is 1 if
    every file is grey, else 3. Cut tiles are shorter and no side is longer.
  """
  sizes, modes, problems, cut = {}, set(), [], []
  for i, (name, file) in enumerate(zip(names, files, strict=True)):
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
      sizes[i] = size
  squares = Counter(w for w, h in sizes.values() if w == h)
  side = squares.most_common(1)[0][0] if squares else 0
  for i, (w, h) in sizes.items():
    if max(w, h) <= side and min(w, h) < side:
      cut.append(i)
    elif (w, h) != (side, side):
      problems.append(
        f'{names[i]}: {w} x {h} px; tiles are squares'
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
      if image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image)
      pixels = np.asarray(image.convert('L' if channels == 1 else 'RGB'))
  except Exception as e:  # Pillow raises anything on broken files.
    raise TileError(
      f'{name}: cannot be decoded ({_text(e)}); copy it again or leave it out'
    ) from e
  return pixels.reshape(*pixels.shape[:2], channels)


def _text(error: Exception) -> str:
  return str(error) or type(error).__name__
