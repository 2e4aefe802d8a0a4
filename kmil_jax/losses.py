"""Losses by paper: of a bag, of tiles, of maps of reverse distillation."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import optax

from kmil_jax.types import Prediction, TilePrediction

# Similarities of feature maps: a whole map is one vector, or each of its places
# is.
PER = ('map', 'location')
# Norms below count as this, as in torch's cosine similarity.
_SMALLEST_NORM = 1e-8
# Probabilities below count as this; the released code lets the log be infinite.
_SMALLEST_P = 1e-6


def cross_entropy(
  prediction: Prediction, mask: jax.Array, label: jax.Array
) -> jax.Array:
  """Cross-entropy of the bag logits, -log softmax(logits)[label].

  Args:
    prediction: for one bag.
    mask: ignored; every bag loss takes it.
    label: class, int [].

  Returns:
    [] float32.
  """
  del mask
  chex.assert_rank(label, 0)
  return _cross_entropy(prediction.logits, label)


def dual_stream(
  prediction: Prediction, mask: jax.Array, label: jax.Array
) -> jax.Array:
  """Half the bag's and half the highest instance's cross-entropy.

    L = 0.5 CE(logits, y) + 0.5 CE(max_n c_n, y)

  Li, Li and Eliceiri, CVPR 2021, section 3.2, with the softmax cross-entropy
  that Zheng et al. 2024 use for exclusive classes.

  Args:
    prediction: of DSMIL, for one bag.
    mask: True on the instances seen, [N]; at least one.
    label: class, int [].

  Returns:
    [] float32.
  """
  # `models` lists these losses: to import it above would be a circle.
  from kmil_jax.models import pooling

  highest = pooling.masked_max(prediction.instance_logits, mask)
  instance = _cross_entropy(highest, label)
  return 0.5 * cross_entropy(prediction, mask, label) + 0.5 * instance


def two_tier(
  prediction: Prediction, mask: jax.Array, label: jax.Array
) -> jax.Array:
  """The cross-entropies of pseudo-bags, averaged, and of the bag.

    L = 1/G sum_g CE(t_g, y) + CE(logits, y), over non-empty pseudo-bags

  Zhang et al., CVPR 2022 (DTFD-MIL), section 3. They step two optimisers, one
  per term; the bag's logits have no gradient in the first tier, so that one
  step with the sum is the same.

  Args:
    prediction: of DTFD, for one bag.
    mask: ignored; every bag loss takes it.
    label: class, int [].

  Returns:
    [] float32.
  """
  real = prediction.pseudo_mask
  labels = jnp.broadcast_to(label, real.shape)
  losses = _cross_entropy(prediction.pseudo_logits, labels)
  first = jnp.where(real, losses, 0).sum() / real.sum()
  return first + cross_entropy(prediction, mask, label)


def tile_cross_entropy(
  prediction: TilePrediction, label: jax.Array
) -> jax.Array:
  """Cross-entropy of every tile, -log softmax(logits)[y].

  Of one logit z, it is that of the probabilities 1 - sigmoid(z) and sigmoid(z).

  Args:
    prediction: of T tiles, C logits each.
    label: class, int [T]; 0 or 1 where C is 1.

  Returns:
    [T] float32.
  """
  chex.assert_shape(label, (len(prediction.logits),))
  return _cross_entropy(prediction.logits, label)


def tile_probabilities(logits: jax.Array) -> jax.Array:
  """Returns class probabilities [T, C]; of one logit, those of two classes."""
  if logits.shape[-1] > 1:
    return jax.nn.softmax(logits)
  second = jax.nn.sigmoid(logits)
  return jnp.concatenate([jax.nn.sigmoid(-logits), second], -1)


def _cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Of logits [..., C] and labels [...]; one logit is that of class 1."""
  if logits.shape[-1] > 1:
    label = jax.nn.one_hot(label, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, label)
  label = label.astype(logits.dtype)
  return optax.sigmoid_binary_cross_entropy(logits[..., 0], label)


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

  where s_k is the cosine of f_k and g_k. He and Li (FW-RD), per location, whose
  mean over the map is taken, and in the released code per map. Unlike there, p
  below 1e-6 counts as 1e-6, so that no loss and no gradient is infinite.

  The share of tumour patches is what the paper weighs by, so that without any
  alpha is 0 and all terms would vanish. With alpha 0 the loss is that of
  reverse distillation, whatever the label:

    l_t = sum_k (1 - s_k)

  Deng and Li, CVPR 2022, eqs. 1 and 2, the cosine of channels at each location;
  their released code takes that of whole maps.

  Args:
    f: maps of the teacher, [T, H_k, W_k, C_k].
    g: those of the student.
    label: 1 normal, 0 tumour, int [T].
    alpha: from 0 to 1, [] or a number.
    gamma: not negative, [] or a number.
    per: of `PER`.

  Returns:
    [T] float32, not negative.
  """
  chex.assert_equal_shape([f[0], g[0]])
  axis = -1 if per == 'location' else (-3, -2, -1)
  total = 0
  for teacher, student in zip(f, g, strict=True):
    s = cosine(teacher, student, axis=axis)
    normal = label.astype(bool).reshape(-1, *(1,) * (s.ndim - 1))
    p = jnp.where(normal, s, 1 - s)
    weight = jnp.where(normal, alpha, 1 - alpha)
    # 1 - p too, for powers below 1 have no slope at 0.
    rest = jnp.maximum(1 - p, _SMALLEST_P)
    p = jnp.clip(p, _SMALLEST_P, 1)
    loss = jnp.where(alpha > 0, -weight * rest**gamma * jnp.log(p), 1 - s)
    total += loss.reshape(len(loss), -1).mean(-1)
  return total


def _unit(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
  """Divides vectors by their norms, whose squares may be more than float32."""
  x = x.astype(jnp.float32)
  scale = jnp.maximum(jnp.abs(x).max(axis, keepdims=True), 1)
  x = x / jax.lax.stop_gradient(scale)
  square = jnp.maximum((x * x).sum(axis, keepdims=True), _SMALLEST_NORM**2)
  return x * jax.lax.rsqrt(square)
