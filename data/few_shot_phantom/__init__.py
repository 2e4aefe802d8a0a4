"""A phantom of CAMELYON16: slides, annotations, reference and patch lists."""

from data.few_shot_phantom.cohort import (
  APART,
  LEVEL,
  LISTS,
  MPP,
  SIZE,
  STRIDE,
  make,
)

__all__ = ['APART', 'LEVEL', 'LISTS', 'MPP', 'SIZE', 'STRIDE', 'make']
