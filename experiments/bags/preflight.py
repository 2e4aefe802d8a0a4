"""What scripts on bags begin with, and --check: what training would take."""

from collections.abc import Hashable, Iterator, Sequence
import datetime
import pathlib
import sys
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from data.files import counted, memory
from data.splits import PARTS, Split
from experiments.bags import cohort as cohorts
from experiments.bags.cohort import Cohort, Material
from experiments.bags.options import Data, External, Folds
from experiments.run import start
from experiments.run.start import Check
from kmil_jax import cost, parallel
from kmil_jax.folds import Settings
from kmil_jax.inference import MODEL
from kmil_jax.models import SPECS, cpu
from kmil_jax.models.network import dtype_of
from kmil_jax.tasks.bags import bucket_lengths

# Of a step: parameters, gradients and Adam's two moments are read, and all but
# the gradients written; the best parameters are kept beside them.
_COPIES_MOVED, _COPIES_HELD = 7, 5
_BACKWARD = 3  # A step takes three times the products of a forward pass.
_EFFICIENCY = 0.5  # Of the machine's speed, which training reaches.
_HIDDEN = 1024  # Numbers that a model holds for an instance, besides features.
_LAUNCH = 1e-4  # Seconds that a step takes however small it is.


def begin(path: pathlib.Path, options: Sequence[Any], *plan: Any) -> Material:
  """Prints options and loads what they name; with --check the script ends here.

  Args:
    path: of the results folder.
    options: of the script, as they were given.
    *plan: what `check` takes besides.

  Raises:
    CohortError: naming all problems, if there are any.
    OptionError: if --labels cannot be used.
  """
  of = {cls: one for one in options for cls in type(one).__mro__}
  start.show_options(options)
  places = of[start.Output].seed, of[start.Machine].cache_dir
  material = cohorts.load(of[Data], of[Folds], *places, of.get(External))
  if of[Check].check:
    material.findings.add_folder(path)
    material.findings.add_absent(options)
    check(material, *plan)
  material.check()
  return material


def check(
  material: Material,
  settings: Settings | None = None,
  store: str = 'auto',
  runs: Sequence[Hashable] = (),
) -> NoReturn:
  """Lists all problems of a cohort, estimates its training, ends the script.

  Args:
    material: as far as it fits together.
    settings: of the training; None of one that takes no time.
    store: where features are, see `Cohort.store_of`.
    runs: of every run what shares a first stage, as its fold.

  Raises:
    SystemExit: always; with 1 if there are problems.
  """
  if not parallel.is_first():
    sys.exit(0)
  findings, cohort = material.findings, material.cohort
  for one in filter(None, (cohort, material.second)):
    if one is material.second:
      print('second cohort:')
    print('\n'.join(describe(one)))
  # Of slides without features nobody knows in which fold they count.
  splits = material.splits
  if cohort and splits and len(splits[0].test) == len(cohort.label):
    print('\n'.join(describe_folds(cohort, splits)))
    if settings and not findings.problems:
      for line in estimate(cohort, splits, settings, store, runs):
        print(line)
  findings.close()


def describe(cohort: Cohort) -> Iterator[str]:
  """Yields lines on features, slides, classes and the sizes of bags."""
  length = cohort.length
  counts = np.bincount(cohort.label, minlength=len(cohort.classes))
  classes = zip(cohort.classes, counts, strict=True)
  yield ', '.join([
    f'features: {cohort.source.path}',
    *(f'{name} {value}' for name, value in sorted(cohort.attributes.items())),
  ])  # fmt: skip
  yield (
    f'{counted(len(cohort.label), "slide")} of'
    f' {counted(len(set(cohort.manifest.case)), "case")}: '
    + ', '.join(f'{name} {count}' for name, count in classes)
  )
  yield (
    f'{length.min()} to {length.max()} instances per slide, half of the slides'
    f' {np.median(length):.0f} or fewer; {cohort.width} features each,'
    f' {_size(cohort.resident_bytes("float32"))}'
  )


def describe_folds(cohort: Cohort, splits: Sequence[Split]) -> Iterator[str]:
  """Yields the slides of each fold, by part and class."""
  for i, split in enumerate(splits):
    parts = [getattr(split, part) for part in PARTS]
    sizes = ', '.join(
      f'{rows.sum()} {part}' for rows, part in zip(parts, PARTS, strict=True)
    )
    by_class = ', '.join(
      f'{name} ' + '/'.join(str((cohort.label[p] == c).sum()) for p in parts)
      for c, name in enumerate(cohort.classes)
    )
    yield f'fold {i}: {sizes} slides; {by_class}'


