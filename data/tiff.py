"""Writes pyramidal, tiled, JPEG-compressed TIFF files that OpenSlide opens."""

from collections.abc import Iterator
import io
from pathlib import Path

import numpy as np
from PIL import Image
import tifffile

from data import files

TILE = 256  # Tile side in pixels.


def write(
  path: Path, image: np.ndarray, *, mpp: float, levels: int, quality: int = 85
) -> None:
  """Writes an image as a pyramid of levels downsampled by 1, 2, 4, ...

  Each tile is a complete JPEG stream (YCbCr, 4:2:0) by Pillow, which may be
  built with an encoder of its own: pixels depend on it, not on tifffile. The
  file appears whole or not at all.

  Args:
    path: the file to write; it is replaced if it is there.
    image: level 0, uint8 [H, W, 3].
    mpp: micrometres per pixel of level 0.
    levels: how many levels, level 0 included, none of them empty.
    quality: JPEG quality.
  """
  with (
    files.replacing(path) as part,
    tifffile.TiffWriter(part, byteorder='<') as file,
  ):
    for level in range(levels):
      if level:
        image = _halve(image)
      file.write(
        _jpeg_tiles(image, quality),
        shape=image.shape,
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric='ycbcr',
        compression='jpeg',
        subsampling=(2, 2),
        subfiletype=int(level > 0),
        # 10,000 um per cm, in thousandths.
        resolution=((round(1e7 / (mpp * 2**level)), 1000),) * 2,
        resolutionunit='centimeter',
        software=False,
        metadata=None,
      )


def _jpeg_tiles(image: np.ndarray, quality: int) -> Iterator[bytes]:
  """Yields the tiles of image [H, W, 3], row-major, edges repeated."""
  height, width, _ = image.shape
  padded = np.pad(
    image, ((0, -height % TILE), (0, -width % TILE), (0, 0)), mode='edge'
  )
  for y in range(0, height, TILE):
    for x in range(0, width, TILE):
      stream = io.BytesIO()
      tile = Image.fromarray(padded[y : y + TILE, x : x + TILE])
      tile.save(stream, 'JPEG', quality=quality, subsampling=2)
      yield stream.getvalue()


def _halve(image: np.ndarray) -> np.ndarray:
  """Averages 2 x 2 pixels; an odd last row or column is dropped."""
  height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
  return np.asarray(Image.fromarray(image[:height, :width]).reduce(2))
