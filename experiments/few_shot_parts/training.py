"""Trains the students of a few-shot study, several in one program."""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import math
import pathlib
import shutil

import jax
import numpy as np
import safetensors.numpy

from data import atomic
from data.labelled_tiles import LabelledTiles
from experiments.few_shot_parts import scores, settings
from experiments.few_shot_parts.cohort import Cohort, pixels
from experiments.few_shot_parts.progress import Progress
from experiments.few_shot_parts.settings import Setting
from kmil_jax import checkpoint, distill_fit, parallel, port, port_distillation
from kmil_jax.distill_program import Program
from kmil_jax.distill_runs import NORMAL
from kmil_jax.distill_train import Distiller, Variables
from kmil_jax.models.reverse_distillation import map_shapes

MODEL = 'model.safetensors'  # By the names of the released code.
TEACHER = 'teacher.safetensors'  # By torchvision's names.
_SHARE = 0.6  # Of a device's memory that runs may fill.
# Copies of the weights that a run holds: Adam's two moments, the best epoch,
# the gradient.
_COPIES = 5
_CALIBRATION = 96  # Patches that a random teacher is calibrated on.
_CHUNK = 1024  # Test patches in memory at a time.


@dataclasses.dataclass(frozen=True)
class Options:
  """How students are trained; see the flags of `experiments.few_shot`."""

  width: int
  shortcut: int
  per: str
  epochs: int
  learning_rate: float
  batch: int
  seed: int  # the first
  seeds: int
  weights: str | None
  precision: str
  tensorboard: bool

  @property
  def all_seeds(self) -> list[int]:
    return list(range(self.seed, self.seed + self.seeds))


@dataclasses.dataclass(frozen=True)
class Job:
  """One training: a setting with a seed."""

  setting: Setting
  seed: int

  @property
  def name(self) -> str:
    return f'{self.setting.name}_s{self.seed}'

  def folder(self, root: pathlib.Path) -> pathlib.Path:
    """Returns where its model, scores.csv and metrics.jsonl are."""
    return root / 'runs' / self.name


def train(
  folder: pathlib.Path,
  cohort: Cohort,
  study: Sequence[Setting],
  options: Options,
) -> None:
  """Trains what is not trained yet, and scores validation and test patches.

  As many trainings as fit in memory are runs of one program; what it makes of
  each does not depend on the others.

  Args:
    folder: of the results; `Job.folder` of every training is written.
    cohort: patches.
    study: settings, each of which is trained with every seed.
    options: of all trainings.
  """
  teacher = open_teacher(folder, cohort, options)
  distiller = Distiller(
    options.width, options.shortcut, precision=options.precision
  )
  jobs = [Job(setting, s) for s in options.all_seeds for setting in study]
  images: dict[str, np.ndarray] = {}
  for group in _groups(jobs, distiller, options):
    done = [(job.folder(folder) / scores.FILE).exists() for job in group]
    if parallel.agree(all(done)):
      continue
    for part in ('train', 'val'):
      if part not in images:
        images[part] = pixels(cohort.parts[part])
    _train_group(folder, cohort, group, distiller, teacher, images, options)


def open_teacher(
  folder: pathlib.Path, cohort: Cohort, options: Options
) -> Variables:
  """Returns the teacher: of a file, or a random one that the folder keeps.

  Raises:
    port.PortError: if the weights are no WideResNet-50-2's, or of another
      width than asked for.
  """
  if options.weights:
    variables = port_distillation.teacher(port.load_state_dict(options.weights))
    width = variables['params']['conv1']['kernel'].shape[-1]
    if width != options.width:
      raise port.PortError(
        f'{options.weights} has the width {width}, not --width={options.width}'
      )
    return variables
  path = folder / TEACHER
  if parallel.is_first():
    print(
      'WARNING: THE TEACHER IS RANDOM, calibrated on normal training patches:'
      ' it knows no images. Give --weights=<wide_resnet50_2 of torchvision> for'
      ' the one of the paper.',
      flush=True,
    )
    if not path.exists():
      tiles = cohort.parts['train']
      # RD knows no tumour, so its teacher must not.
      normal = np.flatnonzero(tiles.label == NORMAL)
      rows = np.random.default_rng(0).permutation(normal)[:_CALIBRATION]
      drawn = port_distillation.random_teacher(
        tiles.load(np.sort(rows)), seed=0, width=options.width
      )
      _save(path, port.unfill(drawn, port.entries_of(drawn, port.RESNET)))
  parallel.wait_for_all('teacher')
  return port_distillation.teacher(port.load_state_dict(path))


