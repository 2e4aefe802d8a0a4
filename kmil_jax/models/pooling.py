"""Masked pooling over instances: the only pooling a bag model may use."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from kmil_jax.models import cpu, network

# Rows of a block of a long bag, which has more rows than `WHOLE`.
BLOCK, WHOLE = 4096, 65_536


def finite_padding(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the instances [N, D] with 0 for what is not finite in padding.

  A weight of 0 does not do: 0 times NaN or infinity is NaN, also in gradients.
  What is finite stays: KMIL masks instances whose own logits are still shown.
  """
  chex.assert_equal_shape_prefix([x, mask], 1)
  return jnp.where(mask[:, None] | jnp.isfinite(x), x, 0)


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
  """Softmax over the real instances of a bag.

  Args:
    scores: unnormalised scores of A attentions, [N, A].
    mask: True on real instances, [N]; or [N, A] where every attention sees
      instances of its own.

  Returns:
    float32 [N, A]; each column sums to 1 over real instances and is 0 on
    padding (all 0 for an empty bag, without NaN in value or gradient).
  """
  chex.assert_rank([scores, mask], [2, {1, 2}])
  chex.assert_equal_shape_prefix([scores, mask], mask.ndim)
  mask = mask[:, None] if mask.ndim == 1 else mask
  return jax.nn.softmax(scores.astype(jnp.float32), axis=0, where=mask)


