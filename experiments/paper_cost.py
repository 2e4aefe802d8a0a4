"""Table 3 of Zheng et al. 2024: what one forward pass of each model costs."""

from collections.abc import Sequence

import jax

from experiments import paper_numbers as paper
from experiments.paper_text import Entry, Table
from kmil_jax import cost
from kmil_jax.models import SPECS
from kmil_jax.models.kmil import Choice

# 100 is the bag for which the paper's TransMIL row comes out to the last digit.
INSTANCES, WIDTH, CLASSES = 100, 1024, 5


def table(models: Sequence[str]) -> Table:
  """Measures the models on this process's default device.

  KMIL is its first stage on the whole bag and its second on what that keeps;
  operations, parameters and seconds are added, of the memory the larger counts.
  """
  entries = []
  for model in models:
    stages = [cost.measure(*stage, WIDTH) for stage in _stages(model)]
    add = lambda name, of=stages: sum(getattr(stage, name) for stage in of)
    counted = None not in [stage.flops_xla for stage in stages]
    known = [stage.peak_bytes for stage in stages]
    operations, params, seconds = paper.TABLE_3[model]
    lines = {
      'here': [
        add('macs') / 1e6,
        add('params') / 1e3,
        add('seconds'),
        add('flops_xla') / 1e6 if counted else None,
        None if None in known else max(known) / 2**20,
      ],
      'paper': [operations, params, seconds, None, None],
    }
    entries.append(Entry((paper.MODELS[model],), lines))
  return Table(
    'table_3',
    'Table 3. Cost of one forward pass',
    ('model',),
    (
      'operations (M), as the paper counts',
      'parameters (K)',
      'time (s)',
      "operations (M), XLA's count",
      'peak memory (MiB)',
    ),
    tuple(entries),
    (2, 1, 5, 2, 1),
    _notes(models),
  )


def data() -> str:
  """Says on which data the table was made."""
  device = jax.local_devices()[0].device_kind
  return (
    f'Data: drawn numbers, a bag of {INSTANCES} instances with {WIDTH}'
    f' features, {CLASSES} classes; timed on {device}.'
  )


def _stages(model: str) -> list[tuple]:
  """Networks and the instances each sees."""
  spec = SPECS[model]
  if spec.chooser is None:
    return [(spec.make(num_classes=CLASSES), INSTANCES)]
  kept = INSTANCES * (1000 - Choice().drop_per_mille) // 1000
  return [
    (SPECS[spec.chooser].make(num_classes=CLASSES), INSTANCES),
    (spec.make(num_classes=CLASSES), kept),
  ]


def _notes(models: Sequence[str]) -> tuple[str, ...]:
  notes = [
    'The paper counts the multiply-adds of dense layers and convolutions as one'
    ' each, and no products of attention. XLA counts all, and each as two. What'
    " the paper's seconds are of, it does not say.",
  ]
  if 'transmil' in models:
    notes.append(
      'TransMIL: the paper leaves out the 512 parameters of the class token.'
    )
  if {'abmil', 'dtfd'} & set(models):
    notes.append(
      "ABMIL, DTFD: the parameters are the paper's. No size of a bag gives its"
      ' operations of ABMIL, or of DTFD with 4, 5 or 8 pseudo-bags.'
    )
  if {'dsmil', 'kmil'} & set(models):
    notes.append(
      "DSMIL, KMIL: no layers of the released code come to the paper's"
      ' parameters. KMIL here is both of its stages, an ABMIL on all instances'
      ' and a DSMIL on the 90 % that it keeps.'
    )
  return tuple(notes)
