"""Makes phantoms small and networks tiny; imported before a script runs."""

import functools

from colour_network import Colours

from data.phantom import ct, few_shot, nodes
from experiments.studies import hard_negatives, mined_pictures
from kmil_jax import models
from kmil_jax.models import reverse_distillation

for name in models.CLASSIFIERS:
  models.CLASSIFIERS[name] = Colours

nodes.make = functools.partial(nodes.make, development=5, test=2)

hard_negatives.PHANTOM['case'] |= {'patients': 40, 'patches': 8}
hard_negatives.PHANTOM['pool'] |= {'patients': 5, 'patches': 10}
mined_pictures.MOST = 40
mined_pictures.ONE_CELL = 0  # Small networks have no stages.

ct.make = functools.partial(ct.make, patients=7)

reverse_distillation.STAGES = (1, 1, 1)
few_shot.make = functools.partial(
  few_shot.make,
  slides={'train': (3, 0), 'val': (1, 1), 'test': (1, 1)},
)
