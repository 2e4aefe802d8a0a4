"""Writes pyramidal, tiled, JPEG-compressed TIFF files that OpenSlide opens."""

from collections.abc import Sequence
import io
from pathlib import Path
import struct

import numpy as np
from PIL import Image

from data import atomic

TILE = 256  # Tile side in pixels.
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_LAYOUT = {_SHORT: 'H', _LONG: 'I', _RATIONAL: 'II'}


def _jpeg(tile: np.ndarray, quality: int) -> bytes:
  """Returns one complete JPEG stream (YCbCr, 4:2:0) of tile [256, 256, 3]."""
  stream = io.BytesIO()
  Image.fromarray(tile).save(stream, 'JPEG', quality=quality, subsampling=2)
  return stream.getvalue()


def _encode_tiles(image: np.ndarray, quality: int) -> list[bytes]:
  """Returns the JPEG tiles of image [H, W, 3], row-major, edges repeated."""
  height, width, _ = image.shape
  padded = np.pad(
    image, ((0, -height % TILE), (0, -width % TILE), (0, 0)), mode='edge'
  )
  return [
    _jpeg(padded[y : y + TILE, x : x + TILE], quality)
    for y in range(0, height, TILE)
    for x in range(0, width, TILE)
  ]


def _directory(
  entries: Sequence[tuple[int, int, Sequence[int]]], start: int, more: bool
) -> bytes:
  """Returns an image file directory laid out at file position `start`.

  Args:
    entries: (tag, type, values) in ascending order of tag.
    start: where the directory will lie in the file, in bytes.
    more: whether another directory follows directly after this one.

  Returns:
    The directory, then the values too long for an entry, padded to even length.
  """
  extra_at = start + 2 + 12 * len(entries) + 4
  table, extra = bytearray(struct.pack('<H', len(entries))), bytearray()
  for tag, kind, values in entries:
    count = len(values) // len(_LAYOUT[kind])
    data = struct.pack('<' + _LAYOUT[kind] * count, *values)
    if len(data) > 4:
      table += struct.pack('<HHII', tag, kind, count, extra_at + len(extra))
      extra += data + b'\0' * (len(data) % 2)
    else:
      table += struct.pack('<HHI', tag, kind, count) + data.ljust(4, b'\0')
  following = extra_at + len(extra) if more else 0
  return bytes(table) + struct.pack('<I', following) + bytes(extra)


def _entries(
  level: int, width: int, height: int, mpp: float, tiles: list, offset: int
) -> list[tuple[int, int, Sequence[int]]]:
  """Returns the tags of one level whose first tile lies at `offset`."""
  sizes = [len(tile) for tile in tiles]
  offsets = offset + np.concatenate([[0], np.cumsum(sizes)[:-1]])
  per_cm = (round(1e7 / mpp), 1000)  # 10,000 um per cm, in thousandths.
  return [
    (254, _LONG, [int(level > 0)]),  # NewSubfileType: reduced resolution.
    (256, _LONG, [width]),
    (257, _LONG, [height]),
    (258, _SHORT, [8, 8, 8]),
    (259, _SHORT, [7]),  # Compression: JPEG.
    (262, _SHORT, [6]),  # Photometric interpretation: YCbCr.
    (277, _SHORT, [3]),
    (282, _RATIONAL, per_cm),
    (283, _RATIONAL, per_cm),
    (284, _SHORT, [1]),  # Planar configuration: interleaved.
    (296, _SHORT, [3]),  # Resolution unit: centimetre.
    (322, _LONG, [TILE]),
    (323, _LONG, [TILE]),
    (324, _LONG, offsets.tolist()),
    (325, _LONG, sizes),
    (530, _SHORT, [2, 2]),  # Chroma subsampling.
  ]


def write(
  path: Path, image: np.ndarray, *, mpp: float, levels: int, quality: int = 85
) -> None:
  """Writes an image as a pyramid of levels downsampled by 1, 2, 4, ...

  TIFF 6.0 with Technical Note 2 (JPEG, compression 7): each tile is a JPEG
  stream of its own, so no shared tables are needed. Tiles come first, one
  directory per level last. The file appears whole or not at all.

  Args:
    path: the file to write; it is replaced if it is there.
    image: level 0, uint8 [H, W, 3].
    mpp: micrometres per pixel of level 0.
    levels: how many levels, level 0 included.
    quality: JPEG quality.

  Raises:
    ValueError: if the image is not uint8 [H, W, 3] or a level would be empty.
  """
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    raise ValueError(
      f'{path}: found an image {image.dtype} {image.shape}; '
      'pass uint8 [H, W, 3].'
    )
  if min(image.shape[:2]) >> (levels - 1) == 0:
    raise ValueError(
      f'{path}: {levels} levels of an image {image.shape[:2]} leave an '
      'empty level; ask for fewer levels.'
    )
  body = bytearray(struct.pack('<2sHI', b'II', 42, 0))
  directories = []
  for level in range(levels):
    if level:
      image = _halve(image)
    tiles = _encode_tiles(image, quality)
    height, width, _ = image.shape
    directories.append(
      _entries(level, width, height, mpp / 2**level, tiles, len(body))
    )
    body += b''.join(tiles)
  body += b'\0' * (len(body) % 2)
  struct.pack_into('<I', body, 4, len(body))
  for level, entries in enumerate(directories):
    body += _directory(entries, len(body), level + 1 < levels)
  with atomic.replacing(path) as part:
    part.write_bytes(body)


def _halve(image: np.ndarray) -> np.ndarray:
  """Averages 2 x 2 pixels; an odd last row or column is dropped."""
  height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
  return np.asarray(Image.fromarray(image[:height, :width]).reduce(2))
