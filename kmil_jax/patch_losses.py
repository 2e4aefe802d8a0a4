"""Losses and probabilities of patch classifiers, tile by tile."""

import chex
import jax
import jax.numpy as jnp
import optax

from kmil_jax.types import TilePrediction

# Szegedy et al., CVPR 2015 (GoogLeNet), section 5: of each auxiliary head.
_AUX_WEIGHT = 0.3


def classification(prediction: TilePrediction, label: jax.Array) -> jax.Array:
  """Cross-entropy of every tile, with those of auxiliary heads.

    l_t = CE(logits_t, y_t) + 0.3 sum_a CE(aux_a,t, y_t)

  CE is -log softmax(logits)[y]; of one logit z, it is that of the
  probabilities 1 - sigmoid(z) and sigmoid(z).

  Args:
    prediction: of T tiles, C logits each.
    label: class, int [T]; 0 or 1 where C is 1.

  Returns:
    [T] float32.
  """
  chex.assert_shape(label, (len(prediction.logits),))
  loss = _cross_entropy(prediction.logits, label)
  for logits in prediction.aux_logits:
    loss += _AUX_WEIGHT * _cross_entropy(logits, label)
  return loss


def probabilities(logits: jax.Array) -> jax.Array:
  """Returns class probabilities [T, C]; of one logit, those of two classes."""
  if logits.shape[-1] > 1:
    return jax.nn.softmax(logits)
  second = jax.nn.sigmoid(logits)
  return jnp.concatenate([jax.nn.sigmoid(-logits), second], -1)


def _cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  if logits.shape[-1] > 1:
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)
  return optax.sigmoid_binary_cross_entropy(
    logits[:, 0], label.astype(logits.dtype)
  )
