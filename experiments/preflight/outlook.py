"""What a training on bags would take: sizes, programs, memory and time."""

from collections.abc import Iterator, Sequence
import dataclasses
import resource
import time

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from data import splits as split_files
from data.splits import Split
from experiments import feed
from experiments.cohort import Cohort
from experiments.crossval import Settings
from kmil_jax import cost, inference, parallel, plan
from kmil_jax.models import SPECS, cpu
from kmil_jax.types import ModelSpec, Recipe

_BINS = 8
_BAR = 40  # Characters of the histogram's longest bar.
# Of a step: parameters, gradients and Adam's two moments are read, and all but
# the gradients written; the best parameters are kept beside them.
_COPIES_MOVED, _COPIES_HELD = 7, 5
_BACKWARD = 3  # A step takes three times the products of a forward pass.
_EFFICIENCY = 0.5  # Of the machine's speed, which training reaches.
_HIDDEN = 1024  # Numbers that a model holds for an instance, besides features.
_LAUNCH = 1e-4  # Seconds that a step takes however small it is.


def of_cohort(cohort: Cohort) -> Iterator[str]:
  """Yields lines on slides, classes and the sizes of bags."""
  length = cohort.length
  counts = [
    f'{name} {int((cohort.label == c).sum())}'
    for c, name in enumerate(cohort.classes)
  ]
  cases = len(set(cohort.manifest.case))
  yield f'features: {cohort.source.path}' + ''.join(
    f', {name} {value}' for name, value in sorted(cohort.made.items())
  )
  yield f'{len(cohort.label)} slides of {cases} cases: ' + ', '.join(counts)
  size = int(length.sum(dtype=np.int64)) * cohort.width * 4 / 2**20
  buckets = plan.bucket_lengths(length)
  yield (
    f'{length.min()} to {length.max()} instances a slide, {cohort.width}'
    f' features each, {size:.0f} MiB; padded to {buckets}'
  )


def histogram(length: np.ndarray) -> Iterator[str]:
  """Yields the histogram of bag sizes, in bins of equal ratio."""
  low, high = int(length.min()), int(length.max())
  edges = np.geomspace(low, high + 1, min(_BINS, high - low + 1) + 1)
  edges = np.unique(np.ceil(edges - 1e-9).astype(int))
  counts = np.histogram(length, edges)[0]
  width = len(str(high))
  yield 'instances and slides:'
  for first, past, count in zip(edges[:-1], edges[1:], counts, strict=True):
    bar = '#' * int(np.ceil(_BAR * count / counts.max()))
    yield f'  {first:{width}} to {past - 1:{width}} {count:6} {bar}'.rstrip()


def of_folds(cohort: Cohort, splits: Sequence[Split]) -> Iterator[str]:
  """Yields the slides of each fold, by part and class."""
  for i, split in enumerate(splits):
    parts = [getattr(split, part) for part in split_files.PARTS]
    sizes = ', '.join(
      f'{rows.sum()} {part}'
      for rows, part in zip(parts, split_files.PARTS, strict=True)
    )
    by_class = ', '.join(
      f'{name} ' + '/'.join(str((cohort.label[p] == c).sum()) for p in parts)
      for c, name in enumerate(cohort.classes)
    )
    yield f'fold {i}: {sizes} slides; {by_class}'


def of_training(
  cohort: Cohort,
  splits: Sequence[Split],
  settings: Settings,
  folds: Sequence[int],
) -> Iterator[str]:
  """Yields lines on programs, memory and time; see `seconds` and `memory`.

  Args:
    cohort: to train on.
    splits: of all folds.
    settings: of the training.
    folds: of every run.
  """
  buckets = plan.bucket_lengths(cohort.length)
  padded = np.array(buckets)[np.searchsorted(buckets, cohort.length)]
  waste = 1 - cohort.length.sum() / padded.sum()
  stages = _stages(cohort, settings, folds)
  streamed = feed.is_streamed(cohort, settings.precision, settings.stream)
  programs = f'2 of each stage, with {len(buckets)} branches'
  if streamed:
    programs = f'{2 * len(buckets)} of each stage'
  yield (
    f'{len(buckets)} padded lengths, {waste:.0%} padding; programs to compile:'
    f' {programs}, {len(stages)} stage{"s" * (len(stages) > 1)}'
  )
  held = memory(cohort, stages, settings, streamed)
  limit = parallel.memory_bytes()
  where = 'streamed from disk' if streamed else 'on the device'
  yield (
    f'memory of a device, features {where}: about {_size(held)} of'
    f' {_size(limit)} (features + {_COPIES_HELD} copies of the'
    ' parameters of its runs + activations of the longest bag; programs and'
    ' libraries come on top)'
  )
  if parallel.platform() == 'cpu':
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    yield f'of this process, so far: {_size(here)}'
  spent = seconds(cohort, splits, stages)
  total = ' + '.join(
    f'{stage.name} {_clock(t)} for {stage.recipe.epochs} epochs'
    for stage, t in zip(stages, spent, strict=True)
  )
  yield (
    f'time of {len(folds)} runs: at most about {total}, to within a factor of'
    ' 3 and without compiling or stopping early (products at half of, and'
    " parameters at, this device's speed, which was just measured)"
  )


