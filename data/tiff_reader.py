"""Reads tiles of slides that are TIFF files faster than OpenSlide does.

OpenSlide decodes one tile at a time and converts its pixels twice. Here the
tiles of a file are decoded by imagecodecs in whatever thread asks for them.
OpenSlide stays the reference: it says what levels there are and what part of
them is a slide, and a file is read here only where tiles of it are the same.
"""

import functools
import os
import pathlib

import numpy as np
import tifffile

_COMPRESSIONS = frozenset({1, 5, 7, 8, 32946, 33003, 33005, 34712})
_JPEGS = frozenset({7, 33003, 33005, 34712})  # Of those; JPEG 2000, too.
_END = b'\xff\xd9'  # Of a JPEG; writers may pad it.
_CACHED = 2**27  # Bytes of tiles that are kept, as regions share them.


class TiffReader:
  """The tiled levels of a TIFF file.

  Args:
    path: of the file.
    dimensions: (width, height) of the levels that are wanted.
    strict: leaves out JPEG, of which imagecodecs does not say all damage that
      OpenSlide names.

  Raises:
    Exception: of many kinds, if the file is no TIFF, or is damaged.
  """

  def __init__(
    self,
    path: pathlib.Path,
    dimensions: tuple[tuple[int, int], ...],
    strict: bool = False,
  ):
    known = _COMPRESSIONS - (_JPEGS if strict else frozenset())
    with tifffile.TiffFile(path) as file:
      pages = [
        page
        for first in file.pages
        for page in (first, *(first.pages or ()))
        if page.compression in known and _is_readable(page)
      ]
      by_size = {(p.imagewidth, p.imagelength): p for p in reversed(pages)}
      self._pages = [by_size.get(tuple(size)) for size in dimensions]
      for page in filter(None, self._pages):
        page.decode  # noqa: B018  (Made, and kept, while the file is open.)
    largest = max(
      (3 * p.tilewidth * p.tilelength for p in filter(None, self._pages)),
      default=1,
    )
    self._tile = functools.lru_cache(_CACHED // largest)(self._decode)
    self._file = pathlib.Path(path).open('rb')

  def close(self) -> None:
    self._tile.cache_clear()
    self._file.close()

  def has(self, level: int) -> bool:
    """Whether a level is one of the file's tiled images."""
    return self._pages[level] is not None

  def read(
    self, level: int, x: int, y: int, width: int, height: int
  ) -> np.ndarray | None:
    """Returns a region, uint8 [height, width, 3]; from any thread.

    Args:
      level: of which `has` is true.
      x, y: upper left corner, in pixels of the level.
      width, height: of the region, which lies inside the level.

    Returns:
      Red, green and blue; None where a tile is not stored, or looks damaged.

    Raises:
      Exception: of many kinds, if a tile is damaged.
    """
    page = self._pages[level]
    tile_w, tile_h = page.tilewidth, page.tilelength
    across = -(-page.imagewidth // tile_w)
    out = np.empty((height, width, 3), np.uint8)
    for row in range(y // tile_h, (y + height - 1) // tile_h + 1):
      for column in range(x // tile_w, (x + width - 1) // tile_w + 1):
        tile = self._tile(level, row * across + column)
        if tile is None:
          return None
        top, left = row * tile_h - y, column * tile_w - x
        rows = slice(max(top, 0), min(top + tile_h, height))
        columns = slice(max(left, 0), min(left + tile_w, width))
        out[rows, columns] = tile[
          rows.start - top : rows.stop - top,
          columns.start - left : columns.stop - left,
        ]
    return out

  def _decode(self, level: int, index: int) -> np.ndarray | None:
    """Returns red, green and blue of a tile, or None; see `read`.

    imagecodecs passes over what is missing of a JPEG: without an end it was cut
    off, and blocks for which there were no numbers are of a middle grey.
    """
    page = self._pages[level]
    size = page.databytecounts[index]
    if not size:
      return None
    data = os.pread(self._file.fileno(), size, page.dataoffsets[index])
    jpeg = page.compression in _JPEGS
    if len(data) < size or (jpeg and _END not in data[-4:]):
      return None
    tile, _, _ = page.decode(
      data, index, jpegtables=page.jpegtables, _fullsize=True
    )
    return None if jpeg and (tile[0, -8:, -8:] == 128).all() else tile[0]


def _is_readable(page: tifffile.TiffPage) -> bool:
  """Whether an image is of 8-bit colours in tiles."""
  return (
    page.is_tiled
    and page.dtype == np.uint8
    and page.samplesperpixel == 3
    and page.planarconfig == 1
    and page.imagedepth == 1
  )
