"""The bag models: `SPECS` is the only registry."""

from kmil_jax import losses
from kmil_jax.models.abmil import ABMIL
from kmil_jax.models.dsmil import DSMIL
from kmil_jax.types import ModelSpec

SPECS = {
  'abmil': ModelSpec(
    make=ABMIL,
    loss=losses.cross_entropy,
    paper='Ilse et al., ICML 2018, eq. 9',
  ),
  'dsmil': ModelSpec(
    make=DSMIL,
    loss=losses.dual_stream,
    paper='Li et al., CVPR 2021, eqs. 2 to 7',
  ),
  'kmil': ModelSpec(
    make=DSMIL,
    loss=losses.dual_stream,
    paper='Zheng et al., iScience 2024, eqs. 1 to 3',
    chooser='abmil',
  ),
}
