"""TransMIL: a transformer over the instances, placed in a square."""

import functools
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax.models import cpu, pooling
from kmil_jax.models.network import Network, TorchDense, TorchWeights
from kmil_jax.models.nystrom import CLASS_ROW, WIDTH, NystromLayer, Sequence
from kmil_jax.types import Prediction

_SIZE = 7  # Of the largest convolution.
_FIRST = CLASS_ROW + 1  # Row of the first token of the square.
# Steps to the rows and columns that a 7 x 7 convolution sees, [49, 2].
_STEPS = np.indices((_SIZE, _SIZE)).reshape(2, -1).T - _SIZE // 2


class TransMIL(Network):
  """Transformer-based correlated MIL.

    H = relu(W x), its first tokens again until their number is s^2,
    logits = W LN(layer_2(PPEG(layer_1([class token; H])))[class token]) + b

  Shao et al., "TransMIL: transformer based correlated multiple instance
  learning for whole slide image classification", NeurIPS 2021
  (https://arxiv.org/abs/2106.00908), Algorithms 1 and 2, with s = ceil(sqrt n):
  2,673,685 parameters at D = 1024 and C = 5. The square is filled in the order
  of the instances, so this order matters, and the real ones come first.

  Call with one bag: features [N, D] and mask [N]. `attention` is the class
  token's row of the last layer's attention, averaged over heads, repeated
  tokens added to their instance. Its Nyström approximation is no softmax:
  negative values are clipped and the others divided by their sum (all alike if
  none is positive). `instance_logits` are the bag classifier applied to the
  token of each instance; nothing trains them. Tokens are float32 whatever the
  dtype, as the scores made of them; see `NystromLayer`.
  """

  num_classes: int
  dropout: float = 0.1
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, *, train: bool
  ) -> Prediction:
    chex.assert_rank([x, mask], [2, 1])
    size = len(mask)
    longest = _side(size)
    count = mask.sum()
    # The side of the square, by comparison: no root to be rounded.
    side = (jnp.arange(longest) ** 2 < count).sum()
    start = _FIRST
    rows = start + longest**2
    # s^2 - n <= 2 s - 2 tokens are repeated, and never more than there are.
    repeats = min(size, 2 * longest - 2)
    if long := rows > pooling.WHOLE:  # Whole blocks, cut without a copy.
      rows = -(-(start + size + repeats) // pooling.BLOCK) * pooling.BLOCK
    sequence = Sequence.of(side**2 + 1, rows)
    layer = lambda name: NystromLayer(self.dropout, self.dtype, name=name)

    # Rows of the store, which all runs share, are placed rather than tokens.
    x = pooling.finite_padding(x, mask)
    x = jnp.pad(x, ((start, max(repeats, rows - start - size)), (0, 0)))
    again = x[start : start + repeats]
    x = jax.lax.dynamic_update_slice(x, again, (start + count, 0))[:rows]

    def first_half(self, x):
      embed = TorchDense(WIDTH, name='embed')
      token = self.param('class_token', nn.initializers.normal(1.0), (WIDTH,))
      embedded = lambda x, row: jnp.where(
        row[:, None] == CLASS_ROW, token, nn.relu(embed(x))
      )
      h = pooling.Instances(embedded, x, jnp.arange(rows)).map(lambda h: h)
      (h,), _ = layer('layer1')(h, sequence, (slice(0, rows),), train=train)
      return PPEG(name='ppeg')(h, sequence.real, side)

    # Of a long bag, two layers' tokens are not kept for the gradient.
    h = (nn.remat(first_half) if long else first_half)(self, x)
    parts = (slice(CLASS_ROW, start), slice(start, start + size))
    (bag, instances), seen = layer('layer2')(h, sequence, parts, train=train)

    norm = nn.LayerNorm(1e-5, name='norm')
    classifier = TorchDense(self.num_classes, name='classifier')
    classify = lambda h: classifier(norm(h))
    return Prediction(
      logits=classify(bag)[0],
      attention=_on_instances(seen[start:], mask, side, repeats)[:, None],
      instance_logits=classify(instances),
    )


class PPEG(nn.Module):
  """Adds depthwise 7 x 7, 5 x 5 and 3 x 3 convolutions of the square.

  Shao et al., NeurIPS 2021, Algorithm 2. Call with rows [T, 512] as a layer
  returns them, True for those that are tokens [T], and the side [] of the
  square; what it returns for padding is meaningless. The three kernels and the
  identity are one 7 x 7 kernel.
  """

  @nn.compact
  def __call__(
    self, h: jax.Array, real: jax.Array, side: jax.Array
  ) -> jax.Array:
    kernel = jnp.zeros((WIDTH, _SIZE, _SIZE))
    kernel = kernel.at[:, _SIZE // 2, _SIZE // 2].set(1)
    bias = 0
    for size in (7, 5, 3):
      shapes = {'kernel': (WIDTH, size, size), 'bias': (WIDTH,)}
      conv, shift = TorchWeights(size**2, shapes, name=f'conv{size}')()
      margin = (_SIZE - size) // 2
      kernel += jnp.pad(conv, ((0, 0), (margin, margin), (margin, margin)))
      bias += shift
    kernel = kernel.reshape(WIDTH, -1).T
    if len(h) > pooling.WHOLE:  # In place: no copy of the tokens alone.
      y = _convolve(h, kernel, side, _FIRST) + bias
      return jnp.where(jnp.arange(len(h))[:, None] < _FIRST, h, y)
    tokens = jnp.where(real[_FIRST:, None], h[_FIRST:], 0)
    y = _convolve(tokens, kernel, side, 0) + bias
    return jnp.concatenate([h[:_FIRST], y])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _convolve(
  x: jax.Array, kernel: jax.Array, side: jax.Array, before: int
) -> jax.Array:
  """Filters a square, row after row in x [T, W], with a kernel [49, W].

  A step in the square is a step of its rows times `side` plus its columns
  along x, which leaves the square where the column does: a slice and a mask
  for each of the 49. Its gradients are sums of the same slices, which autodiff
  would scatter.

  Args:
    x: the square, and zeros; of a long bag, in blocks, anything.
    kernel: of the steps in their order.
    side: of the square, [].
    before: rows of x before the square.
  """

  def rows(first, count):
    moved = _mover(x, first, count, side, before)
    add = lambda y, tap: (y + tap[1] * moved(tap[0]), None)
    zeros = jnp.zeros_like(x, shape=(count, WIDTH))
    return cpu.choose(
      lambda: jax.lax.scan(add, zeros, (_STEPS, kernel))[0],
      lambda: sum(kernel[i] * moved(step) for i, step in enumerate(_STEPS)),
    )

  return _in_blocks(rows, len(x)).reshape(x.shape)


def _convolve_fwd(x, kernel, side, before):
  return _convolve(x, kernel, side, before), (x, kernel, side)


def _convolve_bwd(before, saved, grad):
  x, kernel, side = saved
  # What lies outside the square has no gradient.
  token = jnp.arange(len(x)) - before
  inside = ((token >= 0) & (token < side**2))[:, None]
  grad = jnp.where(inside, grad, 0)

  def weights(first, count):
    moved = _mover(x, first, count, side, before)
    own = jax.lax.dynamic_slice_in_dim(grad, first, count)
    product = lambda step: own * moved(step)
    # One kernel on GPUs, which would write some of many products to memory.
    at_once = lambda: (own * jax.vmap(moved)(_STEPS)).sum(1)
    apart = lambda: jnp.stack([product(step).sum(0) for step in _STEPS])
    return cpu.choose(
      lambda: jax.lax.map(lambda step: _sum_rows(product(step)), _STEPS),
      at_once if cpu.is_gpu() else apart,
    )

  sums = _in_blocks(weights, len(x)).reshape(-1, *kernel.shape).sum(0)
  dx = _convolve(grad, kernel[::-1], side, before)
  return (jnp.where(inside, dx, 0) if before else dx), sums, None


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _in_blocks(f, rows):
  """Returns f(first row, number of rows) of all, or of blocks of a long bag."""
  if rows <= pooling.WHOLE:
    return f(0, rows)
  starts = jnp.arange(0, rows, pooling.BLOCK)
  return jax.lax.map(lambda first: f(first, pooling.BLOCK), starts)


def _mover(x, first, count, side, before):
  """Returns the function from a step [2] to what rows of x see there.

  The rows are `count` from `first` on; for the others, see `_convolve`.
  """
  margin = (_SIZE // 2) * (_side(len(x)) + 1)
  at, in_block = first, count < len(x)
  if in_block:
    size = min(count + 2 * margin, len(x))
    start = jnp.clip(first - margin, 0, len(x) - size)
    x = jax.lax.dynamic_slice_in_dim(x, start, size)
    at -= start
  padded = jnp.pad(x, ((margin, margin), (0, 0)))
  token = first + jnp.arange(count) - before
  column = token % side

  def moved(step):
    along = step[0] * side + step[1]
    inside = (column + step[1] >= 0) & (column + step[1] < side)
    if in_block:
      inside &= (token + along >= 0) & (token + along < side**2)
    place = margin + at + along
    seen = jax.lax.dynamic_slice_in_dim(padded, place, count)
    return jnp.where(inside[:, None], seen, 0)

  return moved


def _sum_rows(x, fold=16):
  """Sums [T, W] over T by adding slices: in loops XLA sums columns slowly."""
  while len(x) > 1:
    x = jnp.pad(x, ((0, -len(x) % fold), (0, 0)))
    x = sum(x.reshape(fold, -1, x.shape[1]))
  return x[0]


def _side(count: int) -> int:
  """Returns the side of the smallest square of at least `count` places."""
  return int(np.ceil(np.sqrt(count)))


def _on_instances(seen, mask, side, repeats):
  """The attention to tokens [T] as attention to instances [N]."""
  size, count = len(mask), mask.sum()
  first = jnp.where(mask, seen[:size], 0)
  again = jax.lax.dynamic_slice_in_dim(
    jnp.pad(seen, (0, size + repeats)), count, repeats
  )
  again = jnp.where(jnp.arange(repeats) < side**2 - count, again, 0)
  weight = jnp.maximum(first.at[:repeats].add(again), 0)
  total = weight.sum()
  uniform = mask / jnp.maximum(count, 1)
  return jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), uniform)
