"""Losses of one bag, by paper."""

import chex
import jax
import jax.numpy as jnp
import optax

from kmil_jax.types import Prediction


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
  return optax.softmax_cross_entropy_with_integer_labels(
    prediction.logits, label
  )


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
  instance = optax.softmax_cross_entropy_with_integer_labels(highest, label)
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
  losses = optax.softmax_cross_entropy_with_integer_labels(
    prediction.pseudo_logits, jnp.broadcast_to(label, real.shape)
  )
  first = jnp.where(real, losses, 0).sum() / real.sum()
  return first + cross_entropy(prediction, mask, label)