def load_student(folder: pathlib.Path, job: Job) -> Variables:
  """Returns the variables of a trained student."""
  path = job.folder(folder) / MODEL
  return port_distillation.student(port.load_state_dict(path))


def _groups(
  jobs: Sequence[Job], distiller: Distiller, options: Options
) -> list[list[Job]]:
  """Deals jobs of as many epochs into groups of as many as devices hold."""
  shapes = jax.eval_shape(
    distiller.student.init, jax.random.key(0), map_shapes(options.width)
  )
  weights = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  one = 4 * _COPIES * weights
  held = int(_SHARE * parallel.memory_bytes() / one) * parallel.num_devices()
  size = max(held, parallel.num_devices())
  groups = []
  for longer in sorted({job.setting.longer for job in jobs}):
    some = [job for job in jobs if job.setting.longer == longer]
    groups += [some[i : i + size] for i in range(0, len(some), size)]
  return groups


def _train_group(
  folder: pathlib.Path,
  cohort: Cohort,
  group: Sequence[Job],
  distiller: Distiller,
  teacher: Variables,
  images: dict[str, np.ndarray],
  options: Options,
) -> None:
  label = cohort.parts['train'].label
  runs = [
    settings.run(
      job.setting,
      job.seed,
      label,
      per=options.per,
      learning_rate=options.learning_rate,
    )
    for job in group
  ]
  epochs = options.epochs * group[0].setting.longer
  names = '\n'.join(job.name for job in group)
  digest = hashlib.sha256(names.encode()).hexdigest()[:8]
  saved = folder / 'checkpoints' / digest
  checkpoints = checkpoint.Checkpoints(saved)
  progress = Progress(
    [job.folder(folder) for job in group], epochs, options.tensorboard
  )
  try:
    fitted = distill_fit.fit(
      distiller,
      teacher,
      runs,
      image=images['train'],
      label=label,
      val_image=images['val'],
      val_label=cohort.parts['val'].label,
      epochs=epochs,
      batch=options.batch,
      checkpoints=checkpoints,
      report=progress.report,
    )
  finally:
    progress.close()
    checkpoints.close()
  program = Program(distiller, len(group))
  students = program.put(fitted.variables)
  held = parallel.replicate(teacher)
  table: dict[str, list[np.ndarray]] = {part: [] for part in scores.PARTS}
  for part in scores.PARTS:
    for image in _chunks(cohort.parts[part]):
      told = program.score(students, held, image, batch=options.batch)
      table[part].append(np.stack(told))
  if parallel.is_first():
    for row, job in enumerate(group):
      model = jax.tree.map(lambda x: x[row], fitted.variables)  # noqa: B023
      _save(
        job.folder(folder) / MODEL, port_distillation.student_state_dict(model)
      )
      found = {
        part: np.concatenate(parts, -1)[:, row] for part, parts in table.items()
      }
      scores.write(job.folder(folder), cohort, found)
    shutil.rmtree(saved, ignore_errors=True)
  parallel.wait_for_all('scores')


def _chunks(tiles: LabelledTiles) -> Iterator[np.ndarray]:
  """Yields the pixels of tiles, some at a time."""
  for start in range(0, len(tiles), _CHUNK):
    rows = np.arange(start, min(start + _CHUNK, len(tiles)))
    yield pixels(tiles.take(rows))


def _save(path: pathlib.Path, state: dict[str, np.ndarray]) -> None:
  state = {name: np.ascontiguousarray(x) for name, x in state.items()}
  with atomic.replacing(path) as part:
    part.write_bytes(safetensors.numpy.save(state))
