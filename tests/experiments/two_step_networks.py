"""Networks for tests of two steps: they see colours, the first of them red."""

import functools

from flax import linen as nn
import pytest

from experiments import two_step
from kmil_jax import models
from kmil_jax.types import TilePrediction

# The first network sees red alone, which tumour shares with what looks so.
TISSUE, TUMOUR, ALIKE = (150, 110, 190), (220, 90, 120), (220, 150, 120)


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


def run(folder, *flags):
  """Runs the script with these networks; returns its results folder."""
  with pytest.MonkeyPatch.context() as patch:
    for name, seen in (('googlenet', 1), ('mobilenet_v2', 3)):
      network = functools.partial(Colours, seen=seen)
      patch.setitem(models.CLASSIFIERS, name, network)
    where = f'--results_dir={folder}', f'--cache_dir={folder / "cache"}'
    own = '--secondary=mobilenet_v2', '--augment=none'
    two_step.main(['two_step', *where, *own, *flags])
  return folder / 'two_step_s2023'
