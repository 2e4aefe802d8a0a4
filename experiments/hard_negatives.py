"""Mines hard negatives for a patch classifier, as Lee et al. 2024 do.

  python -m experiments.hard_negatives
  python -m experiments.hard_negatives --tiles_dir=annotated --pool_dir=weak \
      --table=2,3,4,5
  python -m experiments.hard_negatives --tiles_zip=... --tiles_csv=...

A weak model is trained on annotated tiles; its false positives on the
validation part choose the nearest tiles of a pool without positives; a strong
model is trained on both. The test part is fixed before anything is mined.
Without data flags, a phantom of lymphatic invasion is rendered and the recipe
is a reduced one.
"""

import dataclasses
import functools

from absl import app, flags

from data.labelled_tiles import LabelledTiles, TileError
from experiments import (
  hard_negatives_data as materials,
  hard_negatives_paper as paper,
  hard_negatives_report as reports,
  patch_flags,
  provenance,
  start,
  tile_flags,
)
from experiments.hard_negatives_data import Material
from experiments.hard_negatives_runs import Study
from experiments.patches import tiles as patch_tiles, training
from experiments.preflight.flag import CHECK
from experiments.run import progress
from experiments.run.check import Findings
from experiments.run.results import ResultsError
from kmil_jax import mining

_TILES_DIR = flags.DEFINE_string(
  'tiles_dir',
  None,
  'Annotated tiles: a folder for each of two classes, the last of them positive'
  ' (neg, pos); the patient or slide precedes the first _ of a name. Or a'
  ' prepared TFDS dataset, as .../lymphatic_invasion/hard/1.0.0.',
)
_POOL_DIR = flags.DEFINE_string(
  'pool_dir',
  None,
  'Tiles of other patients, who have no positive, in any folders; or a TFDS'
  ' dataset, as .../lymphatic_invasion/weak/1.0.0.',
)
_POOL_SHARE = flags.DEFINE_float(
  'pool_share',
  0.4,
  'With --tiles_zip: share of the patients whose negatives are the pool.',
  0,
  1,
)
_TABLE = flags.DEFINE_list(
  'table', ['2'], "The paper's tables to make: 2 to 5."
)
_ALPHA = flags.DEFINE_integer(
  'alpha', None, 'Tiles of the pool per false positive (20).', 1
)
_METRIC = flags.DEFINE_enum(
  'metric',
  'l2',
  list(mining.METRICS),
  'Of the features: chooses in Tables 3 to 5, and sets the number of the random'
  ' control.',
)
_THRESHOLD = flags.DEFINE_float(
  'threshold',
  paper.THRESHOLD,
  'Probability from which on a negative is a false positive.',
  0,
  1,
)
_SEEDS = flags.DEFINE_integer(
  'seeds', 3, 'Models of each kind: of --seed, --seed + 1 and so on.', 1
)
_FRACTIONS = flags.DEFINE_list(
  'fractions',
  None,
  'Of training, validation and test part (0.6,0.2,0.2; phantom:'
  ' 0.11,0.13,0.76).',
)
_PROTOCOL = flags.DEFINE_enum(
  'protocol',
  'intended',
  ['intended', 'original'],
  'original: WRONG, for comparison alone. As in the released code, negatives'
  ' are random, and split together with the annotated tiles, so that some of'
  ' them are tested on.',
)
_FIGURES = flags.DEFINE_bool('figures', True, 'Draws mined.png and others.')
for module in (start, patch_flags, tile_flags):
  flags.adopt_module_key_flags(module)
flags.declare_key_flag('check')

# What does not decide what a training comes to, or is hashed.
_NOT_RESULT = start.NOT_RESULT | {
  'alpha',
  'check',
  'exp_code',
  'figures',
  'pool_dir',
  'seeds',
  'table',
  'tiles_csv',
  'tiles_dir',
  'tiles_zip',
  'weights',
}

# What a CPU trains in minutes, from random weights.
_PHANTOM = {'learning_rate': 1e-3, 'epochs': 6, 'input_size': 32}
_PHANTOM_FRACTIONS = (0.11, 0.13, 0.76)


