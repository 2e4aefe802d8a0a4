"""Prints what a forward pass of every model costs.

  python -m experiments.cost
  python -m experiments.cost --num_instances=4096 --format=json

Parameters, multiply-adds as Zheng et al. 2024 count them, FLOPs as compiled by
XLA, peak memory and time per slide; `experiments.paper --table=3` puts them
beside the paper's. With --format=json standard output is
{model: {"params", "macs", "flops_xla", "peak_bytes", "seconds"}} alone, where
null stands for what the backend does not say.
"""

import dataclasses
import json
import sys

from absl import app, flags, logging

from experiments import cost_table

_NUM_INSTANCES = flags.DEFINE_integer(
  'num_instances',
  cost_table.SETTING['num_instances'],
  'Instances of the slide.',
  lower_bound=1,
)
_WIDTH = flags.DEFINE_integer(
  'width', cost_table.SETTING['width'], 'Features of each.', lower_bound=1
)
_NUM_CLASSES = flags.DEFINE_integer(
  'num_classes', cost_table.SETTING['num_classes'], 'Classes.', lower_bound=2
)
_FORMAT = flags.DEFINE_enum('format', 'text', ['text', 'json'], 'How to print.')


def main(argv: list[str]) -> None:
  """Measures every model and prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}')
  logging.set_verbosity(logging.WARNING)  # JAX names what it does not find.
  setting = {
    'num_instances': _NUM_INSTANCES.value,
    'width': _WIDTH.value,
    'num_classes': _NUM_CLASSES.value,
  }
  costs = cost_table.rows(**setting)
  if _FORMAT.value == 'json':
    print(cost_table.title(setting), file=sys.stderr)
    found = {name: dataclasses.asdict(cost) for name, cost in costs.items()}
    print(json.dumps(found, indent=2, allow_nan=False))
  else:
    print(cost_table.text(costs, setting))


if __name__ == '__main__':
  app.run(main)
