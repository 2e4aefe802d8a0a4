"""What this device can do at best: products and copies, by either side."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import torch

from experiments.benchmarks import timing
from experiments.benchmarks.work import Work

_REPEATS = 5
# Of the matrices, and of the array that is copied.
SIDES = {'cpu': (2048, 2**26), 'cuda': (8192, 2**29)}


@dataclasses.dataclass(frozen=True)
class Ceilings:
  """The better of both sides."""

  flops_per_s: float
  bytes_per_s: float

  def or_better(self, other: 'Ceilings') -> 'Ceilings':
    return Ceilings(
      max(self.flops_per_s, other.flops_per_s),
      max(self.bytes_per_s, other.bytes_per_s),
    )

  def fraction(self, work: Work, seconds: float) -> tuple[float, str]:
    """Returns the share of the binding ceiling reached, and which one binds."""
    least = work.seconds(self.flops_per_s, self.bytes_per_s)
    bound = max(least, key=least.get)
    return least[bound] / seconds, bound


def measure(precision: str, device: torch.device) -> Ceilings:
  """Multiplies large matrices and adds 1 to a large array.

  Args:
    precision: 'float32', in which products are TF32 where both sides' are, or
      'bfloat16'.
    device: torch's; JAX has its default one.
  """
  side, size = SIDES[device.type]
  ours, theirs = getattr(jnp, precision), getattr(torch, precision)
  a = torch.ones(side, side, dtype=theirs, device=device)
  b = jnp.ones((side, side), ours)
  product = jax.jit(jnp.matmul)
  flops = (
    2
    * side**3
    / min(
      _best(lambda: _wait(device, a @ a)),
      _best(lambda: product(b, b).block_until_ready()),
    )
  )
  x, y = torch.ones(size, device=device), jnp.ones(size)
  out = torch.empty_like(x)
  add = jax.jit(lambda y: y + 1)
  moved = (
    2
    * 4
    * size
    / min(
      _best(lambda: _wait(device, torch.add(x, 1, out=out))),
      _best(lambda: add(y).block_until_ready()),
    )
  )
  return Ceilings(flops, moved)


def _wait(device: torch.device, _: torch.Tensor) -> None:
  if device.type == 'cuda':
    torch.cuda.synchronize(device)


def _best(run: Callable[[], object]) -> float:
  run()
  return min(timing.seconds_of(run) for _ in range(_REPEATS))
