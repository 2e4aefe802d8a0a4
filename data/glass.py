"""Tells glass from tissue in an image that need not hold any glass."""

import numpy as np
from scipy import ndimage

_SMOOTH_UM = 9.0  # Gaps between cells are narrower, fat cells are wider.
_LIGHTEST = 99  # Percentile of each channel that is the glass, if it is bright.
_BRIGHT = 200
_CLEAR = 0.9  # Transmission of every colour from which nothing is stained.


def glass(image: np.ndarray, mpp: float) -> np.ndarray:
  """Returns True where light passes unhindered, bool [H, W].

  Glass lets 0.9 or more of every colour pass, in the mean over 9 um. Fat cells
  do, too. `data.tissue` is for overviews of slides, where it can take whole
  slides into account; in a small image of tissue, its threshold and its rule
  for ink lie inside of tissue.

  Args:
    image: uint8 [H, W, 3].
    mpp: its um per pixel.
  """
  side = max(1, round(_SMOOTH_UM / mpp))
  smooth = ndimage.uniform_filter(image, (side, side, 1))
  light = np.percentile(smooth.reshape(-1, 3), _LIGHTEST, axis=0)
  clear = smooth >= _CLEAR * np.maximum(light, _BRIGHT)
  return clear.all(-1)
