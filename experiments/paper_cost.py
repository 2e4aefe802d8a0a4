"""Table 3 of Zheng et al. 2024: what one forward pass of each model costs."""

from collections.abc import Sequence

from experiments import cost_table, paper_numbers as paper
from experiments.paper_text import Entry, Table
from kmil_jax.models import SPECS


def table(models: Sequence[str]) -> Table:
  """Measures the models on this process's default device.

  KMIL is both of its stages on the whole bag.
  """
  chosen = [SPECS[name].chooser for name in models if SPECS[name].chooser]
  costs = cost_table.rows(names=[*models, *chosen])
  entries = []
  for model in models:
    found = cost_table.both_stages(costs, model)
    operations, params, seconds = paper.TABLE_3[model]
    lines = {
      'here': [
        found.macs / 1e6,
        found.params / 1e3,
        found.seconds,
        found.flops_xla and found.flops_xla / 1e6,
        found.peak_bytes and found.peak_bytes / 2**20,
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
  return f'Data: drawn numbers. {cost_table.title(cost_table.SETTING)}.'


def _notes(models: Sequence[str]) -> tuple[str, ...]:
  notes = [
    'The paper counts the multiply-adds of dense layers and convolutions as one'
    ' each, and no products of attention. XLA counts all, and each as two, but'
    " a loop's body once. What the paper's seconds are of, it does not say.",
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
      ' parameters. KMIL here is both of its stages, an ABMIL and a DSMIL, on'
      ' all instances.'
    )
  return tuple(notes)
