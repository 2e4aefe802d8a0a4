"""Reads pictures and masks of whole slides."""

import pathlib
import threading

import numpy as np
from PIL import Image

from data import files

# Pixels of an image. A file can claim any number, and memory is taken for them.
MOST = 2**30
_OPAQUE = 128  # Least alpha of a pixel that counts.
_LIMIT = threading.Lock()


def read(path: pathlib.Path | str, error: type[Exception]) -> Image.Image:
  """Returns an image, decoded.

  Pillow refuses 179 megapixels and more, which masks of slides can have; here
  the limit is `MOST`.

  Args:
    path: the file.
    error: what is raised, naming the file, if it cannot be decoded or is
      larger.
  """
  if fault := files.link_fault(pathlib.Path(path)):
    raise error(fault)
  try:
    with _LIMIT:
      limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
      try:
        image = Image.open(path)
      finally:
        Image.MAX_IMAGE_PIXELS = limit
    if image.width * image.height <= MOST:
      image.load()
      return image
  except Exception as e:  # Pillow raises anything on broken files.
    raise error(
      f'{path}: cannot be read as an image: {str(e) or type(e).__name__}.'
      ' Copy it again.'
    ) from e
  raise error(
    f'{path}: cannot be read, as its {image.width} x {image.height} px are more'
    f' than {MOST}. Save it at a coarser scale.'
  )


def mask_values(
  path: pathlib.Path, mask: Image.Image, error: type[Exception]
) -> np.ndarray:
  """Returns the numbers of a mask, [H, W] or [H, W, C], without its alpha.

  They are 0 where it is transparent.

  Args:
    path: of the mask, for messages.
    mask: as of `read`.
    error: what is raised if nothing that it marks is opaque: whoever drew it
      may have meant what is transparent, or what is not. Likewise if black is
      not 0 in its palette alone: programs order colours as they like.
  """
  values = np.asarray(mask)
  if mask.mode == 'P':
    used, colours = np.flatnonzero(mask.histogram()), np.zeros(768)
    colours[: len(mask.getpalette())] = mask.getpalette()
    if ((used != 0) != colours.reshape(-1, 3)[used].any(1)).any():
      raise error(
        f'{path}: the colours of its palette mark other pixels than their'
        ' numbers. Save it without a palette, white on tumour and black'
        ' elsewhere.'
      )
  if mask.mode not in ('LA', 'RGBA'):
    return values
  values, opaque = values[..., :-1], values[..., -1:] >= _OPAQUE
  shown = np.where(opaque, values, 0)
  if not shown.any() and (values.any() or len(np.unique(opaque)) > 1):
    raise error(
      f'{path}: marks nothing but by transparency. Save it without an alpha'
      ' channel, white on tumour and black elsewhere.'
    )
  return shown


def on_white(image: Image.Image) -> Image.Image:
  """Returns an image on white, like glass, where it is transparent."""
  if not image.has_transparency_data:
    return image
  white = Image.new('RGBA', image.size, 'white')
  return Image.alpha_composite(white, image.convert('RGBA'))
