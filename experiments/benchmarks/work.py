"""What the benchmark measures, and its table; imports neither side."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from experiments.evaluation.tables import Row, Table
from experiments.run.options import field

MODELS = ('kmil', 'abmil', 'dsmil', 'transmil', 'dtfd')
PARTS = ('step', 'epoch', 'encode')
PRECISIONS = 'float32', 'bfloat16'


@dataclasses.dataclass(frozen=True)
class Work:
  """What to time."""

  models: tuple[str, ...] = field(MODELS, 'Models to time.', choices=MODELS)
  parts: tuple[str, ...] = field(
    PARTS,
    'A training step, an epoch of ten-fold cross-validation, and encoding of'
    " tiles by EfficientNet-Lite0 and ResNet-50's trunk.",
    choices=PARTS,
  )
  instances: tuple[int, ...] = field(
    (256, 1024, 4096, 16384), 'Instances of a bag.', least=1
  )
  runs: tuple[int, ...] = field((1, 10), 'Runs trained together.', least=1)
  slide: pathlib.Path | None = field(
    None, 'Time only how many tiles of this slide each --reader reads.'
  )
  precisions: tuple[str, ...] = field(
    ('float32',), 'Number formats.', choices=PRECISIONS
  )
  bags: int | None = field(
    None, 'Bags of an epoch; by default 60, of GPUs 1036.', least=10
  )
  tiles: int | None = field(
    None, 'Tiles to encode; by default 64, of GPUs 1024.', least=1
  )
  seconds: int | None = field(
    None, 'Begin nothing that may not end in time; faults end no other row.'
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
    'jax_temp_MB': '.0f',
    'jax_peak_MB': '.0f',
    'torch_peak_MB': '.0f',
    'launches': '',
  }
  labels = 'part', 'model', 'instances', 'runs', 'precision'
  notes = [
    f'{name}: ' + ', '.join(f'{k} {v}' for k, v in measured[name].items())
    for name in ('device', 'versions', 'settings')
  ]
  notes += [
    f'{row["model"]}, {row["precision"]}: '
    + ', '.join(
      f'{row["instances"] / row[f"{side}_s"]:.0f} tiles/s in {name}'
      for side, name in (('torch', 'torch'), ('jax', 'kmil_jax'))
      if row[f'{side}_s']
    )
    for row in measured['rows']
    if row['part'] == 'encode'
  ]
  notes += [
    f'not measured: {", ".join(map(str, row.values()))}'
    for row in measured['not_measured']
  ]
  return Table(
    name='benchmark',
    title=f'Seconds in torch and in kmil_jax, {measured["date"]}',
    labels=labels,
    columns=columns,
    rows=[
      Row(
        [str(row[label]) for label in labels],
        {'': [row.get(c) for c in columns]},
      )
      for row in measured['rows']
    ],
    notes=[
      'seconds of a step, an epoch or all tiles: after untimed calls the median'
      f' of {measured["settings"]["repeats"]} that end when the device has;'
      ' both sides take turns',
      'ratio: torch over kmil_jax; above 1 kmil_jax is faster',
      'jax_temp_MB, jax_peak_MB: of the compiled program; torch_peak_MB: of its'
      ' allocator. launches: fusions and calls of libraries in the program',
      *notes,
    ],
  )
