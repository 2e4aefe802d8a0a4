"""Turns haematoxylin and eosin densities into the colours a scanner sees."""

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from data.phantom import texture

DRAWN_MPP = 0.5  # Micrometres per pixel of the densities.


@dataclasses.dataclass(frozen=True)
class Appearance:
  """How a laboratory stains and a scanner sees.

  Attributes:
    haematoxylin: absorbance of red, green and blue per unit of density.
    eosin: the same for eosin.
    hue_case: standard deviation of those absorbances between cases.
    hue_slide: the same between slides of a case.
    amount_case: standard deviation of the log of both stains' amounts between
      cases.
    amount_slide: the same between slides of a case.
    glass: mean transmission of empty glass.
    blur: mean radius of the point spread in level-0 pixels, whatever their
      size.
    focus: standard deviation of the log of that radius between slides.
    noise: standard deviation of the sensor's noise in grey levels.
    mpp: micrometres per pixel of level 0.
  """

  haematoxylin: tuple[float, float, float] = (0.72, 0.80, 0.36)
  eosin: tuple[float, float, float] = (0.10, 0.68, 0.32)
  hue_case: float = 0.05
  hue_slide: float = 0.03
  amount_case: float = 0.16
  amount_slide: float = 0.1
  glass: float = 0.955
  blur: float = 0.6
  focus: float = 0.35
  noise: float = 2.0
  mpp: float = 0.5


@dataclasses.dataclass(frozen=True)
class Stain:
  """One slide's stain: absorbance [2, 3] of H and E, and the glass [3]."""

  absorbance: np.ndarray
  glass: np.ndarray


def draw(
  look: Appearance, case: np.random.Generator, slide: np.random.Generator
) -> Stain:
  """Draws a slide's stain; what `case` draws its slides have in common."""
  absorbance = np.array([look.haematoxylin, look.eosin])
  for rng, hue, amount in (
    (case, look.hue_case, look.amount_case),
    (slide, look.hue_slide, look.amount_slide),
  ):
    absorbance = absorbance + rng.normal(0, hue, (2, 3))
    absorbance = absorbance * np.exp(rng.normal(0, amount, (2, 1)))
  glass = look.glass + slide.normal(0, 0.008) + slide.normal(0, 0.004, 3)
  return Stain(absorbance.clip(0.02), glass.clip(0.9, 0.99))


def expose(
  look: Appearance,
  stain: Stain,
  rng: np.random.Generator,
  haematoxylin: np.ndarray,
  eosin: np.ndarray,
  ink: np.ndarray | None = None,
) -> np.ndarray:
  """Returns the image of two stain densities under ink on the cover glass.

  Beer-Lambert: I_c = glass_c exp(-sum_s a_sc d_s) ink_c, sampled at the
  scanner's pixels, then its point spread and noise.

  Args:
    look: the scanner.
    stain: the slide's stain.
    rng: where the sensor's noise starts.
    haematoxylin: density at `DRAWN_MPP`, float32 [h, w].
    eosin: density, float32 [h, w].
    ink: transmission of pen and dust, float32 [h/8, w/8, 3]; None for none.

  Returns:
    uint8 [H, W, 3] at `look.mpp`, H and W multiples of 8; what is less than 8
    pixels beyond them, at the right and the lower edge, is not on the image.
  """
  drawn = haematoxylin.shape
  shape = tuple(int(n * DRAWN_MPP / look.mpp) // 8 * 8 for n in drawn)
  y, x = rng.integers(0, texture.PERIOD, 2)
  noise = texture.stretch(_sensor_noise(look.noise), shape, y, x)
  image = np.empty((*shape, 3), np.uint8)
  for c in range(3):
    a, b = stain.absorbance[:, c].astype(np.float32)
    light = np.exp(-a * haematoxylin - b * eosin)
    light *= np.float32(255 * stain.glass[c])
    if ink is not None:
      light *= texture.enlarge(ink[..., c], drawn)
    light = _sample(light, shape, look.mpp)
    light += np.roll(noise, 97 * c, 1)
    image[..., c] = np.clip(light, 0, 255, out=light)
  blur = look.blur * float(np.exp(rng.normal(0, look.focus)))
  blurred = Image.fromarray(image).filter(ImageFilter.BoxBlur(blur))
  return np.asarray(blurred)


def _sample(
  light: np.ndarray, shape: tuple[int, int], mpp: float
) -> np.ndarray:
  """Returns float32 light [h, w] at `mpp`, cut to `shape`, never stretched."""
  if mpp == DRAWN_MPP:
    return light
  height, width = (n * mpp / DRAWN_MPP for n in shape)
  sampled = Image.fromarray(light).resize(
    shape[::-1], Image.Resampling.BICUBIC, box=(0, 0, width, height)
  )
  return np.array(sampled)


def _sensor_noise(deviation: float) -> np.ndarray:
  """Returns white noise [P, P]; blurring takes about half of it away."""
  rng = np.random.default_rng(19)
  shape = (texture.PERIOD, texture.PERIOD)
  return 2 * deviation * rng.standard_normal(shape, np.float32)
