"""Reads tiles of slides that are TIFF files faster than OpenSlide does.

OpenSlide decodes one tile at a time and converts its pixels twice. Here the
tiles of a file are decoded in whatever thread asks for them: JPEG by
simplejpeg, for which libjpeg's warnings are errors, as they are for OpenSlide,
and the rest by imagecodecs. OpenSlide stays the reference: it says what levels
there are and what part of them is a slide, and a file is read here only where
tiles of it are the same.
"""

import functools
import os
import pathlib

import numpy as np
import simplejpeg
import tifffile

_JPEG = 7
_JPEG_2000 = frozenset({33003, 33005, 34712})
_COMPRESSIONS = frozenset({1, 5, _JPEG, 8, 32946, *_JPEG_2000})
# A JPEG starts with it, and with Adobe's segment, whose last byte says whether
# the colours are YCbCr: what they are is written in the TIFF, not in its tiles.
_START = b'\xff\xd8\xff\xee\0\x0eAdobe\0\x64\0\0\0\0'
_END = b'\xff\xd9'  # Of either; writers may pad it.
_CACHED = 2**27  # Bytes of tiles that are kept, as regions share them.


class LengthError(Exception):
  """A tile is said to be longer than the file."""


class TiffReader:
  """The tiled levels of a TIFF file.

  Args:
    path: of the file.
    dimensions: (width, height) of the levels that are wanted.
    strict: leaves out JPEG 2000, of which imagecodecs does not say all damage
      that OpenSlide names.

  Raises:
    LengthError: if a tile is longer than the file: OpenSlide, too, would ask
      for that much memory, and end the process if there is not as much.
    Exception: of many kinds, if the file is no TIFF, or is damaged.
  """

  def __init__(
    self,
    path: pathlib.Path,
    dimensions: tuple[tuple[int, int], ...],
    strict: bool = False,
  ):
    known = _COMPRESSIONS - (_JPEG_2000 if strict else frozenset())
    with tifffile.TiffFile(path) as file:
      stored = [
        page for first in file.pages for page in (first, *(first.pages or ()))
      ]
      lengths = [n for p in stored if p.is_tiled for n in p.databytecounts]
      if max(lengths, default=0) > file.filehandle.size:
        raise LengthError(f'a tile of {max(lengths)} bytes is said to be in it')
      pages = [
        page
        for page in stored
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
  ) -> np.ndarray:
    """Returns a region: red, green and blue, uint8 [height, width, 3].

    Any thread may call it.

    Args:
      level: of which `has` is true.
      x, y: upper left corner, in pixels of the level.
      width, height: of the region, which lies inside the level.

    Raises:
      Exception: of many kinds, if a tile is not stored, or damaged.
    """
    page = self._pages[level]
    tile_w, tile_h = page.tilewidth, page.tilelength
    across = -(-page.imagewidth // tile_w)
    out = np.empty((height, width, 3), np.uint8)
    for row in range(y // tile_h, (y + height - 1) // tile_h + 1):
      for column in range(x // tile_w, (x + width - 1) // tile_w + 1):
        tile = self._tile(level, row * across + column)
        top, left = row * tile_h - y, column * tile_w - x
        rows = slice(max(top, 0), min(top + tile_h, height))
        columns = slice(max(left, 0), min(left + tile_w, width))
        out[rows, columns] = tile[
          rows.start - top : rows.stop - top,
          columns.start - left : columns.stop - left,
        ]
    return out

  def _decode(self, level: int, index: int) -> np.ndarray:
    """Returns red, green and blue of a tile; see `read`.

    imagecodecs passes over what is missing of a JPEG 2000: without an end it
    was cut off.
    """
    page = self._pages[level]
    size = page.databytecounts[index]
    data = os.pread(self._file.fileno(), size, page.dataoffsets[index])
    whole = len(data) == size > 0
    if page.compression == _JPEG:
      whole &= data[:2] == _START[:2]
    elif page.compression in _JPEG_2000:
      whole &= _END in data[-4:]
    if not whole:
      raise ValueError('the tile is not stored, or not whole')
    if page.compression == _JPEG:
      tables = (page.jpegtables or _START[:2] + _END)[2:-2]
      ycbcr = page.photometric == tifffile.PHOTOMETRIC.YCBCR
      joined = _START + bytes([ycbcr]) + tables + data[2:]
      tile = np.empty((page.tilelength, page.tilewidth, 3), np.uint8)
      decoded = simplejpeg.decode_jpeg(joined, buffer=tile)
      if decoded.shape != tile.shape:
        raise ValueError('the tile is of another size')
      return tile
    return page.decode(data, index, _fullsize=True)[0][0]


def _is_readable(page: tifffile.TiffPage) -> bool:
  """Whether an image is of 8-bit colours in tiles."""
  return (
    page.is_tiled
    and page.dtype == np.uint8
    and page.samplesperpixel == 3
    and page.planarconfig == 1
    and page.imagedepth == 1
  )
