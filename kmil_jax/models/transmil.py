"""TransMIL: a transformer over the instances, placed in a square."""

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

_START = CLASS_ROW + 1  # Row of the first token of an instance.
_SIZE = 7  # Of the largest convolution.
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
    # s^2 - n <= 2 s - 2 tokens are repeated, and never more than there are.
    repeats = min(size, 2 * longest - 2)
    end, rows = _START + size + repeats, _START + longest**2
    if rows > pooling.WHOLE:  # Not a copy anywhere, to cut them into blocks.
      rows = end = end + -end % pooling.BLOCK
    sequence = Sequence.of(side**2 + 1, rows)

    x = pooling.finite_padding(x, mask)
    placed = jnp.pad(x, ((_START, end - _START - size), (0, 0)))
    placed = jax.lax.dynamic_update_slice(
      placed, x[:repeats], (_START + count, 0)
    )[:rows]
    embed = TorchDense(WIDTH, name='embed')
    token = self.param('class_token', nn.initializers.normal(1.0), (WIDTH,))

    def embedded(x, row):
      is_class = (row == CLASS_ROW)[:, None]
      return jnp.where(is_class, token, nn.relu(embed(x)))

    tokens = pooling.Instances(embedded, placed, jnp.arange(rows))
    h = tokens.map(lambda h: h)

    layer = lambda name: NystromLayer(self.dropout, self.dtype, name=name)
    (h,), _ = layer('layer1')(h, sequence, (slice(0, rows),), train=train)
    h = PPEG(name='ppeg')(h, side)
    parts = (slice(CLASS_ROW, _START), slice(_START, _START + size))
    (bag, instances), seen = layer('layer2')(h, sequence, parts, train=train)

    norm = nn.LayerNorm(1e-5, name='norm')
    classifier = TorchDense(self.num_classes, name='classifier')
    classify = lambda h: classifier(norm(h))
    instances = pooling.Instances(lambda h: h, instances)
    return Prediction(
      logits=classify(bag)[0],
      attention=_on_instances(seen[_START:], mask, side, repeats)[:, None],
      instance_logits=instances.map(classify),
    )


class PPEG(nn.Module):
  """Adds depthwise 7 x 7, 5 x 5 and 3 x 3 convolutions of the square.

  Shao et al., NeurIPS 2021, Algorithm 2. Call with rows [T, 512], of which
  side^2 from `_START` on are the square, and with its side []. The other rows
  stay as they are. The three kernels and the identity are one 7 x 7 kernel.
  """

  @nn.compact
  def __call__(self, h: jax.Array, side: jax.Array) -> jax.Array:
    kernel = jnp.zeros((WIDTH, _SIZE, _SIZE))
    kernel = kernel.at[:, _SIZE // 2, _SIZE // 2].set(1)
    bias = jnp.zeros(WIDTH)
    for size in (7, 5, 3):
      shapes = {'kernel': (WIDTH, size, size), 'bias': (WIDTH,)}
      conv, shift = TorchWeights(size**2, shapes, name=f'conv{size}')()
      margin = (_SIZE - size) // 2
      kernel += jnp.pad(conv, ((0, 0), (margin, margin), (margin, margin)))
      bias += shift
    kernel = kernel.reshape(WIDTH, -1).T
    return _convolve(h, kernel, bias, side)


@jax.custom_vjp
def _convolve(
  x: jax.Array, kernel: jax.Array, bias: jax.Array, side: jax.Array
) -> jax.Array:
  """Filters a square, row after row in x [T, W], with a kernel [49, W].

  A step in the square is a step of its rows times `side` plus its columns
  along x, which leaves the square where the column does: a slice and a mask
  for each of the 49. Its gradients are sums of the same slices, which autodiff
  would scatter.
  """

  def block(row, here):
    moved = _mover(x, side, row)
    add = lambda y, tap: (y + tap[1] * moved(tap[0]), None)
    y = cpu.choose(
      lambda: jax.lax.scan(add, jnp.zeros_like(here), (_STEPS, kernel))[0],
      lambda: sum(kernel[i] * moved(step) for i, step in enumerate(_STEPS)),
    )
    return jnp.where(_inside(row, side)[:, None], y + bias, here)

  return _by_blocks(block, jnp.arange(len(x)), x).reshape(x.shape)


def _convolve_fwd(x, kernel, bias, side):
  return _convolve(x, kernel, bias, side), (x, kernel, side)


def _convolve_bwd(saved, grad):
  x, kernel, side = saved

  def block(row, grad):
    moved = _mover(x, side, row)
    grad = jnp.where(_inside(row, side)[:, None], grad, 0)
    product = lambda step: grad * moved(step)
    weights = cpu.choose(
      lambda: jax.lax.map(lambda step: _sum_rows(product(step)), _STEPS),
      lambda: jnp.stack([product(step).sum(0) for step in _STEPS]),
    )
    return weights, grad.sum(0)

  sums = _by_blocks(block, jnp.arange(len(x)), grad)
  weights, bias = jax.tree.map(lambda x: x.sum(0), sums)
  grad = _convolve(grad, kernel[::-1], jnp.zeros_like(bias), side)
  return grad, weights, bias, None


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _by_blocks(f, *rows):
  """Returns f of the rows, or of blocks of very many, stacked."""
  if len(rows[0]) <= pooling.WHOLE:
    return jax.tree.map(lambda x: x[None], f(*rows))
  return pooling.by_blocks(f, *rows, most=pooling.BLOCK)


def _mover(x, side, row):
  """Returns what is seen a step [2] from consecutive rows [B] of x [T, W]."""
  margin = (_SIZE // 2) * (_side(len(x)) + 1)
  size = min(len(row) + 2 * margin, len(x))
  first = jnp.clip(row[0] - margin, 0, len(x) - size)
  near = jax.lax.dynamic_slice_in_dim(x, first, size)
  near = jnp.pad(near, ((margin, margin), (0, 0)))
  column = (row - _START) % side

  def moved(step):
    far = step[0] * side + step[1]
    inside = (column + step[1] >= 0) & (column + step[1] < side)
    inside &= _inside(row + far, side)
    start = margin + row[0] - first + far
    seen = jax.lax.dynamic_slice_in_dim(near, start, len(row))
    return jnp.where(inside[:, None], seen, 0)

  return moved


def _inside(row, side):
  """True on rows of the square."""
  return (row >= _START) & (row < _START + side**2)


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
