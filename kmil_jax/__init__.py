"""Masked multiple-instance learning for whole-slide pathology in JAX.

    import kmil_jax
    model = kmil_jax.fit(bags, labels, patients=cases)
    model.metrics(), model.predict(new_bags), model.attention(bag)

See docs/library.md.
"""

from typing import Any

__version__ = '0.1.0'
__all__ = [
  'ModelSpec',
  'Predictions',
  'Recipe',
  'Trained',
  'fit',
  'load',
  'register',
]


def __getattr__(name: str) -> Any:
  """Imports the library where it is used: JAX takes a second."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from kmil_jax import library, types

  return getattr(types if name in ('ModelSpec', 'Recipe') else library, name)
