"""Turns haematoxylin and eosin densities into the colours a scanner sees."""

import dataclasses

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from data.phantom import texture
from data.phantom.nuclei import Canvas

DRAWN_MPP = 0.5  # Micrometres per pixel of the densities.


@dataclasses.dataclass(frozen=True)
class Appearance:
  """How a laboratory stains and a scanner sees.

  Attributes:
    haematoxylin: absorbance of red, green and blue per unit of density.
    eosin: the same for eosin.
    glass: mean transmission of empty glass.
    blur: mean radius of the point spread in level-0 pixels, whatever their
      size.
    focus: standard deviation of the log of that radius between slides.
    noise: standard deviation of the sensor's noise in grey levels.
    mpp: micrometres per pixel of level 0.
  """

  haematoxylin: tuple[float, float, float] = (0.72, 0.80, 0.36)
  eosin: tuple[float, float, float] = (0.10, 0.68, 0.32)
  glass: float = 0.955
  blur: float = 0.6
  focus: float = 0.35
  noise: float = 2.0
  mpp: float = 0.5


DEFAULT = Appearance()


def expose(
  look: Appearance, case: Generator, scan: Generator, canvas: Canvas, ink=None
) -> np.ndarray:
  """Returns the image of two stain densities under ink on the cover glass.

  Beer-Lambert: I_c = glass_c exp(-sum_s a_sc d_s) ink_c, sampled at the
  scanner's pixels, then its point spread and noise. Absorbances and the amounts
  of both stains vary between cases, and less between slides of a case.

  Args:
    look: laboratory and scanner.
    case: of what slides of a case have in common.
    scan: of what is the slide's own.
    canvas: densities at `DRAWN_MPP`, float32 [h, w].
    ink: transmission of pen and dust, float32 [h/8, w/8, 3]; None for none.

  Returns:
    uint8 [H, W, 3] at `look.mpp`, H and W multiples of 8; what is less than 8
    pixels beyond them, at the right and the lower edge, is not on the image.
  """
  absorbance = np.array([look.haematoxylin, look.eosin])
  for rng, hue, amount in ((case, 0.05, 0.16), (scan, 0.03, 0.1)):
    absorbance += rng.normal(0, hue, (2, 3))
    absorbance *= np.exp(rng.normal(0, amount, (2, 1)))
  absorbance = absorbance.clip(0.02).astype(np.float32)
  glass = look.glass + scan.normal(0, 0.008) + scan.normal(0, 0.004, 3)
  glass = (255 * glass.clip(0.9, 0.99)).astype(np.float32)
  shape = tuple(int(n * DRAWN_MPP / look.mpp) // 8 * 8 for n in canvas.shape)
  box = (0, 0, *(n * look.mpp / DRAWN_MPP for n in shape[::-1]))
  square = texture.PERIOD, texture.PERIOD
  white = np.random.default_rng(19).standard_normal(square, np.float32)
  y, x = scan.integers(0, texture.PERIOD, 2)
  noise = texture.stretch(
    2 * look.noise * white, shape, y, x
  )  # Blur halves it.
  image = np.empty((*shape, 3), np.uint8)
  for c, (a, b) in enumerate(absorbance.T):
    light = glass[c] * np.exp(-a * canvas.haematoxylin - b * canvas.eosin)
    if ink is not None:
      light *= texture.enlarge(ink[..., c], canvas.shape)
    light = texture.enlarge(light, shape, box) + np.roll(noise, 97 * c, 1)
    image[..., c] = light.clip(0, 255)
  blur = look.blur * float(np.exp(scan.normal(0, look.focus)))
  return np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(blur)))
