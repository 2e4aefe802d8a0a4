"""What a forward pass of every model costs."""

from collections.abc import Iterable
import dataclasses
import importlib.metadata
import platform

import jax

from experiments.run.options import field
from kmil_jax import cost
from kmil_jax.cost import Cost
from kmil_jax.models import SPECS

_PACKAGES = ('jax', 'jaxlib', 'flax')


@dataclasses.dataclass(frozen=True)
class Slide:
  """The slide."""

  # For 100, TransMIL's multiply-adds are those of Zheng et al. 2024, Table 3,
  # to the last digit.
  num_instances: int = field(100, 'Instances of the slide.', least=1)
  width: int = field(1024, 'Features of each instance.', least=1)
  num_classes: int = field(5, 'Classes.', least=2)

  def costs(self, names: Iterable[str] = SPECS) -> dict[str, Cost]:
    """Measures entries of SPECS on the default device, by name."""
    measured = {}
    for name in names:
      model = SPECS[name].make(num_classes=self.num_classes)
      measured[name] = cost.measure(model, self.num_instances, self.width)
    return measured

  def title(self) -> str:
    """Says what was measured, on which device and with which versions."""
    device = jax.devices()[0]
    kind = device.device_kind
    if device.platform == 'cpu':
      kind = f'CPU, {platform.machine()}'
    version = importlib.metadata.version
    return (
      f'One slide of {self.num_instances} instances of {self.width} features,'
      f' {self.num_classes} classes, on {kind}; '
      + ', '.join(f'{name} {version(name)}' for name in _PACKAGES)
    )


def both_stages(costs: dict[str, Cost], name: str) -> Cost:
  """Returns the cost of a model and of its chooser, if it has one, before it.

  That of both is the sum, and of memory the larger.
  """
  if SPECS[name].chooser is None:
    return costs[name]
  pair = costs[SPECS[name].chooser], costs[name]
  values = {}
  for one in dataclasses.fields(Cost):
    each = [getattr(stage, one.name) for stage in pair]
    join = max if one.name == 'peak_bytes' else sum
    values[one.name] = None if None in each else join(each)
  return Cost(**values)
