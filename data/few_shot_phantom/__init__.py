"""A phantom of CAMELYON16: slides, annotations, reference and patch lists."""

from data.few_shot_phantom.cohort import (
  COUNTS,
  LEVEL,
  LISTS,
  MAIN,
  MPP,
  SIZE,
  STRIDE,
  make,
)

__all__ = [
  'COUNTS',
  'LEVEL',
  'LISTS',
  'MAIN',
  'MPP',
  'SIZE',
  'STRIDE',
  'make',
]
