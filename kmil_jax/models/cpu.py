"""Programs that only CPUs take, and the one place that chooses them.

Some programs that suit accelerators are many times slower than necessary when
XLA compiles them for CPUs. `choose` gives CPUs the forms below instead,
whatever the host that lowers the program. Figures are in BUILD_NOTES.md.
"""

from collections.abc import Callable, Sequence
import contextlib
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from kmil_jax import parallel
from kmil_jax.types import ModelSpec

# Before and after each of the two spatial axes.
Padding = Sequence[tuple[int, int]]

# All of these are measured, see BUILD_NOTES.md.
_LONG = 2048  # Instances.
_NARROW = 128  # Columns of a dense layer.
_TILES = 4  # At a time.

_DEVICES, _ACCELERATOR = 'devices', 'accelerator'
# Part of the key of JAX's caches: a program is traced anew where it changes.
_platform = jax.make_user_context(_DEVICES)


def lowering_for(
  platform: str | None,
) -> contextlib.AbstractContextManager[None]:
  """Sets the platform that programs traced in this context are lowered for.

  Outside, it is that of the devices. A program must be traced inside. JAX
  traces a function anew where the platform changes, but what is lowered stays.

  Args:
    platform: as JAX calls it: 'cpu', 'cuda', 'rocm' or 'tpu'; None for several
      at once, as in an export: the program then holds both forms.

  Returns:
    A context manager; of nested ones, the innermost counts.
  """
  return _platform(platform)


def choose(
  cpu: Callable[..., Any], other: Callable[..., Any], *args: Any
) -> Any:
  """Returns `cpu(*args)` lowered for CPUs, `other(*args)` for other platforms.

  For a single platform only its own form is traced. For several both are, each
  as if for its platform alone, so that choices inside a form do not multiply.
  """
  platform = _lowered_for()
  if platform is not None:
    return (cpu if platform == 'cpu' else other)(*args)

  def within(platform, form):
    def traced(*args):
      with lowering_for(platform):
        return form(*args)

    return traced

  return lax.platform_dependent(
    *args, cpu=within('cpu', cpu), default=within(_ACCELERATOR, other)
  )


def is_gpu() -> bool:
  """Whether programs traced here are lowered for GPUs alone."""
  return _lowered_for() in ('gpu', 'cuda', 'rocm')


def _lowered_for() -> str | None:
  platform = _platform.value
  return parallel.platform() if platform == _DEVICES else platform


def one_by_one(spec: ModelSpec, count: int, length: int) -> bool:
  """Whether a CPU takes `count` runs, or bags, of `length` instances in turn.

  Its products with an axis for either copy what they multiply transposed
  first. Of long bags, and of models that share little between runs, that costs
  more than to cut a run's parameters out and to put its gradients in; of one
  run or bag alone, there is no need of it. Training is lowered for one platform
  at a time.
  """
  in_turn = count == 1 or length >= _LONG or spec.one_by_one
  return _lowered_for() == 'cpu' and in_turn


def map_folds(spec: ModelSpec, f: Callable[[Any], Any], params: Any) -> Any:
  """Predicts with R folds [R, ...], in turn on CPUs if `spec.one_by_one`.

  Long bags alone do not matter: without gradients there is little to copy.
  """
  if not spec.one_by_one:
    return jax.vmap(f)(params)
  return choose(functools.partial(lax.map, f), jax.vmap(f), params)


def map_tiles(
  f: Callable[[jax.Array], jax.Array], tiles: jax.Array
) -> jax.Array:
  """Returns `f(tiles)` of tiles [T, ...] that do not depend on each other.

  CPUs take few at a time: the maps of more of them leave a CPU's cache, and
  touch fresh memory.
  """
  one = lambda tile: f(tile[None])[0]
  few = lambda tiles: lax.map(one, tiles, batch_size=_TILES)
  return choose(few, f, tiles)


def compiler_options() -> dict[str, Any] | None:
  """Returns options for what compiles for long and runs for moments.

  LLVM takes 40 s to compile the start of a student, and 8 s with these.
  """
  quick = {'xla_backend_optimization_level': 0}
  return quick if _lowered_for() == 'cpu' else None


def transposed(x: jax.Array) -> jax.Array:
  """Returns the transpose of x [n, F], to multiply rows by.

  CPUs write it out first if it has few rows, which costs little and makes the
  product faster.
  """
  if x.shape[1] > _NARROW:
    return x.T
  return choose(lax.optimization_barrier, lambda x: x, x.T)


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Padding,
  precision: lax.PrecisionLike = None,
) -> jax.Array:
  """As `convolutions.convolution`: slices of the map times the kernel.

  There is a slice for every place in a window. They are multiplied side by
  side, in one product, or one after the other where each channel is convolved
  by itself. XLA is slow on maps smaller than their kernel, in the gradient to
  the input where the result is smaller, and on kernels of 1x1.
  """
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  height, width = kernel.shape[:2]
  rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
  slices = [
    x[:, a : a + rows : strides[0], b : b + columns : strides[1]]
    for a in range(height)
    for b in range(width)
  ]
  weights = kernel.reshape(-1, kernel.shape[-1])
  if kernel.shape[2] < x.shape[-1]:
    return sum(map(jnp.multiply, slices, weights))
  windows = jnp.concatenate(slices, -1)
  return jnp.matmul(windows, weights, precision=precision)


def is_small(
  x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding
) -> bool:
  """Whether maps, or their convolution, are smaller than the kernel."""
  axes = zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
  sides = [min(n, (n + sum(p) - k) // s + 1) for n, k, s, p in axes]
  return min(sides) < max(kernel.shape[:2])


def max_pool_by_slices(
  x: jax.Array, size: int, stride: int, padding: Padding
) -> jax.Array:
  """As `convolutions.max_pool`: of the largest of every row, the largest."""
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
  for axis in (1, 2):
    end = x.shape[axis] - size + 1
    x = functools.reduce(
      jnp.maximum,
      [
        lax.slice_in_dim(x, first, first + end, stride, axis)
        for first in range(size)
      ],
    )
  return x
