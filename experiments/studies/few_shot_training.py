"""Trains the students of He and Li's study, several in one program."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import math
import pathlib
import shutil
from typing import NamedTuple

import jax
import numpy as np
import safetensors.numpy

from data.files import counted, memory
from data.labelled_tiles import LabelledTiles
from experiments.encoding import encoder
from experiments.patches.study import Study
from experiments.run import progress, results
from experiments.run.options import field, free
from experiments.run.results import Folder
from experiments.run.start import Training
from experiments.studies.few_shot_data import PatchesAndSlides
from kmil_jax import augment, loop, losses, parallel, port
from kmil_jax.models import cpu
from kmil_jax.models.reverse_distillation import Teacher, map_shapes
from kmil_jax.tasks import distill
from kmil_jax.tasks.distill import NORMAL, TUMOUR, DistillTask, Patches
from kmil_jax.train import Variables, draw

# Names of the trainings of Table 2.
RD, FW_RD = 'RD', 'FW-RD'
TEACHER = 'teacher.safetensors'  # By torchvision's names.
MODEL = 'model.safetensors'  # By the names of the released code.
# Scores of patches, by part. A training that has them is done.
SCORES = {'val': 'validation_scores.csv', 'test': 'scores.csv'}
_HEADER = ('patch', 'slide', 'tumour', 'mean', 'max')
# Of metrics.jsonl, and of the training's history.
_COLUMNS = {
  'train_loss': 'train_loss',
  'val_accuracy': 'val_accuracy',
  'val_auroc': 'val_auroc',
  'threshold': 'val_threshold',
  'best_epoch': 'best_epoch',
}
_SHARE = 0.6  # Of a device's memory that runs may fill.
# Copies of the weights that a run holds: Adam's two moments, the best epoch,
# the gradient.
_COPIES = 5
_CALIBRATION = 96  # Patches that a random teacher is calibrated on.
_CHUNK = 1024  # Patches in memory at a time.


@dataclasses.dataclass(frozen=True)
class Students(Training):
  """How students are trained; by default as in the paper."""

  width: int | None = field(
    None, 'Channels of the first layer of teacher and students.', least=1
  )
  shortcut: str = field(
    '3',
    "Kernel size of the embedding's shortcut: 3 as in FW-RD's released code, 1"
    ' as in RD and in the text of FW-RD.',
    choices=('1', '3'),
  )
  similarity: str = field(
    'location',
    'Compare feature maps location by location, as in the paper, or flattened,'
    ' as in the released code (map).',
    choices=losses.PER,
  )
  batch: int | None = field(
    None, 'Patches per training step.', flag='batch_size', least=2
  )
  seeds: int | None = free(
    None,
    'Train every setting so many times, with the seeds --seed, --seed + 1, ...',
    least=1,
  )

  @functools.cached_property
  def task(self) -> DistillTask:
    """What is trained: one for all groups, which share its programs."""
    return DistillTask(
      self.width,
      int(self.shortcut),
      per=self.similarity,
      precision=self.precision,
    )


@dataclasses.dataclass(frozen=True)
class Setting:
  """A training.

  Attributes:
    name: unique, of files and columns.
    normal: how many normal patches it has.
    tumour: how many tumour patches.
    alpha: of the focal loss; 0 is the loss of RD.
    gamma: of the focal loss.
    counterpart: number of tumour patches in the paper's Table 3 that this one
      stands for, its own if there is none; None if it is not of that table.
    longer: how many times the epochs of the others it takes.
    seed: of its patches, weights and order.
  """

  name: str
  normal: int
  tumour: int
  alpha: float
  gamma: float = 2.0
  counterpart: int | None = None
  longer: int = 1
  seed: int = 0

  @property
  def folder(self) -> str:
    """Name of the folder of its files."""
    return f'runs/{self.name}_s{self.seed}'

  def run(self, label: np.ndarray) -> distill.Setting:
    """Returns what it trains on: those of a smaller number are in any larger.

    Args:
      label: of all training patches, [n].
    """
    rows = []
    for kind, count in ((NORMAL, self.normal), (TUMOUR, self.tumour)):
      of_kind = np.flatnonzero(label == kind)
      order = np.random.default_rng([self.seed, kind]).permutation(of_kind)
      rows.append(order[:count])
    chosen = np.sort(np.concatenate(rows))
    return distill.Setting(chosen, self.seed, self.alpha, self.gamma)


class Scores(NamedTuple):
  """Patches of one part, n of them, as one training sees them."""

  slide: np.ndarray  # [n] str
  tumour: np.ndarray  # [n] bool
  mean: np.ndarray  # [n], of the anomaly map; He and Li's score

  @property
  def threshold(self) -> float:
    """The one that these patches choose: that of the highest F1."""
    label = np.where(self.tumour, TUMOUR, NORMAL)
    return distill.patch_threshold(label, self.mean)


def settings(
  material: PatchesAndSlides, students: Students, seed: int
) -> list[list[Setting]]:
  """Returns the trainings of Tables 2 and 3 and of the ablations, by seed.

  The paper has alpha follow the share of tumour patches, gives 0.1 for 500 of
  5,500 and 0.5 for balanced classes: here it is that share, but 0.1 in the main
  training. "Unweighted" is not defined in the paper: here alpha is 0.5, and
  gamma either 0, which leaves a cross entropy, or 2.
  """
  normal = int((material.parts['train'].label == NORMAL).sum())
  main, counts = material.main, material.counts
  even = min(main, normal)
  # A phantom's balanced patches are two steps an epoch.
  longer = round((normal + main) / (2 * main)) if material.is_phantom else 1
  others = [
    Setting(f'tumour_{n}', normal, n, n / (n + normal), counterpart=original)
    for n, original in counts.items()
    if n not in (0, main)
  ]
  of_seed = [
    Setting(RD, normal, 0, 0.0, counterpart=0),
    Setting(FW_RD, normal, main, 0.1, counterpart=counts.get(main, main)),
    *others,
    Setting('unweighted', normal, main, 0.5, 0.0),
    Setting('unweighted_focal', normal, main, 0.5),
    Setting('balanced', even, even, 0.5, longer=longer),
  ]
  return [
    [dataclasses.replace(setting, seed=seed + k) for setting in of_seed]
    for k in range(students.seeds)
  ]


def teacher(study: Study, material: PatchesAndSlides) -> Variables:
  """Returns the teacher: of a file, or the random one that the folder keeps.

  Raises:
    port.PortError: if the weights are no WideResNet-50-2's, or of another
      width than asked for.
  """
  path = material.weights or study.folder.at(TEACHER)
  variables = port.from_torch('teacher', results.read_weights(path))
  width = variables['params']['conv1']['kernel'].shape[-1]
  if width != study.recipe['students'].width:
    raise port.PortError(f'{path} has the width {width}. Give --width={width}.')
  return variables


def student(path: pathlib.Path) -> Variables:
  """Returns the variables of a trained student."""
  return port.from_torch('student', results.read_weights(path))


def train(
  study: Study, material: PatchesAndSlides, jobs: Sequence[Setting]
) -> None:
  """Trains what is not trained yet, and scores validation and test patches.

  As many trainings as fit in memory are runs of one program; what it makes of
  each does not depend on the others. The folder of each gets metrics.jsonl,
  its model and its scores.

  Args:
    study: with the recipe 'students'.
    material: patches and teacher.
    jobs: all trainings.

  Raises:
    FloatingPointError: if a training diverged before an epoch could be kept;
      the others are finished first.
  """
  students, folder = study.recipe['students'], study.folder
  if not material.weights and not folder.has_model(TEACHER):
    tiles = material.parts['train']
    # RD knows no tumour, so its teacher must not.
    normal = np.flatnonzero(tiles.label == NORMAL)
    rows = np.random.default_rng(0).permutation(normal)[:_CALIBRATION]
    image = np.asarray(augment.normalise(tiles.load(np.sort(rows))))
    network = Teacher(students.width, momentum=0.0)
    drawn = encoder.random_network(network, image, seed=0)
    _save(folder, TEACHER, port.to_torch('teacher', drawn))
    parallel.wait_for_all('teacher')
  known = teacher(study, material)
  images = functools.cache(lambda part: _pixels(material.parts[part]))
  done = lambda job: folder.has(*(f'{job.folder}/{f}' for f in SCORES.values()))

  def is_sound(job):
    model = f'{job.folder}/{MODEL}'  # Scores do without it.
    return not folder.has(model) or folder.has_model(model)

  for group in groups(jobs, students):
    left = [job for job in group if not (done(job) and is_sound(job))]
    if left:
      # Of trainings that were killed while they wrote, all is in a checkpoint:
      # of the group, or of what more --seeds had added to it.
      first = group.index(left[0])
      parts = (group[i:] for i in range(first + 1))
      begun = (part for part in parts if folder.has(_checkpoints(part)))
      _train_group(study, material, next(begun, left), known, images)
  if not all(map(done, jobs)):
    progress.raise_if_diverged(progress.below(folder.path))


def groups(
  jobs: Sequence[Setting], students: Students
) -> Iterator[list[Setting]]:
  """Deals jobs of as many epochs into groups of as many as devices hold."""
  shapes = jax.eval_shape(
    students.task.student.init, jax.random.key(0), map_shapes(students.width)
  )
  weights = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  one = 4 * _COPIES * weights
  room = _SHARE * parallel.memory_bytes(memory())
  fitting = int(room / one) * parallel.num_devices()
  size = max(fitting, parallel.num_devices())
  for longer in sorted({job.longer for job in jobs}):
    alike = [job for job in jobs if job.longer == longer]
    for start in range(0, len(alike), size):
      yield alike[start : start + size]


def scores(folder: Folder, setting: Setting) -> dict[str, Scores]:
  """Returns the scores of a training's patches, by part.

  Raises:
    ResultsError: if the training is not done.
  """
  parts = {}
  for part, file in SCORES.items():
    rows = folder.read(f'{setting.folder}/{file}')
    column = lambda name: np.array([row[name] for row in rows])  # noqa: B023
    mean = column('mean').astype(float)
    parts[part] = Scores(column('slide'), column('tumour') == '1', mean)
  return parts


def _checkpoints(group: Sequence[Setting]) -> str:
  """Returns the folder of the checkpoints of trainings that are one program."""
  text = '\n'.join(setting.folder for setting in group)
  return f'checkpoints/{hashlib.sha256(text.encode()).hexdigest()[:8]}'


def _train_group(
  study: Study,
  material: PatchesAndSlides,
  group: Sequence[Setting],
  known: Variables,
  images: Callable[[str], np.ndarray],
) -> None:
  students, folder = study.recipe['students'], study.folder
  task, train, val = students.task, *map(material.parts.get, ('train', 'val'))
  label = np.int32(train.label)
  runs = [setting.run(label) for setting in group]
  constants = distill.runs_of(runs)
  patches = Patches(teacher=known, image=images('train'), label=label)
  program = distill.program(task, runs, patches, students.batch)
  recipe = distill.recipe(
    students.learning_rate,
    students.epochs * group[0].longer,
    students.batch,
  )
  names = [setting.folder for setting in group]
  checkpoints = _checkpoints(group)
  with progress.training(
    folder.at(checkpoints),
    [[folder.at(name)] for name in names],
    _COLUMNS,
    recipe.epochs,
    name=counted(len(group), 'training'),
    tensorboard=students.tensorboard,
  ) as (saved, shown):
    result = loop.fit(
      program,
      recipe,
      constants,
      draw(task, constants, cpu.compiler_options()),
      validation=images('val'),
      validate=distill.validation(val.label),
      checkpoints=saved,
      report=shown.report,
    )
  trained = program.put((result.variables, constants))
  rows = {part: [[_HEADER] for _ in group] for part in SCORES}
  for part, tables in rows.items():
    tiles = material.parts[part]
    for start in range(0, len(tiles), _CHUNK):
      chunk = tiles.take(np.arange(start, min(start + _CHUNK, len(tiles))))
      out = program.evaluate(trained, chunk.load(np.arange(len(chunk))))
      about = chunk.id, chunk.group, (chunk.label == TUMOUR).astype(int)
      mean, most = (out[k].reshape(len(group), -1) for k in ('mean', 'max'))
      for table, *scores_of in zip(tables, mean, most, strict=True):
        table += [
          (*row, f'{a:.9g}', f'{b:.9g}')  # Exact for float32.
          for *row, a, b in zip(*about, *scores_of, strict=True)
        ]
  for i, name in enumerate(names):
    stages = {'student': (int(result.failed[i]), int(result.epoch[i]))}
    progress.record_divergence(folder.at(name), stages)
    if not result.lost[i]:
      model = jax.tree.map(lambda x: x[i], result.variables)  # noqa: B023
      _save(folder, f'{name}/{MODEL}', port.to_torch('student', model))
      for part, file in SCORES.items():
        folder.write(f'{name}/{file}', rows[part][i])
  # Those of lost trainings stay, or all would be trained again.
  if parallel.is_first() and not result.lost.any():
    shutil.rmtree(folder.at(checkpoints), ignore_errors=True)
  parallel.wait_for_all('scores')


def _pixels(tiles: LabelledTiles) -> np.ndarray:
  """Returns all tiles [n, S, S, 3], also of sets that memory does not keep."""
  pixels = tiles.pixels
  return tiles.load(np.arange(len(tiles))) if pixels is None else pixels


def _save(folder: Folder, name: str, state: dict[str, np.ndarray]) -> None:
  state = {name: np.ascontiguousarray(x) for name, x in state.items()}
  folder.save_model(name, safetensors.numpy.save(state))
