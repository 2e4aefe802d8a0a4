"""Detects tumour in images of lymph nodes in two steps (Tang et al. 2022).

  python -m experiments.two_step
  python -m experiments.two_step --images_dir=... --masks_dir=... \
      --images_csv=... [--mpp=0.5] [--input_size=224]
  python -m experiments.two_step --tiles_zip=... --tiles_csv=...

Without data flags, a phantom of node images is rendered, and fewer patches of
it train smaller batches for fewer epochs than in the paper.
"""

import dataclasses

from absl import app, flags

from data import node_images
from data.labelled_tiles import TileError
from data.node_images import ImageError
from experiments import (
  patch_flags,
  provenance,
  start,
  tile_flags,
  two_step_images,
  two_step_patches,
  two_step_run,
  two_step_tiles,
)
from experiments.patches import tiles as patch_tiles, training
from experiments.preflight.flag import CHECK
from experiments.run.check import Findings
from experiments.run.results import ResultsError
from kmil_jax.models import CLASSIFIERS
from kmil_jax.types import PatchRecipe

_IMAGES_DIR = flags.DEFINE_string(
  'images_dir', None, 'Folder of images, <image_id>.png or .tif.'
)
_MASKS_DIR = flags.DEFINE_string(
  'masks_dir', None, 'Folder of their masks, not 0 on tumour.'
)
_IMAGES_CSV = flags.DEFINE_string(
  'images_csv',
  None,
  'Table with the columns image_id,patient_id,part (development or test) and,'
  ' where negative images have no mask, label (negative or positive).',
)
_MPP = flags.DEFINE_float(
  'mpp', node_images.MPP, 'Micrometres per pixel of the images.', 0.05
)
_PRIMARIES = flags.DEFINE_list(
  'primaries',
  None,
  "Networks to compare: the paper's googlenet, mobilenet_v2, resnet50 and"
  ' resnet101; of the phantom the first two.',
)
_PRIMARY = flags.DEFINE_enum(
  'primary',
  None,
  sorted(CLASSIFIERS),
  'The first network; by default the one with the highest accuracy on the'
  ' validation patches.',
)
_SECONDARY = flags.DEFINE_enum(
  'secondary',
  None,
  sorted(CLASSIFIERS),
  'The second network; by default of the kind of the first, as in the paper.',
)
_PATCHES = flags.DEFINE_integer(
  'patches',
  None,
  'Patches of each class to train and validate with (16000; phantom: 300).',
  10,
)
_LEAST_TUMOUR = flags.DEFINE_integer(
  'least_tumour',
  None,
  'Area of tumour, um2, that makes a window one of tumour (100, about a cell;'
  ' phantom, whose outlines hold stroma: 400). Windows with less are left out.',
  1,
)
_SPLIT = flags.DEFINE_enum(
  'split_patches',
  'patient',
  ['patient', 'patch'],
  'What keeps training and validation apart; patch: as in the paper, patches'
  ' of one image are on both sides.',
)
_PICTURES = flags.DEFINE_integer(
  'pictures', 8, 'Test images to draw, half of them positive.', 0
)
for module in (start, patch_flags, tile_flags):
  flags.adopt_module_key_flags(module)
flags.declare_key_flag('check')

# What does not decide the results, or is hashed.
_NOT_RESULT = start.NOT_RESULT | {
  'check',
  'exp_code',
  'images_csv',
  'images_dir',
  'masks_dir',
  'pictures',
  'tiles_csv',
  'tiles_zip',
  'weights',
}

PAPER = PatchRecipe(
  learning_rate=1e-3,
  weight_decay=1e-4,  # MATLAB's default; the paper gives no value.
  epochs=30,
  batch=128,
  augment='tang',
  schedule='decade',
  select='loss',
  patience=5,  # Ours; the paper stops early by a rule it does not give.
)
PAPER_PATCHES = 16_000
_NETWORKS = ('googlenet', 'mobilenet_v2', 'resnet50', 'resnet101')

# What a CPU trains in minutes.
# Before the tenth epoch the paper's learning rate does not fall.
_PHANTOM = {'batch': 16, 'epochs': 9, 'schedule': 'cosine'}
_PHANTOM_PATCHES = 300
_PHANTOM_LEAST_TUMOUR = 400
_PHANTOM_NETWORKS = _NETWORKS[:2]
# Tiles are far fewer than the paper's patches, and stained by many hands.
_TILES = {
  'batch': 64,
  'epochs': 12,
  'augment': 'stain',
  'schedule': 'cosine',
  'select': 'last',  # Few patients validate: they favour an early epoch.
  'patience': None,
}


