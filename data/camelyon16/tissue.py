"""Where a slide holds tissue, by the rule of NCRF and FW-RD."""

import numpy as np

from data.slides import Slide
from data.tissue import otsu

STRIDE = 64  # Level-0 pixels per pixel of a map: level 6.
_DARKEST = 50  # A pixel is nothing if any colour is at most this.


def tissue_mask(image: np.ndarray) -> np.ndarray:
  """Returns True on tissue of an overview, bool [H, W].

  Tissue is more saturated (HSV) than Otsu's threshold, not brighter than it in
  all of red, green and blue, and above 50 in each of them.

  Args:
    image: uint8 [H, W, 3].
  """
  lowest, highest = image.min(-1), image.max(-1)
  saturation = 1 - lowest / np.maximum(highest, 1.0)
  bright = np.ones(lowest.shape, bool)
  for colour in np.moveaxis(image / 255, -1, 0):
    bright &= colour > otsu(colour)
  return (saturation > otsu(saturation)) & ~bright & (lowest > _DARKEST)


def tissue_map(slide: Slide, stride: int = STRIDE) -> np.ndarray:
  """Returns True on tissue of a slide, bool [H, W].

  H and W are those of the slide over the stride, rounded: the last pixel may
  reach half a stride beyond the border.

  Raises:
    SlideError: if the overview cannot be read.
  """
  return tissue_mask(slide.thumbnail(stride * slide.mpp))
