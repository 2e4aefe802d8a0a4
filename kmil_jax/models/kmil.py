"""KMIL: key instances chosen by a first model, classified by a second.

The models of both stages and their recipes, as the first one's learning rate,
stand in `SPECS['kmil']` in `models/__init__.py`.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from kmil_jax.models import pooling
from kmil_jax.types import Prediction, unknown

SCORES = ('var', 'one_minus_var')
DROPS = ('lowest', 'highest')


@dataclasses.dataclass(frozen=True)
class Choice:
  """Which instances the second model sees; by default the paper's choice."""

  score: str = 'var'  # of `SCORES`
  drop: str = 'lowest'  # of `DROPS`
  drop_per_mille: int = 100  # share of the instances, in thousandths

  def check(self) -> None:
    """Raises ValueError for another score, end or share."""
    if self.score not in SCORES:
      raise unknown('score', self.score, SCORES)
    if self.drop not in DROPS:
      raise unknown('drop', self.drop, DROPS)
    if self.drop_per_mille not in range(1001):
      raise ValueError(
        f'drop_per_mille is {self.drop_per_mille}. Give whole thousandths, from'
        ' 0 to 1000.'
      )


def instance_scores(instance_logits: jax.Array, score: str) -> jax.Array:
  """How sharply the chooser tells the classes apart on each instance.

    p_n = softmax(c_n),   s_n = 1/(C - 1) sum_c (p_nc - 1/C)^2

  Zheng et al., "A deep learning method for predicting the origins of cervical
  lymph node metastatic cancer on digital pathological images", iScience 2024,
  eqs. 1 to 3 (https://doi.org/10.1016/j.isci.2024.110645). Unlike eq. 3, which
  reads 1 - s_n, the default is s_n itself, as in the authors' released code;
  that the published tables drop the *least* certain patches fits this sign
  alone.

  Args:
    instance_logits: the chooser's instance logits, [N, C].
    score: 'var' for s_n or 'one_minus_var' for 1 - s_n (eq. 3 as printed).

  Returns:
    [N]; s_n lies in [0, 1/C], so a threshold on it can only be a quantile.
  """
  chex.assert_rank(instance_logits, 2)
  variance = jnp.var(jax.nn.softmax(instance_logits), axis=-1, ddof=1)
  return variance if score == 'var' else 1 - variance


def key_instances(
  scores: jax.Array, mask: jax.Array, drop_per_mille: int, drop: str
) -> jax.Array:
  """Marks the instances that the second model sees.

  K = floor((1 - t) n) of the n real instances are kept, at least one.

  Args:
    scores: [N].
    mask: True on real instances, [N].
    drop_per_mille: 1000 t; an integer, so that K is exact.
    drop: 'lowest' or 'highest' scores go.

  Returns:
    bool [N], False on padding. Among equal scores the earlier is ranked
    higher, so the result does not depend on padding.
  """
  chex.assert_equal_shape([scores, mask])
  n, keep = mask.sum(), 1000 - drop_per_mille
  # By thousands: n times 1000 may be more than int32 holds.
  kept = jnp.maximum(n // 1000 * keep + n % 1000 * keep // 1000, 1)
  rank = pooling.masked_rank(scores if drop == 'lowest' else -scores, mask)
  return (rank < kept) & mask


def chosen(
  instance_logits: jax.Array, mask: jax.Array, choice: Choice
) -> jax.Array:
  """Marks the instances that the second model sees, bool [N].

  Args:
    instance_logits: of the first model, [N, C].
    mask: True on real instances, [N].
    choice: which of them.
  """
  scores = instance_scores(instance_logits, choice.score)
  return key_instances(scores, mask, choice.drop_per_mille, choice.drop)


def prob(prediction: Prediction, mask: jax.Array, combine: bool) -> jax.Array:
  """Class probabilities of a bag, maybe with those of its highest instance.

    P = softmax(logits), or (softmax(max_n c_n) + softmax(logits)) / 2

  The mean is what Zheng et al. 2024 describe; their code, which normalises over
  the wrong axis, leaves it off, as does the default here.

  Args:
    prediction: for one bag; of DSMIL for the mean.
    mask: True on the instances seen, [N].
    combine: whether to take the mean.

  Returns:
    [C].
  """
  of_bag = jax.nn.softmax(prediction.logits)
  if not combine:
    return of_bag
  highest = pooling.masked_max(prediction.instance_logits, mask)
  return (jax.nn.softmax(highest) + of_bag) / 2
