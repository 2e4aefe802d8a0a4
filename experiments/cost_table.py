"""The cost of every model beside the paper's Table 3."""

from collections.abc import Sequence
import dataclasses
import importlib.metadata
import platform

import jax

from kmil_jax import cost
from kmil_jax.cost import Cost
from kmil_jax.models import SPECS


@dataclasses.dataclass(frozen=True)
class Published:
  """A row of the paper's table, as printed."""

  flops: str
  params: str
  seconds: str


# Zheng et al., iScience 2024, Table 3.
PAPER = {
  'abmil': Published('61.46M', '530.2K', '1.064'),
  'transmil': Published('602.82M', '2673.2K', '3.282'),
  'dsmil': Published('114.38M', '641.4K', '2.892'),
  'dtfd': Published('83.02M', '726.7K', '2.301'),
  'kmil': Published('116.53M', '643.6K', '2.916'),
}
# What the paper's numbers are of: the classes and features it names, and the
# one number of instances that gives its row of TransMIL.
SETTING = {'num_instances': 100, 'width': 1024, 'num_classes': 5}

_HEADER = (
  'model',
  'parameters',
  "paper's",
  '',
  'multiply-adds',
  "paper's",
  '',
  'XLA FLOPs',
  'peak MiB',
  'ms per slide',
  "paper's s",
)
_NOTES = (
  'parameters and multiply-adds: of the published architecture. Multiply-adds'
  " in the paper's convention, in which only dense layers, convolutions and"
  ' layer norms (4 per element) count.',
  'XLA FLOPs: two per multiply-add, and elementwise operations, of the program'
  ' compiled for CPUs, passes of loops multiplied out.',
  'peak: arguments (with the parameters), outputs and temporaries of the'
  ' compiled forward pass.',
  'time: median of repeated forward passes of one slide, without compilation'
  ' and reading. The paper names an RTX 3090 for training and does not say what'
  ' its times include.',
  'kmil is the second stage, given all instances. Both stages: the sum of the'
  ' chooser (the row of its name) and of it; the larger of the peaks.',
)
_VERDICT = (
  "=: equal to the paper's to the last digit printed. Parameters of ABMIL and"
  " DTFD; TransMIL's 2673.2K leaves out the 512 of the class token. No released"
  ' network has the 641.4K of DSMIL or the 643.6K of KMIL.',
  "TransMIL's multiply-adds are the paper's; those of ABMIL, DSMIL, DTFD and"
  ' KMIL, by the same count at the same 100 instances, are not.',
)
_OTHER_SETTING = (
  "The paper's numbers are of bags of 100 instances of 1024 features, and 5"
  ' classes.'
)


def rows(
  num_instances: int = SETTING['num_instances'],
  width: int = SETTING['width'],
  num_classes: int = SETTING['num_classes'],
) -> dict[str, Cost]:
  """Measures every entry of SPECS on the default device, by name."""
  return {
    name: cost.measure(spec.make(num_classes=num_classes), num_instances, width)
    for name, spec in SPECS.items()
  }


def with_both_stages(costs: dict[str, Cost]) -> dict[str, Cost]:
  """Adds a row '<name>, both stages' after each model that has a chooser."""
  added = {}
  for name, second in costs.items():
    added[name] = second
    if chooser := SPECS[name].chooser:
      added[f'{name}, both stages'] = _together(costs[chooser], second)
  return added


def text(costs: dict[str, Cost], setting: dict[str, int]) -> str:
  """Returns the table and what it means, for the terminal.

  Args:
    costs: of `rows`.
    setting: the keys of `SETTING`, which the costs are of.
  """
  lines = _lines(costs)
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  table = '\n'.join(
    '  '.join(
      cell.ljust(width) if column == 0 else cell.rjust(width)
      for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )
  return '\n\n'.join([title(setting), table, '\n'.join(notes(setting))])


def markdown(costs: dict[str, Cost], setting: dict[str, int]) -> str:
  """Returns the same in Markdown."""
  header, *lines = _lines(costs)
  ruler = [':--', *['--:'] * (len(header) - 1)]
  table = '\n'.join(
    f'| {" | ".join(line)} |' for line in (header, ruler, *lines)
  )
  bullets = '\n'.join(f'* {note}' for note in notes(setting))
  return '\n\n'.join([title(setting), table, bullets])


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


def notes(setting: dict[str, int]) -> list[str]:
  """Says what the columns are, and what of the paper they reproduce."""
  verdict = _VERDICT if setting == SETTING else (_OTHER_SETTING,)
  return [*verdict, *_NOTES]


def _lines(costs: dict[str, Cost]) -> list[Sequence[str]]:
  lines = [_HEADER]
  for name, found in with_both_stages(costs).items():
    paper = PAPER.get(name, Published('', '', ''))
    params, macs = f'{found.params / 1e3:.1f}K', f'{found.macs / 1e6:.2f}M'
    lines.append(
      (
        name,
        f'{found.params:,}',
        paper.params,
        '=' * (params == paper.params),
        macs,
        paper.flops,
        '=' * (macs == paper.flops),
        _scaled(found.flops_xla, 1e6, 'M'),
        _scaled(found.peak_bytes, 2**20, ''),
        f'{found.seconds * 1e3:.3f}',
        paper.seconds,
      )
    )
  return lines


def _scaled(x: float | None, unit: float, suffix: str) -> str:
  return 'n/a' if x is None else f'{x / unit:.2f}{suffix}'


def _together(first: Cost, second: Cost) -> Cost:
  """What two stages, one after the other, take."""
  join = lambda f, a, b: None if a is None or b is None else f((a, b))
  return Cost(
    params=first.params + second.params,
    macs=first.macs + second.macs,
    flops_xla=join(sum, first.flops_xla, second.flops_xla),
    peak_bytes=join(max, first.peak_bytes, second.peak_bytes),
    seconds=first.seconds + second.seconds,
  )
