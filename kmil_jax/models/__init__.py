"""The registries: bag models in `SPECS`, patch classifiers in `CLASSIFIERS`."""

import functools

from kmil_jax import losses, recipes
from kmil_jax.models import abmil
from kmil_jax.models.abmil import ABMIL
from kmil_jax.models.dsmil import DSMIL
from kmil_jax.models.dtfd import DTFD
from kmil_jax.models.googlenet import GoogLeNet
from kmil_jax.models.mobilenet import MobileNetV2
from kmil_jax.models.node_cnn import NodeCNN
from kmil_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from kmil_jax.models.transmil import TransMIL
from kmil_jax.types import ModelSpec, PatchSpec

SPECS = {
  'abmil': ModelSpec(
    make=ABMIL,
    loss=losses.cross_entropy,
    paper='Ilse et al., ICML 2018, eq. 9, as in Zheng et al., 2024',
    own=recipes.ABMIL,
    one_by_one=True,
  ),
  'abmil_plain': ModelSpec(
    make=functools.partial(ABMIL, **abmil.PLAIN),
    loss=losses.cross_entropy,
    paper='Ilse et al., ICML 2018, eq. 8, as in Zheng et al., 2024',
    own=recipes.ABMIL,
    one_by_one=True,
  ),
  'abmil_ilse': ModelSpec(
    make=functools.partial(ABMIL, **abmil.ILSE),
    loss=losses.cross_entropy,
    paper='Ilse et al., ICML 2018, eq. 9',
    own=recipes.ABMIL,
    one_by_one=True,
  ),
  'abmil_ilse_plain': ModelSpec(
    make=functools.partial(ABMIL, **abmil.ILSE_PLAIN),
    loss=losses.cross_entropy,
    paper='Ilse et al., ICML 2018, eq. 8',
    own=recipes.ABMIL,
    one_by_one=True,
  ),
  'dsmil': ModelSpec(
    make=DSMIL,
    loss=losses.dual_stream,
    paper='Li et al., CVPR 2021, eqs. 2 to 7',
    own=recipes.DSMIL,
  ),
  'dsmil_value': ModelSpec(
    make=functools.partial(DSMIL, value=True),
    loss=losses.dual_stream,
    paper='Li et al., CVPR 2021, eqs. 2 to 7',
    own=recipes.DSMIL,
  ),
  'dtfd': ModelSpec(
    make=DTFD,
    loss=losses.two_tier,
    paper='Zhang et al., CVPR 2022, as in Zheng et al., 2024',
    own=recipes.DTFD,
    one_by_one=True,
  ),
  'dtfd_gated': ModelSpec(
    make=functools.partial(DTFD, gated=True),
    loss=losses.two_tier,
    paper='Zhang et al., CVPR 2022',
    own=recipes.DTFD,
    one_by_one=True,
  ),
  'kmil': ModelSpec(
    make=DSMIL,
    loss=losses.dual_stream,
    paper='Zheng et al., iScience 2024, eqs. 1 to 3',
    chooser='abmil',
  ),
  'transmil': ModelSpec(
    make=TransMIL,
    loss=losses.cross_entropy,
    paper='Shao et al., NeurIPS 2021, Algorithms 1 and 2',
    own=recipes.TRANSMIL,
    fixed_length=True,
    one_by_one=True,
  ),
}

CLASSIFIERS = {
  'googlenet': PatchSpec(
    make=GoogLeNet, paper='Szegedy et al., CVPR 2015, table 1'
  ),
  'googlenet_aux': PatchSpec(
    make=functools.partial(GoogLeNet, auxiliary=True),
    paper='Szegedy et al., CVPR 2015, table 1',
  ),
  'mobilenet_v2': PatchSpec(
    make=MobileNetV2, paper='Sandler et al., CVPR 2018, table 2'
  ),
  'node_cnn': PatchSpec(make=NodeCNN, paper='Ansari'),
  'resnet18': PatchSpec(
    make=functools.partial(ResNet, block=BasicBlock, stages=(2, 2, 2, 2)),
    paper='He et al., CVPR 2016, table 1',
  ),
  'resnet50': PatchSpec(
    make=functools.partial(ResNet, block=Bottleneck, stages=(3, 4, 6, 3)),
    paper='He et al., CVPR 2016, table 1',
  ),
  'resnet101': PatchSpec(
    make=functools.partial(ResNet, block=Bottleneck, stages=(3, 4, 23, 3)),
    paper='He et al., CVPR 2016, table 1',
  ),
}
