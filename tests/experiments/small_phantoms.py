"""Makes phantoms small and networks tiny; imported before a script runs."""

import functools

from colour_network import Colours

from data.phantom import ct, few_shot, nodes
from experiments import (
  hard_negatives_data,
  hard_negatives_figures,
)
from kmil_jax import models
from kmil_jax.models import reverse_distillation

for name in models.CLASSIFIERS:
  models.CLASSIFIERS[name] = Colours

nodes.make = functools.partial(nodes.make, development=5, test=2)

hard_negatives_data._ANNOTATED |= {'patients': 40, 'patches': 8}
hard_negatives_figures._MOST = 40
hard_negatives_data._POOL |= {'patients': 5, 'patches': 10}

ct.make = functools.partial(ct.make, patients=7)

reverse_distillation.STAGES = (1, 1, 1)
few_shot.make = functools.partial(
  few_shot.make,
  slides={'train': (3, 0), 'val': (1, 1), 'test': (1, 1)},
)
