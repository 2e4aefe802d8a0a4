"""The registries: bag models in `SPECS`, patch classifiers in `CLASSIFIERS`.

A bag model's own recipe is what its authors trained it with, from their
released code.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import linen as nn

from kmil_jax import losses
from kmil_jax.models import abmil
from kmil_jax.models.abmil import ABMIL
from kmil_jax.models.dsmil import DSMIL
from kmil_jax.models.dtfd import DTFD
from kmil_jax.models.googlenet import GoogLeNet
from kmil_jax.models.mobilenet import MobileNetV2
from kmil_jax.models.node_cnn import NodeCNN
from kmil_jax.models.resnet import BASIC, ResNet
from kmil_jax.models.transmil import TransMIL
from kmil_jax.types import ModelSpec, Recipe


def _form(spec: ModelSpec, paper: str, **options: Any) -> ModelSpec:
  """Returns what builds a model with options, trained with the same recipe."""
  make = functools.partial(spec.make, **options)
  return dataclasses.replace(spec, make=make, paper=paper)


_ABMIL = ModelSpec(
  make=ABMIL,
  loss=losses.cross_entropy,
  paper='Ilse et al., ICML 2018, eq. 9, as in Zheng et al., 2024',
  # No validation, so the last epoch counts.
  own=Recipe(
    learning_rate=5e-4,
    weight_decay=1e-4,
    epochs=20,
    schedule='constant',
    select='last',
  ),
  one_by_one=True,
)
_DSMIL = ModelSpec(
  make=DSMIL,
  loss=losses.dual_stream,
  paper='Li et al., CVPR 2021, eqs. 2 to 7',
  # Code of 2024. Its selection adds AUROCs of classes that may occur together;
  # for exclusive ones their mean stands in. It ends when its count of epochs
  # without improvement *exceeds* 10.
  own=Recipe(
    learning_rate=1e-4,
    weight_decay=1e-3,
    betas=(0.5, 0.9),
    epochs=50,
    orthogonal=True,
    select='auroc_accuracy',
    patience=11,
  ),
)
_DTFD = ModelSpec(
  make=DTFD,
  loss=losses.two_tier,
  paper='Zhang et al., CVPR 2022, as in Zheng et al., 2024',
  # Two Adams of the same rate are one.
  own=Recipe(
    learning_rate=1e-4,
    weight_decay=1e-4,
    epochs=200,
    clip=5.0,
    schedule='step',
    select='late_auroc',
  ),
  one_by_one=True,
)
SPECS = {
  'abmil': _ABMIL,
  'abmil_plain': _form(
    _ABMIL,
    'Ilse et al., ICML 2018, eq. 8, as in Zheng et al., 2024',
    **abmil.PLAIN,
  ),
  'abmil_ilse': _form(_ABMIL, 'Ilse et al., ICML 2018, eq. 9', **abmil.ILSE),
  'abmil_ilse_plain': _form(
    _ABMIL, 'Ilse et al., ICML 2018, eq. 8', **abmil.ILSE_PLAIN
  ),
  'dsmil': _DSMIL,
  'dsmil_value': _form(_DSMIL, _DSMIL.paper, value=True),
  'dtfd': _DTFD,
  'dtfd_gated': _form(_DTFD, 'Zhang et al., CVPR 2022', gated=True),
  'kmil': dataclasses.replace(
    _DSMIL,
    paper='Zheng et al., iScience 2024, eqs. 1 to 3',
    own=Recipe(),
    chooser='abmil',
    # Of the released code.
    chooser_recipe=Recipe(
      learning_rate=1e-3,
      learning_rate_min=1e-4,
      epochs=100,
      schedule='plateau',
      shuffle=False,
      select='loss_or_accuracy',
      patience=20,
    ),
  ),
  'transmil': ModelSpec(
    make=TransMIL,
    loss=losses.cross_entropy,
    paper='Shao et al., NeurIPS 2021, Algorithms 1 and 2',
    # But for its half precision.
    own=Recipe(
      learning_rate=2e-4,
      weight_decay=1e-5,
      epochs=200,
      optimizer='lookahead_radam',
      accumulate=2,
      schedule='constant',
      select='loss',
      patience=10,
    ),
    fixed_length=True,
    one_by_one=True,
  ),
}

# make(num_classes=C, dtype=, axis_name=) of tiles.
CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
  # Szegedy et al., CVPR 2015, table 1.
  'googlenet': GoogLeNet,
  # Sandler et al., CVPR 2018, table 2.
  'mobilenet_v2': MobileNetV2,
  # Ansari.
  'node_cnn': NodeCNN,
  # He et al., CVPR 2016, table 1.
  'resnet18': functools.partial(ResNet, stages=(2, 2, 2, 2), **BASIC),
  'resnet50': functools.partial(ResNet, stages=(3, 4, 6, 3)),
  'resnet101': functools.partial(ResNet, stages=(3, 4, 23, 3)),
}
