"""What the benchmark measures, and its table; imports neither side."""

from collections.abc import Callable, Mapping
import dataclasses
import os
import pathlib
from typing import Any

from absl import logging
import numpy as np

from experiments.evaluation.tables import Row, Table
from experiments.run.options import field
from kmil_jax.types import Store

# Of a compiled step.
COLUMNS = {
  'kernels': ',',
  'conditionals': '',
  'loops': '',
  'trips': ',',
  'MB': ',.0f',
  'GFLOP': ',.1f',
  'products': '',
  'arguments (GB)': '.2f',
  'temporary (MB)': ',.0f',
  'collectives': '',
  'asynchronous': '',
  'host launches': '',
  'estimate (us)': ',.0f',
}
Call = Callable[[], Any]
# By name, what makes a form ready to be timed.
Forms = Mapping[str, Callable[[], Call]]
MODELS = ('kmil', 'abmil', 'dsmil', 'transmil', 'dtfd')
PARTS = ('step', 'epoch', 'encode')
_OF_MODELS = {'slide': False}  # No effect on how a slide is read.
WIDTH, CLASSES = 1024, 5  # Of the features of bags; of their labels.


@dataclasses.dataclass(frozen=True)
class Work:
  """What to time."""

  models: tuple[str, ...] = field(
    MODELS, 'Models to time.', choices=MODELS, only=_OF_MODELS
  )
  parts: tuple[str, ...] = field(
    PARTS,
    'A training step, an epoch of ten-fold cross-validation, and encoding of'
    ' tiles by EfficientNet-Lite0.',
    choices=PARTS,
    only=_OF_MODELS,
  )
  instances: tuple[int, ...] = field(
    (256, 1024, 4096, 16384), 'Instances of a bag.', least=1, only=_OF_MODELS
  )
  runs: tuple[int, ...] = field(
    (1, 10), 'Runs trained together.', least=1, only=_OF_MODELS
  )
  slide: pathlib.Path | None = field(
    None, 'Time only how many tiles of this slide each --reader reads.'
  )
  repeats: int = field(5, 'Timings of each side, of which medians.', least=1)
  compile: bool = field(
    True,
    'Also try torch.compile, which may take minutes for each row.',
    only=_OF_MODELS,
  )
  seed: int = field(0, 'Seed of bags and weights.', least=0, only=_OF_MODELS)
  format: str = field(
    'text',
    'Print a table for the terminal, one in Markdown, or all as JSON.',
    choices=('text', 'markdown', 'json'),
    only=_OF_MODELS,
  )


@dataclasses.dataclass(frozen=True)
class Entry:
  """A row of the table.

  Attributes:
    part: of `PARTS`.
    model: or encoder.
    instances: of a bag, on average in an epoch; tiles to encode.
    runs: trained together.
    precision: of features and computation.
    bags: of an epoch, a cohort like the paper's: their instances are 3/4 and
      5/4 of `instances` in turn, and all runs see the same of them. By default
      a small one, whose lengths vary more.
  """

  part: str
  model: str
  instances: int
  runs: int
  precision: str = 'float32'
  bags: int | None = None


@dataclasses.dataclass(frozen=True)
class Visits:
  """What R runs visit in training.

  Attributes:
    model: of `SPECS`.
    store: the bags, in float32.
    keep: instances that each run sees, bool [R, T], or [1, T] if they see the
      same; None for all.
    order: bags that a call visits.
    trains: which bags move each run, bool [R, n].
    precision: of features and computation.
  """

  model: str
  store: Store
  keep: np.ndarray | None
  order: np.ndarray
  trains: np.ndarray
  precision: str


def prepare() -> None:
  """Sets what JAX and torch, which share a device, read once."""
  logging.set_verbosity(logging.WARNING)  # JAX names what it does not find.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')


def table(measured: Mapping[str, Any]) -> Table:
  """Returns the rows of `suite.run` as a table."""
  columns = {
    'torch_s': '.3g',
    'jax_s': '.3g',
    'ratio': '.2f',
    'torch_form': '',
    'torch_compile_s': '.1f',
    'jax_compile_s': '.1f',
  }
  some = COLUMNS | {'torch peak (MB)': ',.0f'}
  rows = measured['rows']
  held = {c for row in rows for c in row if row[c] is not None}
  columns |= {c: some[c] for c in some if c in held}
  labels = 'part', 'model', 'instances', 'runs', 'precision'
  notes = [
    f'{name}: ' + ', '.join(f'{k} {v}' for k, v in measured[name].items())
    for name in ('device', 'versions', 'settings')
  ]
  rate = lambda row, side: row[side] and round(row['instances'] / row[side])
  notes += [
    f'{row["model"]}, {row["precision"]}: {rate(row, "torch_s") or "n/a"}'
    f' tiles/s in torch, {rate(row, "jax_s")} in kmil_jax'
    for row in rows
    if row['part'] == 'encode'
  ]
  notes += [
    f'not measured: {", ".join(str(v) for v in row.values() if v is not None)}'
    for row in measured.get('not_measured', ())
  ]
  return Table(
    name='benchmark',
    title=f'Seconds in torch and in kmil_jax, {measured["date"]}',
    labels=labels,
    columns=columns,
    rows=[
      Row([row[name] for name in labels], {'': [row.get(c) for c in columns]})
      for row in rows
    ],
    notes=[
      'ratio: torch over kmil_jax; above 1 kmil_jax is faster',
      'n/a: not measured; an estimate is no measurement',
      *notes,
    ],
  )