def masked_max(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Largest value over real instances.

  Args:
    values: [N, C].
    mask: True on at least one instance, [N].

  Returns:
    [C]; -inf for an empty bag, which the pipeline refuses.
  """
  chex.assert_equal_shape_prefix([values, mask], 1)
  return jnp.max(values, axis=0, where=mask[:, None], initial=-jnp.inf)


def masked_argmax(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Index of the largest value over real instances, the first among equals.

  Args:
    values: [N, C].
    mask: True on at least one instance, [N].

  Returns:
    int32 [C]. Padding is never chosen, however negative the real values are.
  """
  chex.assert_equal_shape_prefix([values, mask], 1)
  return jnp.argmax(jnp.where(mask[:, None], values, -jnp.inf), axis=0)


def masked_rank(scores: jax.Array, mask: jax.Array) -> jax.Array:
  """Rank of every instance by descending score, 0 for the highest.

  Args:
    scores: [N].
    mask: True on real instances, [N].

  Returns:
    int32 [N]; equal scores rank in the order of their indices, padding ranks
    after every real instance.
  """
  chex.assert_equal_shape([scores, mask])
  order = jnp.argsort(jnp.where(mask, -scores, jnp.inf), stable=True)
  return jnp.zeros_like(order).at[order].set(jnp.arange(order.size))


def masked_top(
  values: jax.Array, mask: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  """Indices of the k largest values of every column.

  Args:
    values: [N, A].
    mask: True on the instances that each column is about, [N, A].
    k: how many; of fewer than N instances, all.

  Returns:
    int32 [min(k, N), A], falling, the first among equals first; and bool of
    that shape, False where a column has no instance left.
  """
  chex.assert_equal_shape([values, mask])
  k = min(k, values.shape[0])
  _, index = jax.lax.top_k(jnp.where(mask, values, -jnp.inf).T, k)
  return index.T, jnp.arange(k)[:, None] < mask.sum(0)


def outer_sum(factors: jax.Array, rows: jax.Array) -> jax.Array:
  """Returns `factors @ rows` of [N, A] and [A, D], for few A.

  Unlike a product, accelerators join it with what follows: nothing as large as
  the bag is written in between.
  """
  return (factors.T[:, :, None] * rows[:, None]).sum(0)


def _weighted_sum(weights: jax.Array, x: jax.Array) -> jax.Array:
  """Sums the instances of a bag with A weights each.

  Args:
    weights: 0 on padding, [N, A].
    x: [N, D].

  Returns:
    `weights.T @ x`, [A, D]. Its gradient multiplies x as it lies; that of the
    plain product copies it transposed first, which on CPUs takes longer than
    the rest of a step.
  """
  chex.assert_rank([weights, x], 2)
  chex.assert_equal_shape_prefix([weights, x], 1)
  return weights.T @ x


def _weighted_sum_fwd(weights, x):
  return weights.T @ x, (weights, x)


def _weighted_sum_bwd(saved, grad):
  weights, x = saved
  return x @ grad.T, cpu.choose(jnp.matmul, outer_sum, weights, grad)


weighted_sum = network.custom_vjp(
  _weighted_sum, _weighted_sum_fwd, _weighted_sum_bwd
)


class Instances:
  """The instances h_n = read(row_n) of a bag, and what is made of them.

  They are computed once; but not of a long bag: there, whatever needs them
  computes them in blocks, and in its gradient again, so that memory grows with
  the bag by what is returned alone.

  Args:
    read: maps rows to instances, each by itself; modules of the caller may be
      called.
    *rows: arrays [N, ...].
  """

  def __init__(self, read: Callable[..., jax.Array], *rows: jax.Array):
    self.long = _is_long(rows[0])
    rows = tuple(map(jnp.asarray, rows))
    if not self.long:
      read, rows = lambda h: h, (read(*rows),)
    self._read, self._rows = read, rows

  def then(self, f: Callable[[jax.Array], jax.Array]) -> 'Instances':
    """Returns the instances f(h_n)."""
    return Instances(lambda *rows: f(self._read(*rows)), *self._rows)

  def at(self, index: jax.Array) -> jax.Array:
    """Returns h of the instances at `index`."""
    return self._read(*(row[index] for row in self._rows))

  def map(
    self, f: Callable[..., jax.Array], keys: Sequence[jax.Array] = ()
  ) -> jax.Array:
    """Returns f(h, *keys), [N, ...].

    Args:
      f: maps instances, each by itself.
      keys: of what is random. Each block of a long bag draws by its own.
    """
    blocks = self.blocks(f, keys=keys)
    if not self.long:
      return blocks
    return blocks.reshape(-1, *blocks.shape[2:])[: len(self._rows[0])]

  def pooled(self, weights: jax.Array) -> jax.Array:
    """Returns the sums of h by weights [N, A], [A, D] float32."""
    f = lambda h, weights: weighted_sum(weights, h.astype(jnp.float32))
    sums = self.blocks(f, weights)
    return sums.sum(0) if self.long else sums

  def blocks(
    self,
    f: Callable[..., Any],
    *rows: jax.Array,
    most: int | None = None,
    keys: Sequence[jax.Array] = (),
  ) -> Any:
    """Returns `by_blocks` of f(h, *rows, *keys) of a long bag.

    That of a short one is in blocks of `most` rows, or not in blocks.
    """
    own = len(self._rows)
    g = lambda *rows: f(self._read(*rows[:own]), *rows[own:])
    rows = *self._rows, *rows
    if self.long:
      # One use after another: XLA may give each loop a copy of its own.
      self._rows = jax.lax.optimization_barrier(self._rows)
      # Flax makes parameters outside of loops.
      g(*(row[:1] for row in rows), *keys)
      most = BLOCK
    if not most:
      return g(*rows, *keys)
    return by_blocks(g, *rows, most=most, keys=keys)


def by_blocks(
  f: Callable[..., Any],
  *rows: jax.Array,
  most: int,
  margin: int = 0,
  keys: Sequence[jax.Array] = (),
) -> Any:
  """Returns f of blocks of rows, stacked; its gradient computes f again.

  Args:
    f: of a block of every array, and of a key.
    *rows: arrays [N, ...]; zeros follow the last block's if N does not divide.
    most: rows of a block.
    margin: rows before and after those of a block that f is given, too; zeros
      at the ends.
    keys: of all blocks; each has its own.
  """
  count = -(-len(rows[0]) // most)
  size = -(-len(rows[0]) // count)

  def cut(x):
    x = jnp.pad(x, ((0, count * size - len(x)), *((0, 0),) * (x.ndim - 1)))
    x = x.reshape(count, size, *x.shape[1:])
    if not margin:
      return x
    nothing = jnp.zeros_like(x[:1, :margin])
    before = jnp.concatenate([nothing, x[:-1, -margin:]])
    return before, x, jnp.concatenate([x[1:, :margin], nothing])

  draw = jax.vmap(jax.random.fold_in, (None, 0))
  keys = [draw(key, jnp.arange(count)) for key in keys]
  join = lambda x: jnp.concatenate(x) if isinstance(x, tuple) else x
  block = lambda block: f(*map(join, block))
  block = jax.checkpoint(block, prevent_cse=False)
  return jax.lax.map(block, (*map(cut, rows), *keys))


def _is_long(x: jax.Array) -> bool:
  """Whether more than `WHOLE` rows; no, where an export does not know."""
  return isinstance(x.shape[0], int) and x.shape[0] > WHOLE
