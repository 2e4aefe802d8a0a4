"""Tells stained tissue from glass, ink and dark edges of a scan, and blur."""

from typing import NamedTuple

import numpy as np
from PIL import Image
import scipy

# Bounds of the saturation threshold. Otsu's threshold lies in the noise of a
# slide without tissue, and between pale and dark tissue of one without glass.
_SATURATION = (0.06, 0.14)
_INK_HALO_UM = 24.0  # Ink fades over about this distance.
_LIGHTEST = 99  # Percentile of each channel that is the glass, if it is bright.
_BRIGHT = 200
_SMOOTH_UM = 9.0  # Gaps between cells are narrower, fat cells are wider.
_CLEAR = 0.9  # Transmission of every colour from which nothing is stained.


class Rule(NamedTuple):
  """What `tissue_mask` takes as tissue."""

  saturation: float | None = None  # Least one, 0 to 1; by default Otsu's.
  min_piece_mm2: float = 0.005  # Smaller pieces are dust.
  max_hole_mm2: float = 0.01  # Smaller holes are part of what is around them.


RULE = Rule()


def tissue_mask(image: np.ndarray, mpp: float, rule: Rule = RULE) -> np.ndarray:
  """Returns True where an overview shows stained tissue, bool [H, W].

  Tissue is what is more saturated than Otsu's threshold (Otsu, "A threshold
  selection method from gray-level histograms", IEEE Trans. SMC 9, 1979) and is
  not ink. Colours are taken relative to the glass, so that a tint of the lamp
  does not count. Small pieces are dropped and small holes are closed, except
  over ink.

  Made for haematoxylin and eosin: see `_ink` for what that excludes. Blood that
  is as red as ink may be lost.

  Args:
    image: overview, uint8 [H, W, 3]; about 8 um/px shows enough.
    mpp: its um/px.
    rule: in place of Otsu's threshold, and what is small.
  """
  smooth = scipy.ndimage.uniform_filter(image, (3, 3, 1))
  colour = _glass_colour(smooth).astype(np.float32)
  levels = np.minimum(np.arange(256, dtype=np.float32)[:, None] / colour, 1)
  light = np.stack([levels[smooth[..., c], c] for c in range(3)])
  saturation = 1 - light.min(0) / np.maximum(light.max(0), 1 / 255)
  ink = _ink(light)
  reach = round(_INK_HALO_UM / mpp)
  if reach and ink.any():
    ink = scipy.ndimage.distance_transform_edt(~ink) <= reach
  threshold = rule.saturation
  if threshold is None:
    threshold = np.clip(otsu(saturation[~ink]), *_SATURATION)
  mask = (saturation > threshold) & ~ink
  mask = ~_without_small(~mask, rule.max_hole_mm2 * 1e6 / mpp**2) & ~ink
  return _without_small(mask, rule.min_piece_mm2 * 1e6 / mpp**2)


def focus(tile: np.ndarray) -> float:
  """Returns the variance of a tile's Laplacian: the sharper, the larger.

  Of grey levels 0 to 255, as `cv2.Laplacian(grey, cv2.CV_64F).var()`
  (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR
  2000). It depends on the um/px, the stain and how much of a tile is tissue.

  Args:
    tile: uint8 [S, S, 3].
  """
  grey = np.asarray(Image.fromarray(tile).convert('L'), np.float32)
  return float(scipy.ndimage.laplace(grey, mode='mirror').var())


def glass(image: np.ndarray, mpp: float) -> np.ndarray:
  """Returns True where light passes unhindered, bool [H, W].

  Glass lets 0.9 or more of every colour pass, in the mean over 9 um. Fat cells
  do, too. `tissue_mask` is for overviews, where it can take whole slides into
  account; in a small image of tissue, its threshold and its rule for ink lie
  inside of tissue.

  Args:
    image: uint8 [H, W, 3].
    mpp: its um per pixel.
  """
  side = max(1, round(_SMOOTH_UM / mpp))
  smooth = scipy.ndimage.uniform_filter(image, (side, side, 1))
  return (smooth >= _CLEAR * _glass_colour(smooth)).all(-1)


def _glass_colour(smooth: np.ndarray) -> np.ndarray:
  """Returns the glass's level in each channel of a smoothed image, [3]."""
  light = np.percentile(smooth.reshape(-1, 3), _LIGHTEST, axis=0)
  return np.maximum(light, _BRIGHT)


def _ink(light: np.ndarray) -> np.ndarray:
  """Returns True on ink, and on grey and brown edges of slides, bool [H, W].

  Both dyes absorb green most. With r and b the optical densities of red and
  blue over that of green, real sections at 8 um/px have r below 0.86, and b
  from 0.55 to 0.85 where r is above 0.5. Ink lies elsewhere: green and most
  blue have r > 1.2, dark blue r near 1 and little b, black and grey r and b
  near 1, red b near 1 and hardly any r. Greys of a warm tint, at the edge of a
  scan or of a cover glass, have r below and b above 1. Nearly black is ink
  whatever its tint.

  Args:
    light: red, green and blue in 0..1, the glass being 1, [3, H, W].
  """
  density = -np.log(np.maximum(light, 1 / 255))
  red, green, blue = density
  deep = density.max(0) > 0.25
  green_or_blue = red > 1.2 * green
  blue_or_grey = (red > 0.95 * green) & (
    (blue < 0.5 * green) | (blue > 0.82 * green)
  )
  warm_grey = (red > 0.75 * green) & (blue > 0.95 * green)
  red_ink = (red < 0.25 * green) & (blue > 0.86 * green)
  black = (light.max(0) < 0.35) & (np.ptp(light, 0) < 0.1)
  inks = green_or_blue | blue_or_grey | warm_grey | red_ink
  return (deep & inks) | black


def otsu(values: np.ndarray) -> float:
  """Returns the threshold on values in 0..1 that best separates two classes.

  It maximises the variance between the classes over 256 bins; 0 if there are no
  values.
  """
  count, edges = np.histogram(values, 256, (0, 1))
  centre = (edges[1:] + edges[:-1]) / 2
  below, total = count.cumsum(), count.sum()
  moment = (count * centre).cumsum()
  above = total - below
  apart = moment * total - below * moment[-1]
  between = apart**2 / np.maximum(below * above, 1)
  return float(edges[1:][between.argmax()]) if total else 0.0


def _without_small(mask: np.ndarray, area: float) -> np.ndarray:
  """Returns a mask less its connected pieces of fewer than `area` pixels."""
  label, count = scipy.ndimage.label(mask)
  keep = np.bincount(label.ravel(), minlength=count + 1) >= area
  keep[0] = False
  return keep[label]
