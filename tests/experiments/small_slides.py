"""Small slides of coloured blocks, and an encoder that needs no network."""

import io
import struct

import numpy as np
from PIL import Image

from data import slides, tiff
from experiments.encoding.encoder import Encoder, network


def write(folder, sizes):
  """Writes slides of 0.5 um per pixel by name and (height, width)."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for name, (height, width) in sizes.items():
    coarse = rng.integers(0, 256, (height // 32, width // 32, 3), np.uint8)
    image = np.kron(coarse, np.ones((32, 32, 1), np.uint8))
    tiff.write(folder / f'{name}.tiff', image, mpp=0.5, levels=1)
  return slides.list_slides(folder)


MIRAX = """[GENERAL]
SLIDE_ID=x
IMAGENUMBER_X={across}
IMAGENUMBER_Y={across}
OBJECTIVE_MAGNIFICATION=40
CameraImageDivisionsPerSide=1
[HIERARCHICAL]
HIER_COUNT=1
NONHIER_COUNT=0
INDEXFILE=Index.dat
HIER_0_NAME=Slide zoom level
HIER_0_COUNT=1
HIER_0_VAL_0_SECTION=L
[DATAFILE]
FILE_COUNT=1
FILE_0=Data0000.dat
[L]
OVERLAP_X=0
OVERLAP_Y=0
MICROMETER_PER_PIXEL_X=0.25
MICROMETER_PER_PIXEL_Y=0.25
IMAGE_FORMAT=JPEG
IMAGE_FILL_COLOR_BGR=16777215
DIGITIZER_WIDTH={side}
DIGITIZER_HEIGHT={side}
IMAGE_CONCAT_FACTOR=0
"""


def write_mrxs(path, image, across=1):
  """Writes <name>.mrxs, which is empty, and the folder with all there is.

  Of `across` x `across` places for an image only the last one was scanned.
  """
  folder, jpeg = path.with_suffix(''), io.BytesIO()
  folder.mkdir()
  path.touch()
  Image.fromarray(image).save(jpeg, 'jpeg')
  size = jpeg.tell()
  (folder / 'Slidedat.ini').write_text(
    MIRAX.format(side=len(image), across=across)
  )
  (folder / 'Data0000.dat').write_bytes(jpeg.getvalue())
  # Offsets of the levels and of the level's pages; a page: one entry, no next
  # page; image, offset, size, file.
  last = across**2 - 1
  index = struct.pack('<11i', 14, 0, 18, 0, 26, 1, 0, last, 0, size, 0)
  (folder / 'Index.dat').write_bytes(b'01.02x' + index)


def colours(tiles):
  """Mean and deviation of each colour of normalised tiles, [T, 6]."""
  return np.concatenate([tiles.mean((1, 2)), tiles.std((1, 2))], 1)


def encoder(calls=None, **others):
  """The encoder `colours`; notes the shapes of its batches."""

  def encode(tiles):
    if calls is not None:
      calls.append(tiles.shape)
    return colours(np.asarray(network('resnet50').normalise(tiles)))

  about = {'name': 'colours-0', 'note': 'a test'} | others
  return Encoder(encode=encode, **about)
