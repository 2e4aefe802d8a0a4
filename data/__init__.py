"""Slides, tiles, features and labels, read with NumPy and without JAX.

    import data
    cohort = data.read_cohort('labels.csv', 'features')

See docs/library.md.
"""

from typing import Any

__all__ = ['CohortError', 'LabelledBags', 'read_cohort']


def __getattr__(name: str) -> Any:
  """Imports the reader where it is used, as `kmil_jax` does."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from data import cohort

  return getattr(cohort, name)
