"""What every model costs, measured and laid out for the terminal."""

from collections.abc import Iterable
import importlib.metadata
import platform

import jax

from kmil_jax import cost
from kmil_jax.cost import Cost
from kmil_jax.models import SPECS

# 100 instances are the bag for which TransMIL's multiply-adds are those of
# Zheng et al. 2024, Table 3, to the last digit.
SETTING = {'num_instances': 100, 'width': 1024, 'num_classes': 5}

_HEADER = (
  'model',
  'parameters',
  'multiply-adds',
  'XLA FLOPs',
  'peak MiB',
  'ms per slide',
)
NOTES = (
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


def rows(
  num_instances: int = SETTING['num_instances'],
  width: int = SETTING['width'],
  num_classes: int = SETTING['num_classes'],
  names: Iterable[str] = tuple(SPECS),
) -> dict[str, Cost]:
  """Measures entries of SPECS on the default device, by name."""
  return {
    name: cost.measure(
      SPECS[name].make(num_classes=num_classes), num_instances, width
    )
    for name in names
  }


def both_stages(costs: dict[str, Cost], name: str) -> Cost:
  """Returns what a model takes with its chooser, if it has one, before it."""
  second = costs[name]
  if SPECS[name].chooser is None:
    return second
  first = costs[SPECS[name].chooser]
  join = lambda f, a, b: None if a is None or b is None else f((a, b))
  return Cost(
    params=first.params + second.params,
    macs=first.macs + second.macs,
    flops_xla=join(sum, first.flops_xla, second.flops_xla),
    peak_bytes=join(max, first.peak_bytes, second.peak_bytes),
    seconds=first.seconds + second.seconds,
  )


def text(costs: dict[str, Cost], setting: dict[str, int]) -> str:
  """Returns the table and what it means.

  Args:
    costs: of `rows`.
    setting: the keys of `SETTING`, which the costs are of.
  """
  lines = [_HEADER]
  for name, found in costs.items():
    lines.append(_line(name, found))
    if SPECS[name].chooser:
      lines.append(_line(f'{name}, both stages', both_stages(costs, name)))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  table = '\n'.join(
    '  '.join(
      cell.ljust(width) if column == 0 else cell.rjust(width)
      for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )
  return '\n\n'.join([title(setting), table, '\n'.join(NOTES)])


def title(setting: dict[str, int]) -> str:
  """Says what was measured, on which device and with which versions."""
  device = jax.devices()[0]
  kind = device.device_kind
  if device.platform == 'cpu':
    kind = f'CPU, {platform.machine()}'
  versions = ', '.join(
    f'{name} {importlib.metadata.version(name)}'
    for name in ('jax', 'jaxlib', 'flax')
  )
  return (
    f'One slide of {setting["num_instances"]} instances of {setting["width"]}'
    f' features, {setting["num_classes"]} classes, on {kind}; {versions}'
  )


def _line(name: str, found: Cost) -> tuple[str, ...]:
  return (
    name,
    f'{found.params:,}',
    f'{found.macs:,}',
    _scaled(found.flops_xla, 1e6, 'M'),
    _scaled(found.peak_bytes, 2**20, ''),
    f'{found.seconds * 1e3:.3f}',
  )


def _scaled(x: float | None, unit: float, suffix: str) -> str:
  return 'n/a' if x is None else f'{x / unit:.2f}{suffix}'
