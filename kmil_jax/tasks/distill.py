"""Students of one teacher: each run has patches, a loss and batches of its own.

Batch norms must see a run's own patches alone, so every run passes its own
batch through the teacher, a sixth of a step's arithmetic. As many runs as there
are devices train at once; the others take turns with them.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import anomaly, augment, losses, metrics, optim, parallel
from kmil_jax.models import network
from kmil_jax.models.reverse_distillation import Student, Teacher, map_shapes
from kmil_jax.parallel import Layout
from kmil_jax.programs import Chunk, Evaluation, Program
from kmil_jax.train import Aux, Task, Variables
from kmil_jax.types import PatchRecipe, Recipe

NORMAL, TUMOUR = 1, 0  # Labels of patches.
_BETAS = (0.5, 0.999)  # Of both papers.


class DistillError(ValueError):
  """A training that cannot be; its message names what to change."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """What one run trains on, and how; defaults are those of He and Li (FW-RD).

  With `alpha` 0 the loss is that of reverse distillation (Deng and Li, CVPR
  2022), for normal patches alone.
  """

  patches: np.ndarray  # int [n], rows of the training patches
  seed: int  # of the weights and the order
  alpha: float = 0.1  # of the focal loss; 1 - alpha weighs tumour
  gamma: float = 2.0


@chex.dataclass(frozen=True)
class StudentRuns:
  """What tells R runs apart."""

  seed: chex.Array  # [R] uint32
  row: chex.Array  # [R] int32, place of its batch in a step of its group
  alpha: chex.Array  # [R] float32
  gamma: chex.Array  # [R] float32


@chex.dataclass(frozen=True)
class Patches:
  """What all runs share."""

  teacher: Any  # variables of `Teacher`
  image: chex.Array  # [n, S, S, 3] uint8
  label: chex.Array  # [n] int32, 1 normal, 0 tumour


class DistillTask(Task):
  """Students that mirror a teacher.

  Attributes:
    teacher: Flax module.
    student: Flax module.

  Args:
    width: of both networks; 64 in the paper.
    shortcut: 1 is RD's, 3 that of FW-RD's released code; see `Student`.
    per: what similarities are of, one of `losses.PER`.
    precision: of the computation, see `network.build`.
  """

  def __init__(
    self,
    width: int = 64,
    shortcut: int = 3,
    *,
    per: str = 'location',
    precision: str = 'float32',
  ):
    make = functools.partial(Student, width, shortcut)
    self.teacher = network.build(functools.partial(Teacher, width), precision)
    self.student = network.build(make, precision)
    self.tx = optim.make(Recipe(betas=_BETAS, weight_decay=0.0))
    self._width, self._per = width, per

  def init(self, run: StudentRuns) -> Variables:
    maps = [jnp.zeros(m.shape, m.dtype) for m in map_shapes(self._width)]
    return self.student.init(jax.random.key(run.seed), maps)

  def key(self, run: StudentRuns, epoch: Any, step: Any) -> jax.Array:
    return jax.random.key(run.seed)  # Nothing is random in a step.

  def batch(
    self, store: Patches, item: Any, length: int | None
  ) -> tuple[Patches, Any]:
    """Pairs the store with patches of a step, int [devices, B], -1 for none.

    To evaluate, `item` is images [B, S, S, 3].
    """
    return store, item

  def weight(self, batch: Any, run: StudentRuns) -> jax.Array:
    return (batch[1][run.row] >= 0).astype(jnp.float32)

  def loss(
    self, variables: Variables, batch: Any, run: StudentRuns, key: jax.Array
  ) -> tuple[jax.Array, Aux]:
    store, table = batch
    rows = table[run.row]
    image, label = store.image[rows], store.label[rows]
    f = self.teacher.apply(store.teacher, augment.normalise(image))
    g, mutated = self.student.apply(
      variables, f, train=True, mutable=['batch_stats']
    )
    loss = losses.focal(f, g, label, run.alpha, run.gamma, per=self._per)
    no_classes = jnp.zeros(len(label), bool)
    return loss, Aux(hits=no_classes, stats=mutated['batch_stats'])

  def predict(
    self, variables: Variables, batch: Any, run: StudentRuns
  ) -> dict[str, jax.Array]:
    """Returns `mean`, a patch's score, and `max` of anomaly maps, [B] each."""
    store, image = batch
    f = self.teacher.apply(store.teacher, augment.normalise(image))
    g = self.student.apply(variables, f)
    maps = anomaly.maps(f, g, image.shape[1])
    return {'mean': maps.mean((1, 2)), 'max': maps.max((1, 2))}


def recipe(learning_rate: float, epochs: int, size: int) -> PatchRecipe:
  """Returns the recipe of students: which epoch they keep, and when.

  It is that of the highest validation accuracy at `patch_threshold`, of equal
  ones that of the highest AUROC, then the later.
  """
  return PatchRecipe(
    learning_rate=learning_rate,
    betas=_BETAS,
    epochs=epochs,
    batch=size,
    schedule='constant',
    select='accuracy_then_auroc',
  )


