"""Masked pooling over instances: the only pooling a bag model may use."""

import chex
import jax
import jax.numpy as jnp

from kmil_jax.models import network


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
  return x @ grad.T, weights @ grad


weighted_sum = network.custom_vjp(
  _weighted_sum, _weighted_sum_fwd, _weighted_sum_bwd
)
