"""Decides how many micrometres a level-0 pixel of a slide measures."""

from collections.abc import Mapping
import math
import warnings

from data.slide_files import SlideError

_OBJECTIVE = 'openslide.objective-power'
MPP_RANGE = (0.05, 20.0)  # um/px; outside it a scale is a default or a lie.
_SCANNERS = (0.1, 2.0)  # um/px that scanners have; else a warning.
_POWER = 0.2  # Relative difference of scale and objective that is warned of.
_ANISOTROPY = 0.02  # Relative difference of mpp-x and mpp-y that is warned of.


def pixel_size(
  name: str,
  properties: Mapping[str, str],
  default_mpp: float | None,
  mpp: float | None = None,
) -> tuple[float, str]:
  """Returns the level-0 scale, um/px, and where it comes from.

  Tried in turn: `mpp`, OpenSlide's own figure, the TIFF resolution tags, and
  `default_mpp`. A figure outside `MPP_RANGE` counts as absent: 72 dpi, for
  instance, is what image editors write who know no scale.

  Args:
    name: of the slide, for messages.
    properties: OpenSlide's properties.
    default_mpp: um/px of a slide that does not state it, or None.
    mpp: um/px of this slide, whatever it states, or None.

  Raises:
    SlideError: if no source states a plausible scale.
  """
  unit = {'centimeter': 1e4, 'inch': 25400.0}.get(
    properties.get('tiff.ResolutionUnit'), math.nan
  )
  stated = {
    'mpp_csv': [math.nan if mpp is None else mpp] * 2,
    'openslide': [_number(properties, f'openslide.mpp-{a}') for a in 'xy'],
    'tiff': [
      unit / (_number(properties, f'tiff.{a}Resolution') or math.nan)
      for a in 'XY'
    ],
    'default_mpp': [math.nan if default_mpp is None else default_mpp] * 2,
  }
  for source, (x, y) in stated.items():
    if all(MPP_RANGE[0] <= mpp <= MPP_RANGE[1] for mpp in (x, y)):
      if abs(x - y) > _ANISOTROPY * (x + y) / 2:
        warnings.warn(
          f'{name}: {x:g} um/px across but {y:g} um/px down ({source}); the '
          'mean is used, and tiles are distorted by that much.',
          stacklevel=4,
        )
      mean = (x + y) / 2
      if doubt := _doubt(mean, _number(properties, _OBJECTIVE)):
        warnings.warn(
          f'{name}: {mean:g} um/px ({source}), {doubt}', stacklevel=4
        )
      return mean, source
  found = ', '.join(
    f'{source}: {x:g} x {y:g}'
    for source, (x, y) in stated.items()
    if not math.isnan(x + y)
  )
  raise SlideError(
    f'{name}: no usable um/px of level 0 (found {found or "none"}; usable are '
    f'{MPP_RANGE[0]:g} to {MPP_RANGE[1]:g}); pass --default_mpp or --mpp_csv.'
  )


def _doubt(mpp: float, power: float) -> str:
  """Says what is odd about a scale, if anything."""
  if not _SCANNERS[0] <= mpp <= _SCANNERS[1]:
    low, high = _SCANNERS
    return f'where scanners have {low:g} to {high:g}; is it a mistake?'
  # An objective of 40x gives 0.25 um/px on all common scanners.
  if power > 0 and abs(mpp * power / 10 - 1) > _POWER:
    return (
      f'but an objective of {power:g}x, which gives about {10 / power:g}; the'
      ' former is used'
    )
  return ''


def _number(properties: Mapping[str, str], key: str) -> float:
  """Returns a property as a number, NaN if it is absent or is not one."""
  try:
    return float(properties.get(key, 'nan'))
  except ValueError:
    return math.nan
