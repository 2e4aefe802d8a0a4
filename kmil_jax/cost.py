"""What one forward pass costs: parameters, operations, memory, time."""

from collections.abc import Callable
import dataclasses
import functools
import math
import re
import statistics
import timeit
from typing import Any

from flax import linen as nn, traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import parallel
from kmil_jax.models.abmil import ABMIL
from kmil_jax.models.dsmil import DSMIL
from kmil_jax.models.dtfd import DTFD, RANKING
from kmil_jax.models.network import shapes
from kmil_jax.models.nystrom import HEADS, LANDMARKS, WIDTH
from kmil_jax.models.transmil import TransMIL

_CALLS = 5, 50  # Least and most that are timed.
_SECONDS = 0.5  # No call is added after these.


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a model takes to classify one bag; None where XLA does not say."""

  params: int
  macs: int  # by `multiply_adds`
  flops_xla: float | None  # by `flops`
  peak_bytes: int | None  # by `parallel.peak_bytes`
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
  # Any values do; the model's own start takes longer to compile than to run.
  fill = lambda leaf: jnp.full(leaf.shape, 0.02)
  variables = jax.tree.map(fill, shapes(model, width))
  x, mask = jnp.ones((num_instances, width)), jnp.ones(num_instances, bool)
  forward = functools.partial(model.apply, train=False)
  lowered = jax.jit(forward).lower(variables, x, mask)
  compiled = lowered.compile()
  return Cost(
    params=sum(leaf.size for leaf in jax.tree.leaves(variables)),
    macs=multiply_adds(model, num_instances, width),
    flops_xla=flops(lowered),
    peak_bytes=parallel.peak_bytes(compiled),
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


def median_seconds(call: Callable[[], Any]) -> float:
  """Returns a call's median time to its finished arrays, after two untimed."""
  timer = timeit.Timer(lambda: jax.block_until_ready(call()))
  *_, first = timer.repeat(3, 1)
  count = int(np.clip(_SECONDS / first, *_CALLS))
  return statistics.median([first, *timer.repeat(count - 1, 1)])


def multiply_adds(model: nn.Module, num_instances: int, width: int) -> int:
  """Operations of a network as Zheng et al. 2024 count them in Table 3.

  The multiply-adds of dense layers and convolutions, and four operations per
  element of a layer norm. Biases, activations, softmaxes, the products between
  queries, keys, weights and values, and what pools instances count nothing.
  This is what the public counter `thop` does with the public implementations;
  the paper's 602.82M for TransMIL is its count at 100 instances.

  They are those of the architecture as published, its weights times the `rows`
  that they see: where the module here takes a shorter way to the same result,
  it does not show.

  Args:
    model: a bag model; its options count.
    num_instances: N.
    width: D.
  """
  seen = rows(model, num_instances)
  leaves = traverse_util.flatten_dict(shapes(model, width)['params'], sep='/')
  return sum(
    leaf.size
    * next((n for p, n in seen.items() if re.fullmatch(p, path)), num_instances)
    for path, leaf in leaves.items()
    if not path.endswith('bias')
  )


def rows(model: nn.Module, num_instances: int) -> dict[str, int]:
  """Returns how many rows weights see, if not one for every instance.

  DSMIL, as published, queries the C critical instances once more. DTFD's second
  tier sees what non-empty pseudo-bags distil. TransMIL sees a square of side
  s = ceil(sqrt N), s^2 + 1 tokens, and in its attention the multiple of 256 at
  or above these, as zero rows come before them. Of a model of your own every
  weight is taken to see every instance.

  Args:
    model: a bag model; its options count.
    num_instances: N.

  Returns:
    By patterns of the paths of weights, of which the first counts.
  """
  match model:
    case ABMIL():
      return {'classifier/weight': 1}
    case DSMIL():
      queries = num_instances + model.num_classes
      return {'query_./weight': queries, 'fuse/weight': 1}
    case DTFD():
      bags = np.array_split(np.arange(num_instances), model.pseudo_bags)
      ranked = model.distill in RANKING
      kept = model.total_instances // model.pseudo_bags if ranked else 1
      distilled = sum(min(kept, len(bag)) for bag in bags)
      return {
        'classifier/weight': min(num_instances, model.pseudo_bags),
        'tier2/classifier/weight': 1,
        'tier2/.*': 2 * distilled if model.distill == 'maxmins' else distilled,
      }
    case TransMIL():
      square = (math.isqrt(num_instances - 1) + 1) ** 2
      length = -(-(square + 1) // LANDMARKS) * LANDMARKS
      return {
        'class_token': 0,
        'ppeg/.*': square,
        '(.*/)?norm/scale': 4 * (square + 1),
        'layer./residual': WIDTH // HEADS * length,
        'layer./.*': length,
        'classifier/weight': 1,
      }
  return {}
