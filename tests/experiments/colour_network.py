"""A patch classifier that sees colours, and is trained in a second."""

from flax import linen as nn

from kmil_jax.types import TilePrediction


class Colours(nn.Module):
  """Two layers on the mean of maps of 4 x 4 pixels."""

  num_classes: int
  dtype: object = None
  axis_name: str | None = None

  def setup(self):
    self.hidden, self.fc = nn.Dense(16), nn.Dense(self.num_classes)

  def __call__(self, x, *, train=False):
    return self.head(self.feature_map(x, train=train), train=train)

  def feature_map(self, x, *, train=False):
    return nn.relu(self.hidden(nn.avg_pool(x, (4, 4), (4, 4))))

  def head(self, m, *, train=False):
    features = m.mean((1, 2))
    return TilePrediction(logits=self.fc(features), features=features)
