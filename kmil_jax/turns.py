"""Runs, bags or folds: all at once, or on CPUs one by one."""

from collections.abc import Callable
from typing import Any

import jax

from kmil_jax.types import ModelSpec

_LONG = 2048  # Instances; measured, see BUILD_NOTES.md.


def one_by_one(spec: ModelSpec, count: int, length: int) -> bool:
  """Whether a CPU takes `count` runs, or bags, of `length` instances in turn.

  Its products with an axis for either copy what they multiply transposed
  first. Of long bags, and of models that share little between runs, that costs
  more than to cut a run's parameters out and to put its gradients in; of one
  run or bag alone, it is for nothing.
  """
  if jax.default_backend() != 'cpu':
    return False
  return count == 1 or length >= _LONG or spec.one_by_one


def over(f: Callable[[Any], Any], xs: Any, *, in_turn: bool) -> Any:
  """Maps `f` over the first axis, element by element or over all at once."""
  return jax.lax.map(f, xs) if in_turn else jax.vmap(f)(xs)


def over_folds(spec: ModelSpec, f: Callable[[Any], Any], params: Any) -> Any:
  """Predicts with R folds [R, ...], in turn on CPUs if the model asks for it.

  Also in programs that are exported for several platforms. Long bags alone do
  not matter: without gradients there is little to copy.
  """
  if not spec.one_by_one:
    return jax.vmap(f)(params)
  return jax.lax.platform_dependent(
    params, cpu=lambda params: jax.lax.map(f, params), default=jax.vmap(f)
  )
