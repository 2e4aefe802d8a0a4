"""ABMIL: bags pooled by gated attention."""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models import pooling
from kmil_jax.models.torch_dense import TorchDense
from kmil_jax.types import Prediction


class ABMIL(nn.Module):
  """Gated attention-based MIL on raw features.

    a_n ∝ exp(w' (tanh(V h_n) * sigmoid(U h_n))),  M = sum_n a_n h_n,
    logits = W M + b

  Ilse, Tomczak and Welling, "Attention-based deep multiple instance
  learning", ICML 2018, eq. 9 (https://arxiv.org/abs/1802.04712), in the form
  that Zheng et al. 2024 count in Table 3: no embedding, 256 hidden units,
  530,182 parameters at D = 1024 and C = 5. Unlike Ilse et al., dropout acts on
  both branches of the attention.

  Call with one bag: features [N, D] and mask [N]. `instance_logits` are the
  bag classifier applied to each instance, as KMIL's first stage does.
  """

  num_classes: int
  hidden: int = 256
  dropout: float = 0.25
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, *, train: bool
  ) -> Prediction:
    chex.assert_rank([x, mask], [2, 1])
    drop = nn.Dropout(self.dropout, deterministic=not train)
    value = TorchDense(self.hidden, self.dtype, name='value')(x)
    gate = TorchDense(self.hidden, self.dtype, name='gate')(x)
    hidden = drop(jnp.tanh(value)) * drop(nn.sigmoid(gate))
    scores = TorchDense(1, self.dtype, name='score')(hidden)
    attention = pooling.masked_softmax(scores, mask)
    bag = attention[:, 0] @ x
    classify = TorchDense(self.num_classes, name='classifier')
    return Prediction(
      logits=classify(bag.astype(jnp.float32)),
      attention=attention,
      instance_logits=classify(x.astype(jnp.float32)),
    )
