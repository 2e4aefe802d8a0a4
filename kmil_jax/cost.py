"""What one forward pass costs: parameters, operations, memory, time."""

from collections.abc import Callable
import dataclasses
import functools
import math
import statistics
import time
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax.models import nystrom
from kmil_jax.models.abmil import ABMIL
from kmil_jax.models.dsmil import DSMIL
from kmil_jax.models.dtfd import DTFD
from kmil_jax.models.transmil import TransMIL

_CALLS = 5, 50  # Least and most that are timed.
_SECONDS = 0.5  # No call is added after these.


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a model takes to classify one bag; None where XLA does not say."""

  params: int
  macs: int  # by `multiply_adds`
  flops_xla: float | None  # by `flops`
  peak_bytes: int | None  # by `peak_bytes`
  seconds: float  # by `median_seconds`, on the default device


def measure(model: nn.Module, num_instances: int, width: int) -> Cost:
  """Compiles a model's forward pass for bags of one length, and runs it.

  Args:
    model: a bag model, see `models.SPECS`.
    num_instances: N, all of them real.
    width: D.

  Returns:
    Its cost. Time is what the caller waits for the finished `Prediction`, with
    features and parameters on the device; compilation is not part of it.
  """
  rng = np.random.default_rng(0)
  draw = lambda shape: jnp.asarray(
    rng.normal(scale=0.02, size=shape), 'float32'
  )
  x, mask = draw((num_instances, width)), jnp.ones(num_instances, bool)
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), x, mask)
  # Any values do; the model's own start takes longer to compile than to run.
  variables = jax.tree.map(lambda leaf: draw(leaf.shape), shapes)
  forward = functools.partial(model.apply, train=False)
  lowered = jax.jit(forward).lower(variables, x, mask)
  compiled = lowered.compile()
  return Cost(
    params=sum(leaf.size for leaf in jax.tree.leaves(variables)),
    macs=multiply_adds(model, num_instances, width),
    flops_xla=flops(lowered),
    peak_bytes=peak_bytes(compiled),
    seconds=median_seconds(lambda: compiled(variables, x, mask)),
  )


def flops(lowered: jax.stages.Lowered) -> float | None:
  """The compiler's count of the operations of a program.

  A multiply-add is two; elementwise operations are one per element, or none if
  transcendental. The body of a loop counts once, however many its passes. It
  is the program as the compiler is given it: what it makes of it for a GPU
  calls vendors' libraries, which count as nothing.

  Returns:
    None where the backend does not count.
  """
  count = (lowered.cost_analysis() or {}).get('flops', math.nan)
  return count if count >= 0 else None


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
  """Bytes of a program's arguments, outputs and temporaries together.

  Parameters and features are arguments. The machine code is left out, and what
  shares memory is counted once. None where the backend does not say.
  """
  held = compiled.memory_analysis()
  if held is None:
    return None
  return (
    held.argument_size_in_bytes
    + held.output_size_in_bytes
    + held.temp_size_in_bytes
    - held.alias_size_in_bytes
  )


def median_seconds(call: Callable[[], Any]) -> float:
  """Returns a call's median time to its finished arrays, after two untimed."""
  for _ in range(2):
    jax.block_until_ready(call())
  least, most = _CALLS
  times = []
  while len(times) < least or (len(times) < most and sum(times) < _SECONDS):
    start = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - start)
  return statistics.median(times)


@functools.singledispatch
def multiply_adds(model: nn.Module, num_instances: int, width: int) -> int:
  """Operations of a network as Zheng et al. 2024 count them in Table 3.

  The multiply-adds of dense layers and convolutions, and four operations per
  element of a layer norm. Biases, activations, softmaxes, the products between
  queries, keys, weights and values, and what pools instances count nothing.
  This is what the public counter `thop` does with the public implementations;
  the paper's 602.82M for TransMIL is its count at 100 instances.

  It is a formula of the architecture as published: where the module here takes
  a shorter way to the same result, it does not show.

  Args:
    model: a bag model; its options count.
    num_instances: N.
    width: D.

  Raises:
    NotImplementedError: for an architecture without a formula.
  """
  raise NotImplementedError(
    f'no formula for the multiply-adds of {type(model).__name__}: register one'
    ' with kmil_jax.cost.multiply_adds'
  )


@multiply_adds.register
def _abmil(model: ABMIL, num_instances: int, width: int) -> int:
  """N (D E + A(E)) + E C with embedded width E, or D without an embedding."""
  embed = 0 if model.embed is None else width * model.embed
  h = model.embed or width
  attention = _attention(h, model.hidden, model.gated)
  return num_instances * (embed + attention) + h * model.num_classes


@multiply_adds.register
def _dsmil(model: DSMIL, num_instances: int, width: int) -> int:
  """N (D C + Q + V) + C Q + C^2 D with Q = 128 D + 128^2.

  As published, the C critical instances are queried once more; V is D^2 with
  the value layer, else 0; the last term is the fusing convolution.
  """
  classes = model.num_classes
  query = width * model.hidden + model.hidden**2
  value = width**2 if model.value else 0
  instance = width * classes + query + value
  return num_instances * instance + classes * query + classes**2 * width


@multiply_adds.register
def _dtfd(model: DTFD, num_instances: int, width: int) -> int:
  """N (512 D + A1) + 512 G C + R A2 + 512 C, R distilled rows.

  G non-empty pseudo-bags; tier 2's attention A2 is gated, A1 with an option.
  """
  h, hidden, classes = 512, 128, model.num_classes
  count = model.pseudo_bags
  size, more = divmod(num_instances, count)
  sizes = [n for g in range(count) if (n := size + (g < more))]
  kept = model.total_instances // count
  rows = {
    'afs': len(sizes),
    'mas': len(sizes),
    'maxs': sum(min(kept, n) for n in sizes),
    'maxmins': sum(2 * min(kept, n) for n in sizes),
  }[model.distill]
  return (
    num_instances * (width * h + _attention(h, hidden, model.gated))
    + len(sizes) * h * classes
    + rows * _attention(h, hidden, True)
    + h * classes
  )


@multiply_adds.register
def _transmil(model: TransMIL, num_instances: int, width: int) -> int:
  """512 D N + 512 (7^2 + 5^2 + 3^2) s^2 + 2 L (4 512^2 + 33 512)
  + 3 4 512 (s^2 + 1) + 512 C.

  The square has side s = ceil(sqrt N); L is the multiple of 256 at or above
  s^2 + 1, as attention takes zero rows before the tokens.
  """
  h = nystrom.WIDTH
  square = (math.isqrt(num_instances - 1) + 1) ** 2
  length = -(-(square + 1) // nystrom.LANDMARKS) * nystrom.LANDMARKS
  return (
    width * h * num_instances
    + h * (7**2 + 5**2 + 3**2) * square
    + 2 * length * (4 * h**2 + 33 * h)
    + 3 * 4 * h * (square + 1)
    + h * model.num_classes
  )


def _attention(width: int, hidden: int, gated: bool) -> int:
  """Multiply-adds of `abmil.attention_scores` per instance."""
  return (1 + gated) * width * hidden + hidden