def _run() -> None:
  images = [_IMAGES_DIR.value, _MASKS_DIR.value, _IMAGES_CSV.value]
  tiles = tile_flags.zipped()
  if any(images) and not all(images):
    raise app.UsageError(
      "one's own images need --images_dir, --masks_dir and --images_csv"
    )
  if any(images) and tiles:
    raise app.UsageError('images and tiles exclude each other')
  if unknown := sorted(set(_PRIMARIES.value or ()) - set(CLASSIFIERS)):
    raise app.UsageError(
      f'--primaries={",".join(unknown)}: there are {", ".join(CLASSIFIERS)}'
    )
  phantom = not any(images) and not tiles
  if tiles:
    of_images = _MPP, _PATCHES, _LEAST_TUMOUR, _SPLIT, _PICTURES
    tile_flags.refuse(*of_images, goes_with='images, not with tiles')
  else:
    tile_flags.refuse(tile_flags.POSITIVE, goes_with='--tiles_zip')
  if phantom:
    tile_flags.refuse(_MPP, goes_with='--images_dir')
  values = start.resolved(__name__)
  decides = [name for name in values if name not in _NOT_RESULT]
  recipe, patches, networks = PAPER, PAPER_PATCHES, _NETWORKS
  least = two_step_patches.LEAST_TUMOUR
  if phantom:
    recipe = dataclasses.replace(recipe, **_PHANTOM)
    patches, networks = _PHANTOM_PATCHES, _PHANTOM_NETWORKS
    least = _PHANTOM_LEAST_TUMOUR
  elif tiles:
    recipe = dataclasses.replace(recipe, **_TILES)
    networks = ('resnet18',)
  if _PRIMARY.value and not _PRIMARIES.value:
    networks = (_PRIMARY.value,)
  networks = tuple(_PRIMARIES.value or networks)
  if _PRIMARY.value and _PRIMARY.value not in networks:
    networks += (_PRIMARY.value,)
  recipe = patch_flags.resolve(recipe)
  settings = two_step_run.Settings(
    recipe=recipe,
    networks=networks,
    primary=_PRIMARY.value,
    secondary=_SECONDARY.value,
    patches=_PATCHES.value or patches,
    least_tumour=_LEAST_TUMOUR.value or least,
    split=_SPLIT.value,
    seed=start.SEED.value,
    weights=patch_flags.weights_of(
      (*networks, *filter(None, [_SECONDARY.value]))
    ),
    freeze=patch_flags.FREEZE.value,
    precision=patch_flags.PRECISION.value,
    tensorboard=patch_flags.TENSORBOARD.value,
    pictures=_PICTURES.value,
  )
  values |= patch_flags.resolved(recipe) | {
    'primaries': networks,
    'patches': settings.patches,
    'least_tumour': settings.least_tumour,
  }
  folder = start.folder('two_step')
  if tiles:
    found = two_step_tiles.open_tiles(*tiles, tile_flags.POSITIVE.value)
    if CHECK.value:
      findings = Findings()
      print(patch_tiles.counts({'tiles': found.tiles}, 'Tiles').terminal())
      patch_tiles.check(
        findings,
        {'tiles': found.tiles},
        lambda: two_step_tiles.parts(found.tiles, settings.seed),
      )
      findings.close()
    provenance.open_folder(folder, values, decides, found.inputs)
    two_step_tiles.run(folder, found, settings)
    return
  if phantom:
    found = two_step_images.phantom(start.CACHE_DIR.value)
  else:
    found = node_images.load(*images, mpp=_MPP.value)
  if CHECK.value:
    print(
      f'{len(found)} images of {len(set(found.patient))} patients:'
      f' {found.test.sum()} to test, {found.positive.sum()} positive'
    )
    findings = Findings()  # Loading found what is wrong with files.
    try:
      two_step_run.patches(found, settings)
    except TileError as e:
      findings.problems.append(str(e))
    findings.close()
  inputs = two_step_images.fingerprint(found)
  provenance.open_folder(folder, values, decides, inputs)
  if phantom:
    _tell_reductions(settings)
  two_step_run.run(folder, found, settings)


def _tell_reductions(settings: two_step_run.Settings) -> None:
  """Says how a run on the phantom is smaller than the paper's."""
  recipe, size = settings.recipe, settings.recipe.input_size or 40
  print(
    'phantom of node images: rendered, so that the figures say nothing about'
    ' patients.\nhere (paper):'
    f' {settings.patches} patches of each class ({PAPER_PATCHES}), tumour from'
    f' {settings.least_tumour} um2 of 1600 (a cell), batch'
    f' {recipe.batch} ({PAPER.batch}), at most {recipe.epochs} epochs'
    f' ({PAPER.epochs}), learning rate {recipe.schedule} ({PAPER.schedule}),'
    f' patches of 40 px seen at {size} px (224, implied),'
    f' {"weights of a file" if settings.weights else "random weights"} to start'
    ' from, and those of the primary for the secondary network (ImageNet),'
    f' networks {", ".join(settings.networks)} ({", ".join(_NETWORKS)})',
    flush=True,
  )


main = start.script(_run, (ImageError, ResultsError, *training.ERRORS))

if __name__ == '__main__':
  app.run(main)