def estimate(
  cohort: Cohort,
  splits: Sequence[Split],
  settings: Settings,
  store: str,
  runs: Sequence[Hashable],
) -> Iterator[str]:
  """Yields lines on padding, memory and time of a training.

  A device holds the features, some copies of the parameters of its runs and the
  activations of the longest bag. Of a step on one bag, it takes for its runs
  the products of forward and backward pass at half its speed, the parameters
  and moments at the speed of a copy, and a tenth of a millisecond. No run is
  taken to stop early.

  Args:
    cohort: to train on.
    splits: of all folds.
    settings: of the training.
    store: see `Cohort.store_of`.
    runs: see `check`.
  """
  lengths = bucket_lengths(cohort.length)
  bucket = np.searchsorted(lengths, cohort.length)
  waste = 1 - cohort.length.sum() / np.array(lengths)[bucket].sum()
  yield f'{len(lengths)} padded lengths, {waste:.0%} padding'
  where = cohort.store_of(settings.precision, store)
  devices, batch = parallel.num_devices(), settings.recipe.batch
  bags = max(1, batch // devices)
  activations = bags * (cohort.width + _HIDDEN) * _BACKWARD * 4
  stored = cohort.resident_bytes(settings.precision)
  yield (
    f'features are {where}{"" if store == "auto" else ", as --store asks"}: all'
    f' take {_size(stored)}, a share of {devices} devices'
    f' {_size(stored // devices)}, and {_size(cohorts.room())} of a device are'
    ' for features'
  )
  stored = stored // devices if where == 'spread' else stored
  if where == 'streamed':
    item = dtype_of(settings.precision).itemsize
    stored = bags * lengths[-1] * cohort.width * item
  products, copies = _speeds()
  counts = np.bincount(bucket)
  passes = _BACKWARD + np.mean([split.val.mean() for split in splits])
  held, times = [], []
  design = settings.design(len(cohort.classes), cohort.width)
  networks, shapes = design.networks(), design.like()
  spec = SPECS[settings.model]
  for name, recipe in settings.recipes.items():
    count = len(runs if name == MODEL else set(runs))
    leaves = jax.tree.leaves(shapes[name])
    parameters = 4 * sum(leaf.size for leaf in leaves)
    on_device = -(-count // devices) if batch == 1 else count
    at_once = max(
      n * (1 if cpu.one_by_one(spec, on_device, n) else on_device)
      for n in lengths
    )
    held.append(on_device * parameters * _COPIES_HELD + at_once * activations)
    # The devices of a CPU share its cores.
    here = count if parallel.platform() == 'cpu' else on_device
    epoch = sum(
      steps
      * (
        2
        * cost.multiply_adds(networks[name], n, cohort.width)
        * here
        * passes
        / (products * _EFFICIENCY)
        + here * parameters * _COPIES_MOVED / copies
        + _LAUNCH
      )
      for n, steps in zip(lengths, counts, strict=True)
    )
    epochs = recipe.epochs
    spent = datetime.timedelta(seconds=round(epoch * epochs))
    times.append(f'{name} {spent} ({counted(epochs, "epoch")})')
  names = {'resident': 'on the device', 'streamed': 'streamed from disk'}
  yield (
    f'memory of a device, features {names.get(where, where)}: about'
    f' {_size(stored + max(held))} of'
    f' {_size(parallel.memory_bytes(memory()))}; programs and libraries come on'
    ' top'
  )
  yield (
    f'estimated time of {counted(len(runs), "run")} (h:mm:ss): about'
    f' {" + ".join(times)}, within a factor of 3; compilation is not included'
  )


def _speeds() -> tuple[float, float]:
  """Measures FLOP/s of a product and bytes/s of a copy."""
  side = 1024
  square, long = jnp.ones((side, side)), jnp.ones(2**23)
  multiply, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
  product = cost.median_seconds(lambda: multiply(square))
  return (
    2 * side**3 / product,
    2 * long.nbytes / cost.median_seconds(lambda: copy(long)),
  )


def _size(count: int) -> str:
  if count < 2**30:
    return f'{count / 2**20:.0f} MiB'
  return f'{count / 2**30:.1f} GiB'
