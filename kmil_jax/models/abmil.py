"""ABMIL: bags pooled by attention."""

import math
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from kmil_jax.models import cpu, pooling
from kmil_jax.models.network import Network, TorchDense, TorchWeights, product
from kmil_jax.types import Prediction


def attention_scores(
  h: pooling.Instances,
  *,
  hidden: int,
  gated: bool,
  dropout: float = 0.0,
  deterministic: bool = True,
  dtype: Any = None,
) -> jax.Array:
  """The scores of Ilse et al.'s attention, inside a module's `__call__`.

    gated: w' (tanh(V h_n) * sigmoid(U h_n)) (eq. 9);  else w' tanh(V h_n)
    (eq. 8), each with biases

  Its layers `value` (V), `gate` (U) and `score` (w) become the caller's. What
  follows V and U is float32: a softmax magnifies what scores are off by.

  Args:
    h: instances of H numbers.
    hidden: height of V and U.
    gated: whether U is there.
    dropout: rate at which each of the two branches loses units.
    deterministic: True for no dropout.
    dtype: of the factors of V and U; for features alone.

  Returns:
    [N, 1] float32, before the softmax.
  """
  names = ('value', 'gate') if gated else ('value',)
  layers = [TorchDense(hidden, dtype, name=name) for name in names]
  shapes = {'weight': (1, hidden), 'bias': (1,)}
  last = TorchWeights(hidden, shapes, name='score')()
  keys = []
  if dropout and not deterministic:
    drop = nn.Dropout(dropout)
    keys = [drop.make_rng('dropout') for _ in names]

  def score(branches, kept, weight, bias):
    units = map(lambda f, b: f(b), (jnp.tanh, nn.sigmoid), branches)
    if kept:
      keep = lambda k, unit: jnp.where(k, unit / (1 - dropout), 0)
      units = map(keep, kept, units)
    return product(math.prod(units), weight) + bias

  # CPUs are slower at what accelerators would rather compute than read twice.
  again = jax.checkpoint(score) if gated else score

  def scores(h, *keys):
    branches = [layer(h) for layer in layers]
    # True for what is kept: a quarter of the memory of numbers.
    shape = branches[0].shape
    kept = [jax.random.bernoulli(key, 1 - dropout, shape) for key in keys]
    return cpu.choose(score, again, branches, kept, *last)

  return h.map(scores, keys)


class ABMIL(Network):
  """Attention-based MIL.

    h_n = relu(E x_n), or x_n without an embedding
    a_n ∝ exp(score(h_n)),  M = sum_n a_n h_n,  logits = W M + b

  Ilse, Tomczak and Welling, "Attention-based deep multiple instance
  learning", ICML 2018, eqs. 7 to 9 (https://arxiv.org/abs/1802.04712). Four
  forms, with their parameters at D = 1024 and C = 5:

  * the fields' defaults, as Zheng et al. 2024 count it in Table 3: gated, on
    raw features, 530,182. Unlike Ilse et al., dropout acts on both branches of
    the attention;
  * `PLAIN`, Zheng et al.'s second form: an embedding without bias, not gated,
    592,646;
  * `ILSE` and `ILSE_PLAIN`, Ilse et al.'s own: 500 embedded and 128 attention
    units, 643,390 gated and 579,262 not. Unlike theirs, which starts with
    convolutions made for digits, instances are features of any encoder; and
    softmax cross-entropy over C logits stands for their Bernoulli likelihood,
    which it equals at C = 2 with the difference of the logits for theirs.

  Call with one bag: features [N, D] and mask [N]. `instance_logits` are the
  bag classifier applied to each h_n, as KMIL's first stage does. `dtype` is
  that of the factors that are features: sums, and all that follows, are
  float32.
  """

  num_classes: int
  hidden: int = 256
  dropout: float = 0.25
  dtype: Any = None
  gated: bool = True
  embed: int | None = None
  embed_bias: bool = True

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, *, train: bool
  ) -> Prediction:
    chex.assert_rank([x, mask], [2, 1])
    h = pooling.Instances(pooling.finite_padding, x, mask)
    if self.embed is not None:
      embed = TorchDense(
        self.embed, self.dtype, use_bias=self.embed_bias, name='embed'
      )
      h = h.then(lambda x: nn.relu(embed(x)))
    scores = attention_scores(
      h,
      hidden=self.hidden,
      gated=self.gated,
      dropout=self.dropout,
      deterministic=not train,
      dtype=None if self.embed else self.dtype,
    )
    attention = pooling.masked_softmax(scores, mask)
    bag = h.pooled(attention)[0]
    classify = TorchDense(self.num_classes, name='classifier')
    return Prediction(
      logits=classify(bag),
      attention=attention,
      instance_logits=h.map(lambda h: classify(h.astype(jnp.float32))),
    )


ILSE = {'embed': 500, 'hidden': 128, 'dropout': 0.0}
ILSE_PLAIN = ILSE | {'gated': False}
PLAIN = ILSE_PLAIN | {'embed': 512, 'embed_bias': False}
