"""Prints what a forward pass of every model costs.

  python -m experiments.cost
  python -m experiments.cost --num_instances=4096 --format=json

Parameters, multiply-adds as Zheng et al. 2024 count them, FLOPs as compiled by
XLA, peak memory and time per slide; `experiments.paper --table=3` puts them
beside the paper's. With --format=json standard output is
{model: {"params", "macs", "flops_xla", "peak_bytes", "seconds"}} alone, with
null for what the backend does not report.
"""

import dataclasses
import json
import sys

from absl import logging

from experiments.evaluation.costs import Slide, both_stages
from experiments.evaluation.tables import Row, Table
from experiments.run import start
from experiments.run.options import field
from kmil_jax.cost import Cost
from kmil_jax.models import SPECS

_COLUMNS = {
  'parameters': ',',
  'multiply-adds': ',',
  'XLA FLOPs (M)': '.2f',
  'peak MiB': '.2f',
  'ms per slide': '.3f',
}
_NOTES = (
  'multiply-adds: of the published architecture, in the convention of Zheng et'
  ' al. 2024, where dense layers, convolutions and layer norms (4 per element)'
  ' count and products of attention do not.',
  'XLA FLOPs: two per multiply-add, and elementwise operations, of the program'
  ' given to the compiler; the body of a loop counts once (transmil has some).',
  'peak: arguments (with the parameters), outputs and temporaries of the'
  ' compiled forward pass.',
  'time: median of repeated forward passes of one slide, without compilation'
  ' and reading.',
  'kmil is the second stage, given all instances. Both stages: the sum of the'
  ' chooser (the row of its name) and of it; the larger of the peaks.',
)


@dataclasses.dataclass(frozen=True)
class Printed:
  """How it is printed."""

  format: str = field(
    'text', 'A table for readers, or JSON.', choices=('text', 'json')
  )


def run(slide: Slide, printed: Printed) -> start.Next:
  """Measures every model and prints the costs."""
  logging.set_verbosity(logging.WARNING)  # JAX names the devices it lacks.
  costs = slide.costs()
  if printed.format == 'json':
    print(slide.title(), file=sys.stderr)
    values = {name: dataclasses.asdict(cost) for name, cost in costs.items()}
    print(json.dumps(values, indent=2, allow_nan=False))
  else:
    rows = []
    for name, cost in costs.items():
      rows.append(Row((name,), {'': _values(cost)}))
      if SPECS[name].chooser:
        values = _values(both_stages(costs, name))
        rows.append(Row((f'{name}, both stages',), {'': values}))
    table = Table('cost', slide.title(), ('model',), _COLUMNS, rows, _NOTES)
    print(table.terminal())
  return 'paper', {'table': 3}


def _values(cost: Cost) -> list[float | None]:
  return [
    cost.params,
    cost.macs,
    cost.flops_xla and cost.flops_xla / 1e6,
    cost.peak_bytes and cost.peak_bytes / 2**20,
    cost.seconds * 1e3,
  ]


main = start.script(run)


if __name__ == '__main__':
  main()
