"""Detects tumour with few labelled patches (FW-RD; He and Li 2023).

  python -m experiments.few_shot
  python -m experiments.few_shot --slides_dir=... --annotations=... \
      --lists_dir=... --reference_csv=... --weights=wide_resnet50_2.pth
  python -m experiments.few_shot --patches_dir=... --weights=...

Students of a frozen teacher learn to imitate it on normal patches, and not to
on the tumour patches that there are. Without data flags, a phantom of
CAMELYON16 is rendered, and small networks are trained by a shorter recipe.
"""

import hashlib
import pathlib

from absl import app, flags

from data.labelled_tiles import TileError
from data.slides import SlideError
from experiments import (
  provenance,
  recipe_flags,
  start,
)
from experiments.few_shot_parts import (
  cohort as cohorts,
  paper,
  patch_folders,
  report,
  settings,
  slides,
  training,
)
from experiments.few_shot_parts.cohort import Cohort
from experiments.few_shot_parts.training import Options
from experiments.patches import tiles as patch_tiles
from experiments.preflight.flag import CHECK
from experiments.run import progress
from experiments.run.check import Findings
from experiments.slide_scores.scoring import ScoreError
from kmil_jax import losses, parallel, port
from kmil_jax.tasks.distill import NORMAL, DistillError

_STAGE = flags.DEFINE_enum(
  'stage',
  'all',
  ['all', 'train', 'tables', 'slides'],
  'train: the students; tables: Tables 2 and 3, ablations and the ROC of'
  ' patches; slides: scores test slides by RD and FW-RD of the first seed.',
)
_SLIDES_DIR = flags.DEFINE_string(
  'slides_dir', None, 'Slides of CAMELYON16, in any subfolders.'
)
_ANNOTATIONS = flags.DEFINE_string(
  'annotations',
  None,
  'Where tumour is: a folder of <slide>.xml, <slide>.json or'
  ' <slide>_mask.tif, or one .json or .json.gz of all slides.',
)
_LISTS_DIR = flags.DEFINE_string(
  'lists_dir',
  None,
  'Lists of patches as released with FW-RD, lines slide,x,y of centres:'
  ' train_good.txt, train_bad.txt, test_good.txt and test_bad.txt; val_good.txt'
  ' and val_bad.txt are drawn where they are missing.',
)
_REFERENCE_CSV = flags.DEFINE_string(
  'reference_csv', None, "CAMELYON16's labels of its test slides."
)
_PATCHES_DIR = flags.DEFINE_string(
  'patches_dir',
  None,
  'In place of slides: train, val and test, each with folders good and bad of'
  ' images, <slide>_<x>_<y>.png.',
)
_WEIGHTS = flags.DEFINE_string(
  'weights',
  None,
  "torchvision's wide_resnet50_2, .pth or .safetensors; a random teacher by"
  ' default.',
)
_WIDTH = flags.DEFINE_integer(
  'width', None, 'Channels of the stem (64; phantom: 8).', 1
)
_SHORTCUT = flags.DEFINE_enum(
  'shortcut',
  '3',
  ['1', '3'],
  "Kernel of the embedding's shortcut: 3 as in FW-RD's released code, 1 as in"
  ' RD and the text of FW-RD.',
)
_PER = flags.DEFINE_enum(
  'per',
  'location',
  list(losses.PER),
  'What similarities are of: every location (the paper) or a whole map (the'
  ' released code).',
)
_BATCH = flags.DEFINE_integer('batch', None, 'Patches per step (32).', 2)
_SEEDS = flags.DEFINE_integer(
  'seeds',
  None,
  'Trainings of each setting: of --seed, --seed + 1 and so on (1; phantom: 3).',
  1,
)
flags.adopt_module_key_flags(start)
for name in ('check', 'epochs', 'lr', 'precision', 'tensorboard'):
  flags.declare_key_flag(name)

