"""What a run of reverse distillation trains on, in which order."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from kmil_jax import distill_losses

# Labels of patches.
NORMAL, TUMOUR = 1, 0


class DistillError(ValueError):
  """A training that cannot be; says what to change."""


@dataclasses.dataclass(frozen=True)
class Run:
  """What one run trains on, and how; defaults are those of He and Li (FW-RD).

  With `alpha` 0 the loss is that of reverse distillation (Deng and Li, CVPR
  2022), for normal patches alone.
  """

  patches: np.ndarray  # int [n], rows of the training patches
  seed: int  # of the weights and the order
  alpha: float = 0.1  # of the focal loss; 1 - alpha weighs tumour
  gamma: float = 2.0
  per: str = 'location'  # see `distill_losses.PER`
  learning_rate: float = 1e-5


def check(runs: Sequence[Run], label: np.ndarray) -> None:
  """Checks that runs can be.

  Args:
    runs: at least one.
    label: of all training patches, [n].

  Raises:
    DistillError: naming the run that has no patches, one twice or some that
      are not there, a loss that is none, or tumour patches with an alpha of 0.
  """
  for number, run in enumerate(runs):
    _check(run, label, f'run {number}')


def orders(
  runs: Sequence[Run], count: int, *, batch: int, epoch: int
) -> np.ndarray:
  """Orders the patches of an epoch; a pure function of seeds and epoch.

  Every patch draws its place whether a run trains on it or not: runs of one
  seed see the patches that they share in the same order. Patches of the
  epoch's start complete its last batch.

  Args:
    runs: R.
    count: training patches of all runs.
    batch: patches in a step, B.
    epoch: from 0.

  Returns:
    int32 [R, S, B]; steps after a run's last one hold -1.
  """
  steps = max(-(-len(run.patches) // batch) for run in runs)
  table = np.full((len(runs), steps * batch), -1, np.int32)
  for row, run in zip(table, runs, strict=True):
    order = np.random.default_rng([run.seed, epoch]).permutation(count)
    order = order[np.isin(order, run.patches)]
    size = -(-len(order) // batch) * batch
    row[:size] = np.resize(order, size)
  return table.reshape(len(runs), steps, batch)


def _check(run: Run, label: np.ndarray, name: str) -> None:
  patches = np.asarray(run.patches)
  if not len(patches):
    raise DistillError(f'{name} has no patches to train on')
  if patches.min() < 0 or patches.max() >= len(label):
    raise DistillError(
      f'{name} trains on rows {patches.min()} to {patches.max()} of'
      f' {len(label)} patches'
    )
  if len(np.unique(patches)) < len(patches):
    raise DistillError(f'{name} names a patch twice')
  if run.per not in distill_losses.PER:
    raise DistillError(
      f'{name}: similarities are per {" or ".join(distill_losses.PER)}, not'
      f' per {run.per!r}'
    )
  if not 0 <= run.alpha <= 1 or run.gamma < 0:
    raise DistillError(
      f'{name}: alpha {run.alpha} must be from 0 to 1, gamma {run.gamma} not'
      ' negative'
    )
  tumour = int((label[patches] == TUMOUR).sum())
  if run.alpha == 0 and tumour:
    raise DistillError(
      f'{name}: alpha 0 is for normal patches alone, and {tumour} of its'
      ' patches are tumour'
    )