def _run() -> None:
  leaking = _PROTOCOL.value == 'original'
  numbers = _tables()
  material = _material()
  phantom = bool(material.hard)
  fractions = _fractions(phantom)
  if CHECK.value:
    findings = Findings()
    sets = {'annotated': material.annotated, 'pool': material.pool}
    print(patch_tiles.counts(sets, 'Tiles').terminal())
    patch_tiles.check(
      findings,
      sets,
      lambda: patch_tiles.split(
        material.annotated, fractions, seed=start.SEED.value
      ),
      lambda: leaking or _refuse_few(material.pool, numbers),
    )
    findings.close()
  if not leaking:
    _refuse_few(material.pool, numbers)
  recipe = paper.RECIPE
  if phantom:
    recipe = dataclasses.replace(recipe, **_PHANTOM)
  recipe = patch_flags.resolve(recipe)
  values = start.resolved(__name__)
  decides = [name for name in values if name not in _NOT_RESULT]
  folder = start.folder('hard_negatives' + '_original' * leaking)
  inputs = {
    'annotated_sha256': patch_tiles.fingerprint(material.annotated),
    'pool_sha256': patch_tiles.fingerprint(material.pool),
  }
  values |= patch_flags.resolved(recipe) | {'fractions': fractions}
  provenance.open_folder(folder, values, decides, inputs)
  fit = functools.partial(
    training.train,
    model='resnet18',
    recipe=recipe,
    options=training.Training(
      weights=patch_flags.WEIGHTS.value,
      freeze=patch_flags.FREEZE.value,
      precision=patch_flags.PRECISION.value,
      tensorboard=patch_flags.TENSORBOARD.value,
    ),
  )
  study = Study(
    folder,
    material.annotated,
    material.pool,
    fit=fit,
    fractions=fractions,
    seed=start.SEED.value,
    threshold=_THRESHOLD.value,
    metric=_METRIC.value,
    leaking=leaking,
  )
  seeds = range(start.SEED.value, start.SEED.value + _SEEDS.value)
  report = reports.Report(
    folder,
    study,
    material,
    seeds=list(seeds),
    metric=_METRIC.value,
    alpha=_ALPHA.value or paper.ALPHA,
    leaking=leaking,
  )
  report.begin(recipe, fractions)
  for number in numbers:
    report.table(number)
  report.end()
  if _FIGURES.value and not leaking:
    report.draw()
  progress.raise_if_diverged(progress.below(folder))


def _material() -> Material:
  folders = _TILES_DIR.value, _POOL_DIR.value
  zipped = tile_flags.zipped()
  if any(folders) and not all(folders):
    raise app.UsageError('tiles need both --tiles_dir and --pool_dir')
  if any(folders) and zipped:
    raise app.UsageError('--tiles_dir and --tiles_zip exclude each other')
  if not zipped:
    tile_flags.refuse(_POOL_SHARE, goes_with='--tiles_zip')
  if all(folders):
    return materials.from_folders(*folders, tile_flags.POSITIVE.value)
  if zipped:
    share, seed = _POOL_SHARE.value, start.SEED.value
    return materials.from_zip(
      *zipped, tile_flags.POSITIVE.value, share=share, seed=seed
    )
  tile_flags.refuse(tile_flags.POSITIVE, goes_with='--tiles_dir or --tiles_zip')
  return materials.phantom(start.CACHE_DIR.value, start.SEED.value)


def _refuse_few(pool: LabelledTiles, tables: list[int]) -> None:
  """Raises `TileError` where a false positive asks for more than the pool."""
  alpha = _ALPHA.value or paper.ALPHA
  if 3 in tables:
    alpha = max(alpha, *paper.TABLE_3)
  if alpha > len(pool):
    raise TileError(
      f'alpha={alpha} is more than the {len(pool)} tiles of the pool: give it'
      ' more, or a smaller --alpha'
    )


def _tables() -> list[int]:
  known = {'2', '3', '4', '5'}
  if not _TABLE.value or not set(_TABLE.value) <= known:
    raise app.UsageError(
      f'--table={",".join(_TABLE.value)}: there are 2, 3, 4 and 5'
    )
  return sorted(set(map(int, _TABLE.value)))


def _fractions(phantom: bool) -> tuple[float, float, float]:
  if _FRACTIONS.value is None:
    return _PHANTOM_FRACTIONS if phantom else paper.FRACTIONS
  try:
    train, val, test = map(float, _FRACTIONS.value)
  except ValueError as e:
    raise app.UsageError(
      f'--fractions={",".join(_FRACTIONS.value)}: three numbers are needed'
    ) from e
  if min(train, val, test) <= 0:
    raise app.UsageError(
      f'--fractions={",".join(_FRACTIONS.value)}: each part needs tiles'
    )
  return train, val, test


main = start.script(_run, (*training.ERRORS, ResultsError, mining.MiningError))

if __name__ == '__main__':
  app.run(main)
