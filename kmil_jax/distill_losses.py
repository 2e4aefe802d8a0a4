"""Losses of reverse distillation, patch by patch; finite whatever the maps."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

# A whole map is one vector, or each of its places is.
PER = ('map', 'location')
# Norms below count as this, as in torch's cosine similarity.
_SMALLEST_NORM = 1e-8
# Probabilities below count as this; the released code lets the log be infinite.
_SMALLEST_P = 1e-6


def cosine(f: jax.Array, g: jax.Array, *, axis: int | tuple[int, ...] = -1):
  """Cosine similarity of vectors along axes, f . g / (|f| |g|).

  Norms below 1e-8 count as 1e-8: it is 0 where a vector is 0. Elements may be
  as large as float32 can hold.

  Args:
    f: of any shape and type.
    g: of the same shape.
    axis: of the elements of a vector.

  Returns:
    Float32, of the shape that is left.
  """
  f, g = _unit(f, axis), _unit(g, axis)
  return (f * g).sum(axis)


def rd(
  f: Sequence[jax.Array], g: Sequence[jax.Array], *, per: str
) -> jax.Array:
  """Distance of the student's maps to the teacher's.

    l_t = sum_k (1 - cos(f_k, g_k))

  Deng and Li, CVPR 2022, eqs. 1 and 2: the cosine of channels at each location,
  and the mean over the map. Their released code takes that of whole maps.

  Args:
    f: maps of the teacher, [T, H_k, W_k, C_k].
    g: those of the student.
    per: of `PER`.

  Returns:
    [T] float32, from 0 to the number of maps where no element is negative.

  Raises:
    ValueError: for another `per`.
  """
  return _over_maps(lambda s: 1 - s, f, g, per)


def focal(
  f: Sequence[jax.Array],
  g: Sequence[jax.Array],
  label: jax.Array,
  alpha: jax.Array | float,
  gamma: jax.Array | float,
  *,
  per: str,
) -> jax.Array:
  """Weighted focal loss of the similarity: high is right for normal patches.

    l_t = sum_k -a_t (1 - p_k)^gamma log p_k,
    p_k = s_k and a_t = alpha of a normal patch,
    p_k = 1 - s_k and a_t = 1 - alpha of a tumour patch,

  where s_k is the cosine of `rd`. He and Li (FW-RD), per location, whose mean
  over the map is taken, and in the released code per map. Unlike there, p
  below 1e-6 counts as 1e-6, so that no loss and no gradient is infinite.

  The share of tumour patches is what the paper weighs by, so that without any
  alpha is 0 and all terms would vanish: the loss with alpha 0 is that of `rd`,
  whatever the label.

  Args:
    f: maps of the teacher, [T, H_k, W_k, C_k].
    g: those of the student.
    label: 1 normal, 0 tumour, int [T].
    alpha: from 0 to 1, [] or a number.
    gamma: not negative, [] or a number.
    per: of `PER`.

  Returns:
    [T] float32, not negative.

  Raises:
    ValueError: for another `per`.
  """
  normal = label.astype(bool)

  def of_similarity(s):
    own = normal.reshape(-1, *(1,) * (s.ndim - 1))
    p = jnp.where(own, s, 1 - s)
    weight = jnp.where(own, alpha, 1 - alpha)
    # 1 - p too, for powers below 1 have no slope at 0.
    rest = jnp.maximum(1 - p, _SMALLEST_P)
    p = jnp.clip(p, _SMALLEST_P, 1)
    return jnp.where(alpha > 0, -weight * rest**gamma * jnp.log(p), 1 - s)

  return _over_maps(of_similarity, f, g, per)


def _over_maps(of_similarity, f, g, per) -> jax.Array:
  """Sums over maps what a function of their similarity [T, ...] is on average.

  It is given [T, H, W] per location, [T] per map.
  """
  if per not in PER:
    raise ValueError(f'per={per!r}: similarities are per {" or ".join(PER)}')
  chex.assert_equal_shape([f[0], g[0]])
  axis = -1 if per == 'location' else (-3, -2, -1)
  total = 0
  for teacher, student in zip(f, g, strict=True):
    loss = of_similarity(cosine(teacher, student, axis=axis))
    total += loss.reshape(len(loss), -1).mean(-1)
  return total


def _unit(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
  """Divides vectors by their norms, whose squares may be more than float32."""
  x = x.astype(jnp.float32)
  scale = jnp.maximum(jnp.abs(x).max(axis, keepdims=True), 1)
  x = x / jax.lax.stop_gradient(scale)
  square = jnp.maximum((x * x).sum(axis, keepdims=True), _SMALLEST_NORM**2)
  return x * jax.lax.rsqrt(square)
