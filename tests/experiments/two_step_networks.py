"""Networks for tests: they see colours, the first of them red alone."""

import functools

from flax import linen as nn

from kmil_jax.types import TilePrediction


class Colours(nn.Module):
  """Two layers on the mean of a tile's first colours."""

  num_classes: int
  seen: int
  dtype: object = None
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, train=False):
    features = nn.relu(nn.Dense(16)(x.mean((1, 2))[:, : self.seen]))
    return TilePrediction(
      logits=nn.Dense(self.num_classes)(features), features=features
    )


NETWORKS = {
  name: functools.partial(Colours, seen=seen)
  for name, seen in (('googlenet', 1), ('mobilenet_v2', 3))
}
