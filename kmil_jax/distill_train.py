"""Training students of one teacher: R runs in one program, each on its own.

A run is a setting with a seed: the patches it trains on, and its loss. It has
batches of its own, as its batch norms must see its own patches alone, and so
its own pass through the teacher, a sixth of a step's arithmetic. The runs
spread over devices; those of one device take turns, step by step, in the
program that all of them share. With the kernels of several runs at once,
convolutions would be grouped ones, and inside a loop of the program their
gradients take CPUs ten times longer; one run of the paper's width fills a GPU.
"""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kmil_jax import anomaly, distill_losses, optim
from kmil_jax.distill_runs import Run, check, orders
from kmil_jax.encoder import PRECISIONS
from kmil_jax.models import cpu
from kmil_jax.models.reverse_distillation import Student, Teacher, map_shapes

Variables = dict[str, Any]  # 'params' and 'batch_stats'
# Of both papers.
BETAS = (0.5, 0.999)


@chex.dataclass(frozen=True)
class DistillState:
  """R runs between two steps."""

  params: Any  # [R, ...]
  batch_stats: Any  # [R, ...]
  opt_state: Any  # [R, ...]
  best: Any  # [R, ...] variables of the epoch that validation chose
  alpha: chex.Array  # [R] float32
  gamma: chex.Array  # [R] float32
  per_location: chex.Array  # [R] bool
  learning_rate: chex.Array  # [R] float32
  index: chex.Array  # [R, B] int32, patches of the next step; all -1 for none
  loss: chex.Array  # [R] float32, sum of the steps' mean losses in this epoch

  @property
  def variables(self) -> Variables:
    return {'params': self.params, 'batch_stats': self.batch_stats}


@chex.dataclass(frozen=True)
class Patches:
  """What all runs share."""

  teacher: Any  # variables of `Teacher`
  image: chex.Array  # [n, S, S, 3] uint8
  label: chex.Array  # [n] int32, 1 normal, 0 tumour


class Distiller:
  """The pure functions that train students.

  Attributes:
    teacher: Flax module.
    student: Flax module.

  Args:
    width: of both networks; 64 in the paper.
    shortcut: 1 is RD's, 3 that of FW-RD's released code; see `Student`.
    precision: of the computation, a key of `encoder.PRECISIONS`.
  """

  def __init__(
    self, width: int = 64, shortcut: int = 3, *, precision: str = 'float32'
  ):
    dtype = PRECISIONS[precision]
    self.teacher = Teacher(width, dtype)
    self.student = Student(width, shortcut, dtype)
    self._tx = optim.adam(BETAS, weight_decay=0.0)

    def draw(seed):
      maps = [jnp.zeros(m.shape, m.dtype) for m in map_shapes(width)]
      return self.student.init(jax.random.key(seed), maps)

    self._draw = jax.jit(draw, compiler_options=cpu.compiler_options())

  def draw(self, seed: np.ndarray) -> Variables:
    """Draws students, one of each seed [R]; NumPy leaves [R, ...]."""
    drawn = [jax.device_get(self._draw(np.uint32(s))) for s in seed]
    return jax.tree.map(lambda *x: np.stack(x), *drawn)

  def init(
    self,
    variables: Variables,
    runs: Sequence[Run],
    label: np.ndarray,
    *,
    batch: int,
  ) -> DistillState:
    """Returns R runs before their first step, NumPy.

    Args:
      variables: to start from, [R, ...].
      runs: R, at least one.
      label: of the training patches, [n].
      batch: patches in a step.

    Raises:
      DistillError: see `distill_runs.check`.
    """
    check(runs, label)
    column = lambda name: np.float32([getattr(run, name) for run in runs])
    return DistillState(
      **variables,
      # Adam's moments and counts begin at 0.
      opt_state=jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(jax.vmap(self._tx.init), variables['params']),
      ),
      best=variables,
      alpha=column('alpha'),
      gamma=column('gamma'),
      per_location=np.array([run.per == 'location' for run in runs]),
      learning_rate=column('learning_rate'),
      index=orders(runs, len(label), batch=batch, epoch=0)[:, 0],
      loss=np.zeros(len(runs), np.float32),
    )

  def step(self, run: DistillState, patches: Patches) -> DistillState:
    """Takes the next step of one run, if there is one.

    Args:
      run: without the axis of runs.
      patches: of all runs.
    """
    image, label = patches.image[run.index], patches.label[run.index]
    known = self.teacher.apply(patches.teacher, anomaly.normalise(image))

    def loss_fn(params):
      guess, mutated = self.student.apply(
        {'params': params, 'batch_stats': run.batch_stats},
        known,
        train=True,
        mutable=['batch_stats'],
      )
      by_map, by_location = (
        distill_losses.focal(known, guess, label, run.alpha, run.gamma, per=per)
        for per in ('map', 'location')
      )
      loss = jnp.where(run.per_location, by_location, by_map)
      return loss.mean(), mutated['batch_stats']

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(run.params)
    updates, opt_state = self._tx.update(
      grads, run.opt_state, run.params, learning_rate=run.learning_rate
    )
    new = run.replace(
      params=optax.apply_updates(run.params, updates),
      batch_stats=stats,
      opt_state=opt_state,
      loss=run.loss + loss,
    )
    real = run.index[0] >= 0
    return jax.tree.map(lambda new, old: jnp.where(real, new, old), new, run)

  def score(
    self, variables: Variables, teacher: Variables, image: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Scores patches by one run.

    Args:
      variables: of the student.
      teacher: of the teacher.
      image: [T, S, S, 3] uint8.

    Returns:
      Mean and maximum of the anomaly maps, [T] each.
    """
    known = self.teacher.apply(teacher, anomaly.normalise(image))
    guess = self.student.apply(variables, known)
    return anomaly.scores(anomaly.maps(known, guess, image.shape[1]))


def keep_best(state: DistillState, improved: jax.Array) -> DistillState:
  """Copies the variables of the runs in `improved` [R] to `best`."""

  def choose(new, old):
    shape = improved.shape + (1,) * (new.ndim - improved.ndim)
    return jnp.where(improved.reshape(shape), new, old)

  return state.replace(best=jax.tree.map(choose, state.variables, state.best))
