"""DTFD-MIL: pseudo-bags are classified, and what they distil is, once more."""

import functools
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models import pooling
from kmil_jax.models.abmil import attention_scores
from kmil_jax.models.network import Network, Scope, TorchDense
from kmil_jax.types import Prediction, unknown

DISTILL = ('afs', 'maxmins', 'maxs', 'mas')
RANKING = ('maxs', 'maxmins')  # Those that rank instances by class.
SCORES = ('last', 'predicted')
_REDUCED = 512
_HIDDEN = 128


def _attention(h: pooling.Instances, gated: bool) -> jax.Array:
  """Scores instances, [N, 1]; see `abmil.attention_scores`."""
  scores = functools.partial(attention_scores, hidden=_HIDDEN, gated=gated)
  return Scope(scores, name='attention')(h)


def _tier2(rows: jax.Array, real: jax.Array, num_classes: int) -> jax.Array:
  """Gated attention over distilled rows [M, H], of which `real` [M] are some.

  Returns the logits, [C] float32.
  """
  scores = _attention(pooling.Instances(lambda h: h, rows), True)
  attention = pooling.masked_softmax(scores, real)
  bag = attention[:, 0] @ rows
  return TorchDense(num_classes, name='classifier')(bag)


class DTFD(Network):
  """Double-tier feature distillation MIL.

    h_n = relu(W x_n);  pseudo-bag g is a random G-th of the instances
    tier 1: a_n softmax within g,  z_g = sum a_n h_n,  t_g = W_1 z_g + b_1
    m_nc = w_1c . (a_n h_n),  p_n = softmax(m_n)
    tier 2: gated attention over the distilled rows of all g -> logits

  Zhang et al., "DTFD-MIL: double-tier feature distillation multiple instance
  learning for histopathology whole slide image classification", CVPR 2022
  (https://arxiv.org/abs/2203.12081), section 3. A pseudo-bag distils

  * 'afs': z_g;
  * 'maxs': h of the k instances of the highest class activation;
  * 'maxmins': of these and of the k lowest;
  * 'mas': h of the instance of the highest attention, the first among equals.

  Parameters at D = 1024 and C = 5: 726,668, as Zheng et al. 2024 count it in
  Table 3, or 792,332 with `gated` attention in tier 1 too, as released.

  As in the released code, the second loss does not train tier 1: rows are
  distilled under `stop_gradient`. Unlike it, an evaluation draws its
  pseudo-bags by a fixed key, hence is a function of the bag; in training the
  'dropout' key draws them. Instance n's place depends on the key, on n and on
  the other real instances, never on padding. 'mas' is the paper's alone.

  Call with one bag: features [N, D] and mask [N]. `attention` is a_n over the
  number of non-empty pseudo-bags; `instance_logits` are W_1 h_n + b_1. `dtype`
  is that of the factors that are features: h and all that follows are float32.

  Attributes:
    gated: whether tier 1's attention is.
    pseudo_bags: G. The first n mod G get one instance more than the others;
      where n < G the last are empty and count nowhere.
    distill: one of `DISTILL`.
    total_instances: distilled per bag and end of the ranking; k is a G-th.
    score: which class's p_n ranks instances: 'last', as released, which suits
      two classes; or 'predicted', the class that t_g is for.

  Raises:
    ValueError: for an option that is not one of these, or if k is 0 where
      instances are ranked.
  """

  num_classes: int
  dtype: Any = None
  gated: bool = False
  pseudo_bags: int = 4
  distill: str = 'afs'
  total_instances: int = 4
  score: str = 'last'

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, *, train: bool
  ) -> Prediction:
    chex.assert_rank([x, mask], [2, 1])
    self._check()
    reduce = TorchDense(_REDUCED, self.dtype, use_bias=False, name='reduce')
    h = pooling.Instances(pooling.finite_padding, x, mask)
    h = h.then(lambda x: nn.relu(reduce(x)))
    scores = _attention(h, self.gated)
    key = self.make_rng('dropout') if train else jax.random.key(0)
    member, real = pseudo_bags(key, mask, self.pseudo_bags)
    weights = pooling.masked_softmax(
      jnp.broadcast_to(scores, member.shape), member
    )  # [N, G]
    attention = weights.sum(1, keepdims=True)
    z = h.pooled(weights)
    classify = TorchDense(self.num_classes, name='classifier')
    pseudo_logits = classify(z)
    instance_logits = h.map(classify)

    match self.distill:
      case 'afs':
        rows, present = z, real
      case 'mas':
        top, present = pooling.masked_top(
          jnp.broadcast_to(scores, member.shape), member, 1
        )
        rows, present = h.at(top[0]), present[0]
      case _:
        # What a classifier gives for zeros is its bias.
        bias = classify(jnp.zeros(_REDUCED))
        prob = jax.nn.softmax(attention * (instance_logits - bias))
        if self.score == 'last':
          prob = jnp.broadcast_to(prob[:, -1:], member.shape)
        else:
          prob = prob[:, pseudo_logits.argmax(-1)]  # [N, G]
        k = self.total_instances // self.pseudo_bags
        ends = (prob,) if self.distill == 'maxs' else (prob, -prob)
        top, present = jax.tree.map(
          lambda *parts: jnp.concatenate(parts).reshape(-1),
          *(pooling.masked_top(end, member, k) for end in ends),
        )
        rows = h.at(top)

    rows = jax.lax.stop_gradient(rows)
    tier2 = Scope(_tier2, name='tier2')
    return Prediction(
      logits=tier2(rows, present, self.num_classes),
      attention=attention / real.sum(),
      instance_logits=instance_logits,
      pseudo_logits=pseudo_logits,
      pseudo_mask=real,
    )

  def _check(self) -> None:
    if self.distill not in DISTILL:
      raise unknown('distill', self.distill, DISTILL)
    if self.score not in SCORES:
      raise unknown('score', self.score, SCORES)
    least = self.pseudo_bags if self.distill in RANKING else 1
    if self.pseudo_bags < 1 or self.total_instances < least:
      raise ValueError(
        f'total_instances is {self.total_instances} and pseudo_bags'
        f' {self.pseudo_bags}. Choose at least 1 pseudo-bag, and as many'
        ' instances.'
      )


def pseudo_bags(
  key: jax.Array, mask: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
  """Deals the real instances of a bag to pseudo-bags at random.

  Args:
    key: of the draw.
    mask: True on n >= 1 real instances, [N].
    count: G.

  Returns:
    Who is in which, bool [N, G], no row of padding True; and which are not
    empty, bool [G]. Sizes fall from ceil(n / G) to floor(n / G).
  """
  chex.assert_rank(mask, 1)
  # A number per place: splitting the key by N would make padding matter.
  draw = jax.vmap(lambda n: jax.random.bits(jax.random.fold_in(key, n)))
  bits = draw(jnp.arange(mask.size))
  # 24 bits are exact as float32; equal ones rank in the order of places.
  rank = pooling.masked_rank((bits >> 8).astype(jnp.float32), mask)
  n = mask.sum()
  group = jnp.arange(count)
  size, more = n // count, n % count
  start = group * size + jnp.minimum(group, more)
  end = start + size + (group < more)
  member = (rank[:, None] >= start) & (rank[:, None] < end)
  return member, group < n
