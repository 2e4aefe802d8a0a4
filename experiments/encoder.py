"""The tile encoder as a function: its random weights and its pmapped call."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import parallel
from kmil_jax.models import cpu, resnet

# Of the last norm of a residual branch. A random branch knows nothing: at 1,
# thirteen of them bury what the shortcut carries (see BUILD_NOTES.md).
_BRANCH_SCALE = 0.25


def random_trunk(tiles: np.ndarray, *, seed: int) -> dict[str, Any]:
  """Returns random `ResNet50Trunk` variables, as `random_network`."""
  return random_network(resnet.ResNet50Trunk(momentum=0.0), tiles, seed=seed)


def random_network(
  network: nn.Module, tiles: np.ndarray, *, seed: int
) -> dict[str, Any]:
  """Returns random variables of a residual network, calibrated on tiles.

  Kernels are normal with variance 2 / fan-out (He et al., "Delving deep into
  rectifiers", ICCV 2015, eq. 14), drawn by NumPy, so that they do not change
  with JAX. The running statistics are those of one pass over `tiles` in
  training mode: each layer is normalised with this batch's own statistics
  before the next one sees it, so that one pass is consistent through all
  layers, and features of such tiles are of order 1 and well spread. Residual
  branches start at a quarter of the shortcut's scale.

  Args:
    network: of bottlenecks, whose norms keep the statistics of the last batch
      alone (momentum 0).
    tiles: normalised tiles, [T, S, S, 3] float32, a hundred or so.
    seed: of the kernels.

  Returns:
    `{'params', 'batch_stats'}`, float32 NumPy.
  """
  chex.assert_shape(tiles, (None, None, None, 3))
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == 'scale' and path[-2].key == 'bn3':
      return np.full(leaf.shape, _BRANCH_SCALE, leaf.dtype)
    if path[-1].key != 'kernel':  # Scales and variances 1, all others 0.
      return np.full(leaf.shape, path[-1].key in ('scale', 'var'), leaf.dtype)
    height, width, _, out = leaf.shape
    kernel = rng.standard_normal(leaf.shape, leaf.dtype)
    return kernel * np.float32((2 / (height * width * out)) ** 0.5)

  shapes = jax.eval_shape(
    network.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
  )
  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  stats = jax.device_get(_batch_statistics(network, variables, tiles))
  return {'params': variables['params'], 'batch_stats': stats}


@functools.partial(jax.jit, static_argnums=0)
def _batch_statistics(network, variables, tiles):
  """Returns the running statistics that normalise just these tiles."""
  _, mutated = network.apply(
    variables, tiles, train=True, mutable=['batch_stats']
  )
  return mutated['batch_stats']


def apply_trunk(
  variables: Mapping[str, Any], tiles: jax.Array, *, precision: str
) -> jax.Array:
  """Returns the features of tiles, [T, 1024] float32; few at a time on CPUs.

  Args:
    variables: of `ResNet50Trunk`.
    tiles: normalised, [T, S, S, 3].
    precision: of the computation, 'float32' or 'bfloat16'.
  """
  trunk = resnet.ResNet50Trunk(dtype=jnp.dtype(precision))
  return cpu.map_tiles(functools.partial(trunk.apply, variables), tiles)


def pmap_encode(
  variables: Mapping[str, Any], *, precision: str
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the trunk as a function of tiles, spread over the local devices.

  Args:
    variables: of `ResNet50Trunk`.
    precision: of the computation, 'float32' or 'bfloat16'.

  Returns:
    A function of normalised tiles [T, S, S, 3] returning features [T, 1024],
    float32. It compiles once per shape of its argument.
  """
  run = parallel.pmap_local(functools.partial(apply_trunk, precision=precision))
  return functools.partial(run, parallel.replicate(variables))


def default_batch() -> int:
  """Tiles per call: 16 per CPU device, the fastest there, else 256."""
  per_device = 16 if parallel.platform() == 'cpu' else 256
  return per_device * parallel.num_local_devices()