def runs_of(settings: Sequence[Setting]) -> StudentRuns:
  """Returns the constants of R runs.

  Raises:
    DistillError: if one has no patches, as where there are no normal ones.
  """
  if not all(len(setting.patches) for setting in settings):
    raise DistillError('A training has no patches. Give normal ones, too.')
  column = lambda name, kind: np.array([vars(s)[name] for s in settings], kind)
  return StudentRuns(
    seed=np.array([s.seed % 2**32 for s in settings], np.uint32),
    row=np.arange(len(settings), dtype=np.int32) % parallel.num_devices(),
    alpha=column('alpha', np.float32),
    gamma=column('gamma', np.float32),
  )


def orders(
  settings: Sequence[Setting], count: int, *, size: int, epoch: int
) -> np.ndarray:
  """Orders the patches of an epoch; a pure function of seeds and epoch.

  Every patch draws its place whether a run trains on it or not: runs of one
  seed see the patches that they share in the same order. Patches of the
  epoch's start complete its last batch.

  Args:
    settings: R.
    count: training patches of all runs.
    size: patches in a step, B.
    epoch: from 0.

  Returns:
    int32 [S, R, B]; steps after a run's last one hold -1.
  """
  steps = max(-(-len(setting.patches) // size) for setting in settings)
  table = np.full((len(settings), steps * size), -1, np.int32)
  for row, setting in zip(table, settings, strict=True):
    order = np.random.default_rng([setting.seed, epoch]).permutation(count)
    order = order[np.isin(order, setting.patches)]
    length = -(-len(order) // size) * size
    row[:length] = np.resize(order, length)
  return table.reshape(len(settings), steps, size).swapaxes(0, 1)


@dataclasses.dataclass(frozen=True)
class PatchLoader:
  """Patches that stay on the device; see `programs.Loader`.

  Examples to evaluate are images of their own, uint8 [T, S, S, 3].

  Attributes:
    settings: R.
    store: NumPy.
    size: patches in a step.
  """

  settings: Sequence[Setting]
  store: Patches
  size: int
  lengths = (None,)

  def train(
    self, epoch: int, runs: np.ndarray, layout: Layout
  ) -> Iterator[Chunk]:
    count = len(self.store.label)
    table = orders(self.settings, count, size=self.size, epoch=epoch)[:, runs]
    idle = parallel.num_devices() - len(runs)
    table = np.pad(table, ((0, 0), (0, idle), (0, 0)), constant_values=-1)
    # The runs of a group end together.
    for step in table[(table >= 0).any((1, 2))]:
      yield np.zeros(1, np.int32), step[None]

  def evaluate(
    self, examples: np.ndarray, runs: np.ndarray, layout: Layout
  ) -> Iterator[Evaluation]:
    (run_of,) = parallel.deal(layout.owner(np.arange(len(runs)))[0], runs)
    local = parallel.num_local_devices()
    zeros = np.zeros((local, 1), np.int32)
    for first in range(0, len(examples), self.size):
      # The last batch is completed, to be of the shape that is compiled.
      rows = np.arange(first, first + self.size)
      index = np.where(rows < len(examples), rows, -1)
      image = examples.take(rows, 0, mode='wrap')
      item = np.broadcast_to(image, (local, 1, *image.shape))
      of_devices = np.broadcast_to(index, (*run_of.shape, self.size))
      yield (zeros, item, zeros), run_of[..., None], of_devices


def program(
  task: DistillTask, settings: Sequence[Setting], patches: Patches, size: int
) -> Program:
  """Returns epochs of the runs of settings over patches, `size` in a step."""
  loader, at_once = PatchLoader(settings, patches, size), parallel.num_devices()
  return Program(task, len(settings), loader, at_once=at_once)


def validation(label: np.ndarray) -> Any:
  """Returns how `fit` summarises the scores of patches of `label` [T].

  Every run has a threshold of its own, see `patch_threshold`; the loss is the
  mean score, which stops a run where it is not finite.

  Raises:
    DistillError: unless there are patches of both kinds.
  """
  if len(np.unique(label)) < 2:
    raise DistillError('Validation needs normal patches and tumour patches.')

  def validate(predictions, num_runs):
    score = predictions['mean'].reshape(num_runs, len(label))
    ranked = np.nan_to_num(score)
    threshold = np.array([patch_threshold(label, row) for row in ranked])
    called = ranked >= threshold[:, None]
    return {
      'f1_macro': np.full(num_runs, np.nan),
      'accuracy': (called == (label == TUMOUR)).mean(1),
      'auroc': np.array(
        [metrics.auroc(label == TUMOUR, row) for row in ranked]
      ),
      'threshold': threshold,
      'loss': score.mean(1),
    }

  return validate


def patch_threshold(label: np.ndarray, score: np.ndarray) -> float:
  """Score from which on to call patches tumour: that of the highest F1.

  Of thresholds of equal F1 it is the highest. He and Li, released code, where
  it is chosen on the patches that are then judged; choose it on validation.

  Args:
    label: 1 normal, 0 tumour, [T], of both kinds.
    score: [T].
  """
  values = np.unique(score)
  tumour = np.sort(score[label == TUMOUR])
  called = len(score) - np.searchsorted(np.sort(score), values)
  hits = len(tumour) - np.searchsorted(tumour, values)
  f1 = 2 * hits / (called + len(tumour))
  return float(values[np.flatnonzero(f1 == f1.max())[-1]])
