"""Self-attention through 256 landmarks on a padded sequence, exactly."""

from collections.abc import Callable
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models import cpu, fused, pooling
from kmil_jax.models.network import TorchDense, TorchWeights, uniform

WIDTH, HEADS, LANDMARKS = 512, 8, 256
CLASS_ROW = 1  # Row 0 is the zero token.
_TAPS, _BLOCK = 33, 64  # Of the values' convolution; rows done at a time.
_REACH = _TAPS // 2
_ITERATIONS = 6
# Rows of a block of scores; CPUs take up to `pooling.WHOLE` rows at once.
_MOST = 2048


@chex.dataclass(frozen=True)
class Sequence:
  """Where `count` tokens lie in T rows, and what the reference adds to them.

  The reference puts zero rows before the tokens until 256 divides the length.
  Their queries, keys and values are 0 and they differ in nothing, so row 0
  stands for all of them and `weight` counts them. The tokens follow from row
  `CLASS_ROW` on; the rows after them are padding of weight 0.
  """

  weight: chex.Array  # [T] float32
  group: chex.Array  # [] int32, tokens to a landmark

  @classmethod
  def of(cls, count: jax.Array, rows: int) -> 'Sequence':
    """Returns the layout of `count` [] tokens, at most `rows` - 1."""
    group = -(-count // LANDMARKS)
    row = jnp.arange(rows)
    zeros = group * LANDMARKS - count
    weight = jnp.where(row == 0, zeros, row <= count)
    return cls(weight=weight.astype(jnp.float32), group=group)

  @property
  def real(self) -> jax.Array:
    """True on the rows of tokens, [T]."""
    return (jnp.arange(len(self.weight)) > 0) & (self.weight > 0)


class NystromLayer(nn.Module):
  """Pre-norm Nyström attention with a skip connection.

    h + W (A1 Z A3 v + conv(v)),   Z the iterated pseudo-inverse of A2

  with A1 = softmax(q k~'), A2 = softmax(q~ k~'), A3 = softmax(q~ k') and ~ the
  mean over runs of consecutive tokens: Xiong et al., "Nyströmformer: a
  Nyström-based algorithm for approximating self-attention", AAAI 2021,
  eqs. 11, 13 and 15 (https://arxiv.org/abs/2102.03902), with 8 heads of 64, as
  TransMIL uses it.

  Sequences of at most 256 tokens are their own landmarks: A1 = A2 = A3 = A,
  of which the zero tokens are equal rows and columns. In the orthonormal basis
  of the tokens and sum(zero tokens) / sqrt(their number), A is
  sqrt(w_i) A_ij sqrt(w_j) and vanishes on the complement, and so do the
  iterates: T x T matrices give what the reference's 256 x 256 give.

  Accelerators, and CPUs with more than 65,536 rows, make A1 and A3 in blocks of
  rows of h, and again in the backward pass: [8, 256, T] is never in memory. Of
  more than 65,536 rows, what is as wide as h is made so, too, but the result.

  `dtype` is that of values, their convolution and the output's projection.
  Tokens, queries, keys and scores are float32: sharp softmaxes and the
  pseudo-inverse magnify what those are off by.
  """

  dropout: float = 0.1
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    h: jax.Array,
    sequence: Sequence,
    parts: tuple[slice, ...],
    *,
    train: bool,
  ) -> tuple[list[jax.Array], jax.Array]:
    """Attends.

    Args:
      h: tokens [T, 512] float32, laid out as `sequence` says; padding is
        arbitrary.
      sequence: layout of the rows.
      parts: rows to return; those of a part whose output is not used cost
        nothing.
      train: whether to drop outputs.

    Returns:
      The rows of every part, [T_part, 512], meaningless on row 0 and padding,
      and the class token's row of A1 Z A3 [T], averaged over heads; its values
      may be negative.
    """
    chex.assert_shape(h, (len(sequence.weight), WIDTH))
    norm = nn.LayerNorm(1e-5, name='norm')
    normed = lambda h, real: jnp.where(real[:, None], norm(h), 0)
    rows = pooling.Instances(normed, h, sequence.real)
    x = rows.at(slice(None))  # Neither used nor computed if it is long.
    shapes = {'weight': (3 * WIDTH, WIDTH)}
    (weight,) = TorchWeights(WIDTH, shapes, name='qkv')()
    scale = jnp.array([(WIDTH // HEADS) ** -0.5, 1, 1])  # Of the queries.
    query, key, value = weight.reshape(3, WIDTH, WIDTH) * scale[:, None, None]
    values = lambda x: _heads(x.astype(self.dtype or x.dtype), value)
    v = values(x)
    if len(h) <= LANDMARKS + 1:
      scores = _scores(_heads(x, query), _heads(x, key))
      root = jnp.sqrt(sequence.weight)
      inverse_root = jnp.where(root > 0, 1 / jnp.maximum(root, 1), 0)
      core = _softmax(scores, sequence.weight) * root[:, None] * inverse_root
      column_sums = root @ core * inverse_root
      read = lambda part: core[:, part]
      gathered, spread = core @ v.astype(jnp.float32), lambda row: row @ core
      mix = lambda part, mixed: read(part) @ mixed
    else:
      landmarks = _means(rows, sequence)
      # With weights of their own: XLA would join these rows with all others.
      own = cpu.choose(lambda x: x, jax.lax.optimization_barrier, (query, key))
      q_mean, k_mean = (_heads(landmarks, weight) for weight in own)
      core = jax.nn.softmax(_scores(q_mean, k_mean))
      column_sums = core.sum(1)
      fuse = v.dtype == jnp.bfloat16 and not rows.long and fused.usable()
      scores = lambda x: _scores(q_mean, _heads(x, key))
      toward = lambda x: _scores(_heads(x, query), k_mean)
      read = lambda part: jax.nn.softmax(toward(rows.at(part)))
      gather = _softmax(scores(x), sequence.weight)
      gathered = _choose(
        rows,
        lambda: gather @ v.astype(jnp.float32),
        lambda: (
          fused.attend(q_mean, _heads(x, key), v, _log(sequence.weight))
          if fuse
          else _gathered(scores, values, rows, sequence.weight)
        ),
      )
      spread = lambda row: _choose(
        rows,
        lambda: row @ gather,
        lambda: _spread(row, scores, rows, sequence.weight),
      )
      mix = lambda part, mixed: _choose(
        rows,
        lambda: read(part) @ mixed,
        lambda: (
          fused.attend(
            _heads(x[part], query), k_mean, mixed, jnp.zeros(LANDMARKS)
          )
          if fuse
          else _read(toward, mixed, x[part])
        ),
      )
    seen = read(slice(CLASS_ROW, CLASS_ROW + 1))  # [8, 1, M]
    # Joined by a choice: XLA's GPU compiler may fail on a column of a sum.
    is_column = jnp.arange(WIDTH // HEADS + 1) == WIDTH // HEADS
    column = core @ jnp.swapaxes(seen, 1, 2)
    padded = jnp.pad(gathered, ((0, 0), (0, 0), (0, 1)))
    right = jnp.where(is_column, column, padded)
    # The rows of A2 sum to 1.
    scale = column_sums.max()
    solved = _polynomials(core, scale, right) / scale
    mixed = jnp.swapaxes(core, 1, 2) @ solved[..., :-1]  # [8, M, 64]
    seen = spread(jnp.swapaxes(solved[..., -1:], 1, 2))  # [8, 1, T]

    taps = self.param('residual', uniform(_TAPS), (HEADS, _TAPS))
    out = TorchDense(WIDTH, self.dtype, name='out')
    drop = nn.Dropout(self.dropout, deterministic=not train)

    def output(h, v, part, y, *key):
      y += _convolution(v, taps, part)
      y = out(jnp.swapaxes(y, 0, 1).reshape(-1, WIDTH))
      return h[part] + drop(y, None, *key)

    def block(h, real, *key):
      x, part = normed(h, real), slice(_REACH, -_REACH)
      y = jax.nn.softmax(toward(x[part])) @ mixed
      return output(h, values(x), part, y, *key)

    drops = rows.long and train and self.dropout
    keys = [drop.make_rng('dropout')] if drops else []
    outputs = []
    for part in parts:
      if not rows.long:
        outputs.append(output(h, v, part, mix(part, mixed)))
        continue
      end = pooling.BLOCK if part.stop + _REACH <= pooling.BLOCK else len(h)
      cut = h[:end], sequence.real[:end]
      y = pooling.by_blocks(
        block, *cut, most=pooling.BLOCK, margin=_REACH, keys=keys
      )
      outputs.append(y.reshape(-1, WIDTH)[part])

    return outputs, seen[:, 0].mean(0)


def _heads(x: jax.Array, weight: jax.Array) -> jax.Array:
  """Projects [M, 512] with [512, 512] to heads [8, M, 64]."""
  y = x @ weight.T.astype(x.dtype)
  return jnp.swapaxes(y.reshape(len(x), HEADS, -1), 0, 1)


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
  """q k' of heads [8, M, 64] and [8, T, 64], float32 [8, M, T]."""
  return jnp.einsum('hmd,htd->hmt', q, k, preferred_element_type=jnp.float32)


def _softmax(scores: jax.Array, weight: jax.Array) -> jax.Array:
  """What rows give to columns [..., T] that stand for `weight` [T] equals."""
  scores += jnp.log(jnp.maximum(weight, 1))
  return jax.nn.softmax(scores, where=weight > 0)


def _choose(x: pooling.Instances, whole: Callable, blocks: Callable):
  """Calls the form for the rows x [T, 512] that its platform takes."""
  return blocks() if x.long else cpu.choose(whole, blocks)


def _joined(blocks: jax.Array) -> jax.Array:
  """Blocks [n, 8, B, K] as [8, n B, K]."""
  return jnp.swapaxes(blocks, 0, 1).reshape(HEADS, -1, blocks.shape[-1])


def _gathered(scores, values, rows, weight):
  """A3 v, [8, 256, 64]."""

  def block(x, weight):
    return _weighted(scores(x) + _log(weight), values(x).astype(jnp.float32))

  sums, totals, top = rows.blocks(block, weight, most=_MOST)
  scale = jnp.exp(top - top.max(0))
  return (scale * sums).sum(0) / (scale * totals).sum(0)


def _read(scores, mixed, x):
  """A1 times mixed [8, 256, 64], [8, T, 64]."""
  block = lambda x: _weighted(scores(x), mixed)
  sums, totals, _ = pooling.by_blocks(block, x, most=_MOST)
  return _joined(sums / totals)[:, : len(x)]


def _weighted(scores, values):
  """Sums of values, of their weights, and what these were divided by.

  To divide by the weights' sum outside of a block spares its gradients a
  product.
  """
  top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
  weights = jnp.exp(scores - top)
  return weights @ values, weights.sum(-1, keepdims=True), top


def _spread(row, scores, rows, weight):
  """Rows [8, 1, 256] times A3, [8, 1, T]."""
  log = lambda x, weight: scores(x) + _log(weight)
  total = lambda *block: jax.nn.logsumexp(log(*block), -1, keepdims=True)
  total = jax.nn.logsumexp(rows.blocks(total, weight, most=_MOST), 0)
  share = lambda *block: jnp.swapaxes(row @ jnp.exp(log(*block) - total), 1, 2)
  shares = _joined(rows.blocks(share, weight, most=_MOST))
  return jnp.swapaxes(shares[:, : len(weight)], 1, 2)


def _log(weight):
  """What is added to the scores of columns; finite, if nothing is real."""
  return jnp.where(weight > 0, jnp.log(jnp.maximum(weight, 1)), -1e30)


def _means(rows: pooling.Instances, sequence: Sequence) -> jax.Array:
  """Means of `group` consecutive tokens, zero tokens first, [256, 512].

  The queries and keys of these means are the means of queries and keys.
  """
  group, count = sequence.group, len(sequence.weight)
  if rows.long:
    before = sequence.weight[0].astype(int) - CLASS_ROW
    mean = (jnp.arange(count) + before) // group
    sums = lambda x, mean: jax.nn.one_hot(mean, LANDMARKS, axis=0) @ x
    return rows.blocks(sums, mean).sum(0) / group.astype(jnp.float32)
  longest = -(-(count - 1) // LANDMARKS)
  place = jnp.arange(longest)
  row = jnp.arange(LANDMARKS)[:, None] * group + place
  row += CLASS_ROW - sequence.weight[0].astype(row.dtype)
  row = jnp.where((place < group) & (row > 0), row, count)
  x = rows.at(slice(None))
  taken = jnp.take(x, row, axis=0, mode='fill', fill_value=0)
  return taken.sum(1) / group.astype(x.dtype)


def _polynomials(a: jax.Array, scale: jax.Array, y: jax.Array) -> jax.Array:
  """The product p(X_5) ... p(X_0) y, p(X) = (13 - 15 X + 7 X^2 - X^3) / 4.

  Xiong et al., eq. 13, iterates Z <- Z p(A Z) from Z_0 = A' / scale. All
  X_k = A Z_k are polynomials of X_0 = A A' / scale and follow X <- X p(X), so
  that Z_6 y = Z_0 p(X_5) ... p(X_0) y takes the work of 14.5 matrix products
  instead of 24, for up to one decimal digit of float32. Float32 whatever the
  hardware prefers: rounding grows with the small singular values.

  What remains are 1e-6 to 2e-5 of the result at the first weights. TransMIL's
  logits of 257 to 1100 instances, about 1, are off those in float64 by 1e-7 to
  1e-6 with trained weights. With the first weights of queries and keys times
  4, 8, 16 and 32 they are off by up to 8e-6, 1.5e-4, 2e-4 and 2e-4, and by
  3e-6, 1.2e-5, 5e-5 and 2e-4 if Z itself is iterated in float32.

  Args:
    a: A2 of all heads, [H, M, M].
    scale: the largest row sum times the largest column sum, over all heads.
    y: [H, M, K].

  Returns:
    [H, M, K].
  """
  times = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  x = times(a, jnp.swapaxes(a, 1, 2)) / scale
  size, count = x.shape[-1], _ITERATIONS - 1

  def step(carry, _):
    x, y = carry
    square, xy = times(x, x), times(x, y)
    y = (13 * y - 15 * xy + times(square, 7 * y - xy)) / 4
    x = (13 * x - 15 * square + times(square, 7 * x - square)) / 4
    return (x, y), None

  def at_once():
    """Both in one array, of which half the kernels are."""
    z = jnp.concatenate([x, y], -1)
    for _ in range(count):
      xz = times(z[..., :size], z)
      z = (13 * z - 15 * xz + times(xz[..., :size], 7 * z - xz)) / 4
    return z[..., :size], z[..., size:]

  x, y = cpu.choose(
    lambda: jax.lax.scan(step, (x, y), length=count)[0], at_once
  )
  xy = times(x, y)
  return (13 * y - 15 * xy + times(x, times(x, 7 * y - xy))) / 4


def _convolution(v: jax.Array, taps: jax.Array, part: slice) -> jax.Array:
  """Filters values [8, T, 64] along the tokens with [8, 33], rows of `part`.

  A product with a banded matrix for every 64 rows, which is what CPUs and
  their gradients like best.
  """
  start, stop, _ = part.indices(v.shape[1])
  blocks = -(-(stop - start) // _BLOCK)
  reach = _TAPS - 1
  v = jnp.pad(v, ((0, 0), (reach // 2, 2 * _BLOCK), (0, 0)))
  heads = lambda start, rows: v[:, start : start + blocks * _BLOCK].reshape(
    HEADS, blocks, _BLOCK, -1
  )[:, :, :rows]
  windows = jnp.concatenate(
    [heads(start, _BLOCK), heads(start + _BLOCK, reach)], axis=2
  )
  # Each row of the band is the one above it, moved by one.
  width = _BLOCK + reach
  band = jnp.pad(taps, ((0, 0), (0, width + 1 - _TAPS))).astype(v.dtype)
  band = jnp.tile(band, _BLOCK)[:, : _BLOCK * width]
  band = band.reshape(HEADS, _BLOCK, width)
  y = jnp.einsum('hij,hbjd->hbid', band, windows)
  return y.reshape(HEADS, blocks * _BLOCK, -1)[:, : stop - start]
