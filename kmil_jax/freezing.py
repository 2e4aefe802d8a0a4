"""Modules that training leaves as they are, named by a regular expression.

The expression is matched from the beginning of module paths, as `layer1_0/bn1`.
Frozen modules keep their parameters; their batch norms keep, and normalise
with, the running statistics.
"""

import contextlib
import re
from typing import Any

from flax import linen as nn
import jax

from kmil_jax.models.batch_norm import BatchNorm


class FreezeError(ValueError):
  """An expression that freezes nothing, or everything."""


def leaves(params: Any, freeze: str) -> Any:
  """Returns True for the leaves of modules that `freeze` matches."""

  def of(path, _):
    module = '/'.join(key.key for key in path[:-1])
    return bool(freeze) and re.match(freeze, module) is not None

  return jax.tree_util.tree_map_with_path(of, params)


def check(params: Any, freeze: str) -> None:
  """Raises unless some modules are frozen and some are not."""
  try:
    still = jax.tree.leaves(leaves(params, freeze))
  except re.error as error:
    raise FreezeError(f'freeze={freeze!r}: {error}') from error
  if all(still):
    raise FreezeError(f'freeze={freeze!r} leaves nothing to train')
  if not any(still):
    raise FreezeError(
      f'freeze={freeze!r} matches the beginning of no module; at the top there'
      f' are {", ".join(sorted(params))}'
    )


def still_norms(freeze: str) -> contextlib.AbstractContextManager:
  """A context in which frozen batch norms act as in evaluation."""

  def intercept(call, args, kwargs, context):
    module = context.module
    if isinstance(module, BatchNorm) and re.match(
      freeze, '/'.join(module.path)
    ):
      kwargs = {**kwargs, 'use_running_average': True}
    return call(*args, **kwargs)

  if not freeze:
    return contextlib.nullcontext()
  return nn.intercept_methods(intercept)
