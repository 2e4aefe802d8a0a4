"""What this device can do at best: products and copies, by either side."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import torch

from experiments.benchmarks import timing
from experiments.benchmarks.work import Work

_REPEATS = 3
# Of the matrices, and of the array that is copied.
SIDES = {'cpu': (2048, 2**25), 'cuda': (8192, 2**29)}


@dataclasses.dataclass(frozen=True)
class Ceilings:
  """Rates per second that each side reaches; the better one is the ceiling."""

  torch_flops: float
  jax_flops: float
  torch_bytes: float
  jax_bytes: float

  @property
  def flops(self) -> float:
    return max(self.torch_flops, self.jax_flops)

  @property
  def bytes(self) -> float:
    return max(self.torch_bytes, self.jax_bytes)

  def or_better(self, other: 'Ceilings') -> 'Ceilings':
    """Returns the better of two measurements."""
    pairs = zip(
      dataclasses.astuple(self), dataclasses.astuple(other), strict=True
    )
    return Ceilings(*map(max, pairs))

  def fraction(self, work: Work, seconds: float) -> tuple[float, str]:
    """Returns the share of the binding ceiling reached, and which one binds."""
    least = {
      'compute': work.flops / self.flops,
      'memory': work.bytes / self.bytes,
    }
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
  flops, moved = 2 * side**3, 2 * 4 * size

  def wait(_):
    if device.type == 'cuda':
      torch.cuda.synchronize(device)

  dtype = getattr(torch, precision)
  a = torch.ones(side, side, dtype=dtype, device=device)
  x = torch.ones(size, device=device)
  out = torch.empty_like(x)
  torch_s = (
    _best(lambda: wait(a @ a)),
    _best(lambda: wait(torch.add(x, 1, out=out))),
  )
  b, y = jnp.ones((side, side), getattr(jnp, precision)), jnp.ones(size)
  product, add = jax.jit(jnp.matmul), jax.jit(lambda y: y + 1)
  jax_s = (
    _best(lambda: product(b, b).block_until_ready()),
    _best(lambda: add(y).block_until_ready()),
  )
  return Ceilings(
    torch_flops=flops / torch_s[0],
    jax_flops=flops / jax_s[0],
    torch_bytes=moved / torch_s[1],
    jax_bytes=moved / jax_s[1],
  )


def _best(run: Callable[[], object]) -> float:
  run()
  return min(timing.seconds_of(run) for _ in range(_REPEATS))