@dataclasses.dataclass(frozen=True)
class _Stage:
  name: str
  spec: ModelSpec
  network: nn.Module
  parameters: int
  runs: int
  recipe: Recipe

  @property
  def on_device(self) -> int:
    """Runs that one device trains."""
    spread = parallel.num_devices() if self.recipe.batch == 1 else 1
    return -(-self.runs // spread)


def memory(
  cohort: Cohort, stages: Sequence[_Stage], settings: Settings, streamed: bool
) -> int:
  """Returns the bytes that the largest stage holds on a device."""
  lengths = plan.bucket_lengths(cohort.length)
  longest = lengths[-1]
  item = feed.item_size(settings.precision)
  bags = max(1, settings.recipe.batch // parallel.num_devices())
  of_instance = bags * (cohort.width + _HIDDEN) * _BACKWARD * 4
  features = bags * longest * cohort.width * item
  if not streamed:
    features = feed.resident_bytes(cohort, settings.precision)

  def held(stage):
    runs = stage.on_device
    at_once = max(
      length * (1 if cpu.one_by_one(stage.spec, runs, length) else runs)
      for length in lengths
    )
    weights = runs * stage.parameters * 4 * _COPIES_HELD
    return weights + at_once * of_instance

  return features + max(held(stage) for stage in stages)


def seconds(
  cohort: Cohort, splits: Sequence[Split], stages: Sequence[_Stage]
) -> list[float]:
  """Returns the time of each stage, were no run to stop early.

  Of a step on one bag, a device takes for its runs the products of forward and
  backward pass at half its speed, the parameters and moments at the speed of a
  copy, and a tenth of a millisecond.
  """
  products, copies = _speeds()
  buckets = plan.bucket_lengths(cohort.length)
  lengths, counts = np.unique(
    np.searchsorted(buckets, cohort.length), return_counts=True
  )
  tested = np.mean([split.val.mean() for split in splits])
  share = 1 if parallel.platform() == 'cpu' else parallel.num_devices()
  spent = []
  for stage in stages:
    # The devices of a CPU share its cores.
    runs = stage.runs if share == 1 else stage.on_device
    epoch = 0.0
    for bucket, count in zip(lengths, counts, strict=True):
      macs = cost.multiply_adds(stage.network, buckets[bucket], cohort.width)
      passes = runs * (_BACKWARD + tested)
      epoch += count * (
        2 * macs * passes / (products * _EFFICIENCY)
        + runs * stage.parameters * 4 * _COPIES_MOVED / copies
        + _LAUNCH
      )
    spent.append(epoch * stage.recipe.epochs)
  return spent


def _stages(
  cohort: Cohort, settings: Settings, folds: Sequence[int]
) -> list[_Stage]:
  design = settings.design(len(cohort.classes), cohort.width)
  networks, parameters = design.networks(), design.like()
  spec = SPECS[settings.model]
  plan = {inference.MODEL: (spec, len(folds))}
  if spec.chooser:
    plan[inference.CHOOSER] = SPECS[spec.chooser], len(set(folds))
  return [
    _Stage(
      name,
      plan[name][0],
      networks[name],
      sum(leaf.size for leaf in jax.tree.leaves(parameters[name])),
      plan[name][1],
      recipe,
    )
    for name, recipe in settings.recipes.items()
  ]


def _speeds() -> tuple[float, float]:
  """Measures FLOP/s of a product and bytes/s of a copy, in a fifth second."""
  side = 1024
  square = jnp.ones((side, side))
  long = jnp.ones(2**23)
  product = _best(jax.jit(lambda x: x @ x), square)
  copy = _best(jax.jit(lambda x: x + 1), long)
  return 2 * side**3 / product, 2 * long.nbytes / copy


def _best(f, x) -> float:
  times = []
  for _ in range(4):
    start = time.perf_counter()
    jax.block_until_ready(f(x))
    times.append(time.perf_counter() - start)
  return min(times)


def _size(count: int) -> str:
  if count < 2**30:
    return f'{count / 2**20:.0f} MiB'
  return f'{count / 2**30:.1f} GiB'


def _clock(spent: float) -> str:
  if spent < 90:
    return f'{spent:.0f} s' if spent >= 1 else '1 s'
  return f'{spent / 60:.0f} min' if spent < 5400 else f'{spent / 3600:.1f} h'
