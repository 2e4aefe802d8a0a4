"""Masked multiple-instance learning for whole-slide pathology in JAX.

    import kmil_jax
    model = kmil_jax.fit(bags, labels, patients=cases)
    model.metrics(), model.predict(new_bags), model.attention(bag)

See docs/library.md.
"""

import importlib
from typing import Any

__version__ = '0.1.0'
__all__ = [
  'BagClassifier',
  'ModelSpec',
  'Predictions',
  'Recipe',
  'Trained',
  'fit',
  'load',
  'register',
]


def __getattr__(name: str) -> Any:
  """Imports the library where it is used: JAX and scikit-learn take seconds."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  home = 'estimator' if name == 'BagClassifier' else 'library'
  return getattr(importlib.import_module(f'kmil_jax.{home}'), name)
