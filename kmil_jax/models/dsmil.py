"""DSMIL: an instance stream names critical instances, a bag stream attends."""

import functools
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models import cpu, network, pooling
from kmil_jax.models.network import Network, TorchDense, product
from kmil_jax.types import Prediction


def _similarity(query: jax.Array, index: jax.Array) -> jax.Array:
  """Products of the queries at `index` [C] with all queries [N, H], [C, N]."""
  return query[index] @ query.T


def _similarity_fwd(query, index):
  return _similarity(query, index), (query, index)


def _similarity_bwd(saved, grad):
  query, index = saved
  at = index[:, None] == jnp.arange(len(query))
  to_critical = grad @ query
  to_all = pooling.outer_sum(grad.T, query[index])
  return to_all + pooling.outer_sum(at.T, to_critical), None


# The gradient of the plain gather copies all queries to add to a few, and reads
# them again; this one adds to all at once, which CPUs are slower at.
_at_once = network.custom_vjp(_similarity, _similarity_fwd, _similarity_bwd)


class DSMIL(Network):
  """Dual-stream MIL.

    c_n = W_i h_n,   q_n = tanh(W_2 relu(W_1 h_n)),   k_c = argmax_n c_nc
    A_nc ∝ exp(q_n . q_{k_c} / sqrt(128)),   B = A' V,   logits = conv(B)
    v_n = relu(W_v h_n) with a value layer, or else h_n

  Li, Li and Eliceiri, "Dual-stream multiple instance learning network for
  whole slide image classification with self-supervised contrastive learning",
  CVPR 2021, eqs. 2 to 7 (https://arxiv.org/abs/2011.08939): 178,442 parameters
  at D = 1024 and C = 5, as Zheng et al. 2024 use it, and 1,228,042 with the
  value layer. The fusing convolution of width D is the dense map of all C bag
  vectors to the C logits that it is.

  Call with one bag: features [N, D] and mask [N]. The gradient does not flow
  through the argmax. `dtype` is that of the factors that are features: sums,
  queries, scores and all that follows are float32.
  """

  num_classes: int
  hidden: int = 128
  dtype: Any = None
  value: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, *, train: bool
  ) -> Prediction:
    del train  # Nothing here is random.
    chex.assert_rank([x, mask], [2, 1])
    h = pooling.Instances(pooling.finite_padding, x, mask)
    num_classes = self.num_classes
    dense = lambda size, name: TorchDense(size, self.dtype, name=name)
    instance_logits = h.map(dense(num_classes, 'instance'))
    first = dense(self.hidden, 'query_1')
    second = TorchDense(self.hidden, name='query_2')
    queries = h.then(lambda x: jnp.tanh(second(nn.relu(first(x)))))
    critical = pooling.masked_argmax(instance_logits, mask)
    if queries.long:
      key = queries.at(critical)
      scores = queries.map(lambda query: product(query, key)).T
    else:
      similarity = functools.partial(cpu.choose, _similarity, _at_once)
      scores = queries.map(lambda query: similarity(query, critical))
    scores = scores / self.hidden**0.5
    attention = pooling.masked_softmax(scores.T, mask)  # [N, C]
    if self.value:
      value = dense(x.shape[-1], 'value')
      h = h.then(lambda x: nn.relu(value(x)))
    bags = h.pooled(attention)
    logits = TorchDense(num_classes, name='fuse')(bags.reshape(-1))
    return Prediction(
      logits=logits, attention=attention, instance_logits=instance_logits
    )
