"""What the benchmark measures, and its table; imports neither side."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from experiments.evaluation.tables import Row, Table
from experiments.run.options import field

MODELS = ('kmil', 'abmil', 'dsmil', 'transmil', 'dtfd')
PARTS = ('step', 'epoch', 'encode')


@dataclasses.dataclass(frozen=True)
class Work:
  """What to time."""

  models: tuple[str, ...] = field(MODELS, 'Models to time.', choices=MODELS)
  parts: tuple[str, ...] = field(
    PARTS,
    'A training step, an epoch of ten-fold cross-validation, and encoding of'
    ' tiles by EfficientNet-Lite0.',
    choices=PARTS,
  )
  instances: tuple[int, ...] = field(
    (256, 1024, 4096, 16384), 'Instances of a bag.', least=1
  )
  runs: tuple[int, ...] = field((1, 10), 'Runs trained together.', least=1)
  slide: pathlib.Path | None = field(
    None, 'Time only how many tiles of this slide each --reader reads.'
  )
  repeats: int = field(5, 'Timings of each side, of which medians.', least=1)
  compile: bool = field(
    True, 'Also try torch.compile, which may take minutes for each row.'
  )
  seed: int = field(0, 'Seed of bags and weights.', least=0)
  format: str = field(
    'text',
    'Print a table for the terminal, one in Markdown, or all as JSON.',
    choices=('text', 'markdown', 'json'),
  )


def table(measured: Mapping[str, Any]) -> Table:
  """Returns the rows of `suite.run` as a table."""
  columns = {
    'torch_s': '.4f',
    'jax_s': '.4f',
    'ratio': '.2f',
    'torch_form': '',
    'torch_compile_s': '.1f',
    'jax_compile_s': '.1f',
  }
  labels = 'part', 'model', 'instances', 'runs'
  notes = [
    f'{name}: ' + ', '.join(f'{k} {v}' for k, v in measured[name].items())
    for name in ('device', 'versions', 'settings')
  ]
  rate = lambda row, side: f'{row["instances"] / row[side]:.0f}'
  notes += [
    f'{row["model"]}: {rate(row, "torch_s")} tiles/s in torch,'
    f' {rate(row, "jax_s")} in kmil_jax'
    for row in measured['rows']
    if row['part'] == 'encode'
  ]
  notes += [f'not measured: {row}' for row in measured['not_measured']]
  return Table(
    name='benchmark',
    title=f'Seconds in torch and in kmil_jax, {measured["date"]}',
    labels=labels,
    columns=columns,
    rows=[
      Row(
        [str(row[label]) for label in labels], {'': [row[c] for c in columns]}
      )
      for row in measured['rows']
    ],
    notes=['ratio: torch over kmil_jax; above 1 kmil_jax is faster', *notes],
  )