_NOT_RESULT = start.NOT_RESULT | {
  'annotations',
  'check',
  'exp_code',
  'lists_dir',
  'patches_dir',
  'reference_csv',
  'seeds',
  'slides_dir',
  'stage',
  'weights',
  'tensorboard',
}
_DATA = (_SLIDES_DIR, _ANNOTATIONS, _LISTS_DIR, _REFERENCE_CSV)
# What a CPU trains in minutes: a teacher that knows nothing is imitated soon.
_PHANTOM = {'width': 8, 'epochs': 3, 'learning_rate': 3e-3, 'seeds': 3}
_PAPER = {
  'width': paper.WIDTH,
  'epochs': paper.EPOCHS,
  'learning_rate': paper.LEARNING_RATE,
  'seeds': 1,
}


def _run() -> None:
  if not any(flag.value for flag in (*_DATA, _PATCHES_DIR)):
    parallel.use_cores()  # The phantom's networks are small.
  cohort, phantom = _cohort()
  if CHECK.value:
    findings = Findings()
    print(patch_tiles.counts(cohort.parts, 'Patches').terminal())
    patch_tiles.check(findings, cohort.parts)
    findings.close()
  options = _options(phantom)
  normal = int((cohort.parts['train'].label == NORMAL).sum())
  # Of a phantom's balanced patches an epoch is two steps.
  longer = round((normal + cohort.main) / (2 * cohort.main)) if phantom else 1
  study = settings.study(normal, cohort.main, cohort.counts, longer=longer)
  values = start.resolved(__name__)
  decides = [name for name in values if name not in _NOT_RESULT]
  values |= {
    'width': options.width,
    'epochs': options.epochs,
    'lr': options.learning_rate,
    'batch': options.batch,
    'seeds': options.seeds,
  }
  folder = start.folder('few_shot')
  inputs = cohorts.fingerprint(cohort)
  if options.weights:
    inputs['weights_sha256'] = _digest(options.weights)
  provenance.open_folder(folder, values, decides, inputs)
  if parallel.is_first():
    report.begin(cohort, study, options, phantom)
  stage = _STAGE.value
  if stage in ('all', 'train'):
    training.train(folder, cohort, study, options)
  if not parallel.is_first():
    return
  if stage in ('all', 'tables'):
    report.patches(folder, study, options)
  if stage == 'slides' or (stage == 'all' and cohort.slides):
    if not cohort.slides:
      raise app.UsageError('--stage=slides: --patches_dir has no slides')
    found = slides.run(folder, cohort, study, options)
    report.of_slides(folder, cohort, found)
  print(f'results: {folder}')
  progress.raise_if_diverged(progress.below(folder))


def _cohort() -> tuple[Cohort, bool]:
  """Returns the patches and slides, and whether they are the phantom's."""
  given = [flag.value for flag in _DATA]
  if any(given) and not all(given):
    missing = [f'--{flag.name}' for flag in _DATA if not flag.value]
    raise app.UsageError(f'slides need {", ".join(missing)}, too')
  if any(given) and _PATCHES_DIR.value:
    raise app.UsageError('slides and --patches_dir exclude each other')
  if _PATCHES_DIR.value:
    return patch_folders.open_folders(pathlib.Path(_PATCHES_DIR.value)), False
  if not any(given):
    return cohorts.open_phantom(start.CACHE_DIR.value), True
  found = cohorts.open_camelyon(
    *map(pathlib.Path, given), seed=start.SEED.value, scale=cohorts.Scale()
  )
  return found, False


def _options(phantom: bool) -> Options:
  recipe = _PHANTOM if phantom else _PAPER
  either = lambda flag, name: recipe[name] if flag.value is None else flag.value
  return Options(
    width=either(_WIDTH, 'width'),
    shortcut=int(_SHORTCUT.value),
    per=_PER.value,
    epochs=either(recipe_flags.EPOCHS, 'epochs'),
    learning_rate=either(recipe_flags.LR, 'learning_rate'),
    batch=_BATCH.value or paper.BATCH,
    seed=start.SEED.value,
    seeds=either(_SEEDS, 'seeds'),
    weights=_WEIGHTS.value,
    precision=recipe_flags.PRECISION.value,
    tensorboard=recipe_flags.TENSORBOARD.value,
  )


def _digest(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


ERRORS = (DistillError, ScoreError, SlideError, TileError, port.PortError)
main = start.script(_run, ERRORS)

if __name__ == '__main__':
  app.run(main)
