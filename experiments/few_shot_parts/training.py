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

from data.files import replacing
from data.labelled_tiles import LabelledTiles
from experiments.encoding import encoder
from experiments.few_shot_parts import scores, settings
from experiments.few_shot_parts.cohort import Cohort, pixels
from experiments.few_shot_parts.settings import Setting
from experiments.run import progress
from kmil_jax import anomaly, checkpoint, loop, parallel, port
from kmil_jax.models import cpu
from kmil_jax.models.reverse_distillation import Teacher, map_shapes
from kmil_jax.tasks import distill
from kmil_jax.tasks.distill import NORMAL, DistillTask, Patches
from kmil_jax.train import Variables, draw

# Of metrics.jsonl, and of the training's history.
COLUMNS = {
  'train_loss': 'train_loss',
  'val_accuracy': 'val_accuracy',
  'val_auroc': 'val_auroc',
  'threshold': 'val_threshold',
  'best_epoch': 'best_epoch',
}
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

  Raises:
    FloatingPointError: if a training diverged before an epoch could be kept;
      the others are finished first.
  """
  teacher = open_teacher(folder, cohort, options)
  task = DistillTask(
    options.width,
    options.shortcut,
    per=options.per,
    precision=options.precision,
  )
  all_jobs = jobs(study, options)
  images: dict[str, np.ndarray] = {}
  for group in _groups(all_jobs, task, options):
    done = [(job.folder(folder) / scores.FILE).exists() for job in group]
    if parallel.agree(all(done)):
      continue
    for part in ('train', 'val'):
      if part not in images:
        images[part] = pixels(cohort.parts[part])
    _train_group(folder, cohort, group, task, teacher, images, options)
  done = [(job.folder(folder) / scores.FILE).exists() for job in all_jobs]
  if not parallel.agree(all(done)):
    progress.raise_if_diverged(progress.below(folder))


def jobs(study: Sequence[Setting], options: Options) -> list[Job]:
  """Returns the trainings of all settings and seeds."""
  return [Job(setting, s) for s in options.all_seeds for setting in study]


def open_teacher(
  folder: pathlib.Path, cohort: Cohort, options: Options
) -> Variables:
  """Returns the teacher: of a file, or a random one that the folder keeps.

  Raises:
    port.PortError: if the weights are no WideResNet-50-2's, or of another
      width than asked for.
  """
  if options.weights:
    variables = port.from_torch(
      'teacher', port.load_state_dict(options.weights)
    )
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
      drawn = random_teacher(
        tiles.load(np.sort(rows)), seed=0, width=options.width
      )
      _save(path, port.to_torch('teacher', drawn))
  parallel.wait_for_all('teacher')
  return port.from_torch('teacher', port.load_state_dict(path))


def random_teacher(
  image: np.ndarray, *, seed: int, width: int = 64
) -> Variables:
  """Returns random `Teacher` variables, calibrated on patches.

  Args:
    image: patches to calibrate on, uint8 [T, S, S, 3], a hundred or so.
    seed: of the kernels; see `encoder.random_network`.
    width: of the teacher.
  """
  tiles = np.asarray(anomaly.normalise(image))
  return encoder.random_network(Teacher(width, momentum=0.0), tiles, seed=seed)


def load_student(folder: pathlib.Path, job: Job) -> Variables:
  """Returns the variables of a trained student."""
  path = job.folder(folder) / MODEL
  return port.from_torch('student', port.load_state_dict(path))


def _groups(
  jobs: Sequence[Job], task: DistillTask, options: Options
) -> list[list[Job]]:
  """Deals jobs of as many epochs into groups of as many as devices hold."""
  shapes = jax.eval_shape(
    task.student.init, jax.random.key(0), map_shapes(options.width)
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
  task: DistillTask,
  teacher: Variables,
  images: dict[str, np.ndarray],
  options: Options,
) -> None:
  label = np.int32(cohort.parts['train'].label)
  runs = [settings.run(job.setting, job.seed, label) for job in group]
  constants = distill.runs_of(runs, label)
  patches = Patches(teacher=teacher, image=images['train'], label=label)
  recipe = distill.recipe(
    options.learning_rate,
    options.epochs * group[0].setting.longer,
    options.batch,
  )
  names = '\n'.join(job.name for job in group)
  digest = hashlib.sha256(names.encode()).hexdigest()[:8]
  saved = folder / 'checkpoints' / digest
  checkpoints = checkpoint.Checkpoints(saved)
  shown = progress.Progress(
    [[job.folder(folder)] for job in group],
    COLUMNS,
    recipe.epochs,
    name=f'{len(group)} trainings',
    tensorboard=options.tensorboard,
  )
  program = distill.program(task, runs, patches, options.batch)
  try:
    result = loop.fit(
      program,
      recipe,
      constants,
      draw(task, constants, cpu.compiler_options()),
      validation=images['val'],
      validate=distill.validation(cohort.parts['val'].label),
      checkpoints=checkpoints,
      report=shown.report,
    )
  finally:
    shown.close()
    checkpoints.close()
  students = program.put((result.variables, constants))
  table: dict[str, list[np.ndarray]] = {part: [] for part in scores.PARTS}
  for part in scores.PARTS:
    for image in _chunks(cohort.parts[part]):
      out = program.evaluate(students, image)
      pair = np.stack([out['mean'], out['max']])
      table[part].append(pair.reshape(2, len(group), -1))
  if parallel.is_first():
    for row, job in enumerate(group):
      target, epoch = job.folder(folder), int(result.epoch[row])
      failed = int(result.failed[row])
      stages = {'student': (failed, epoch)} if failed >= 0 else {}
      progress.record_divergence(target, stages)
      if result.lost[row]:
        continue
      model = jax.tree.map(lambda x: x[row], result.variables)  # noqa: B023
      _save(target / MODEL, port.to_torch('student', model))
      scored = {
        part: np.concatenate(parts, -1)[:, row] for part, parts in table.items()
      }
      scores.write(target, cohort, scored)
    if not result.lost.any():  # They would be trained again.
      shutil.rmtree(saved, ignore_errors=True)
  parallel.wait_for_all('scores')


def _chunks(tiles: LabelledTiles) -> Iterator[np.ndarray]:
  """Yields the pixels of tiles, some at a time."""
  for start in range(0, len(tiles), _CHUNK):
    rows = np.arange(start, min(start + _CHUNK, len(tiles)))
    yield pixels(tiles.take(rows))


def _save(path: pathlib.Path, state: dict[str, np.ndarray]) -> None:
  state = {name: np.ascontiguousarray(x) for name, x in state.items()}
  with replacing(path) as part:
    part.write_bytes(safetensors.numpy.save(state))
