"""Turns a folder of slides into a folder of feature files.

  python -m experiments.extract --slides_dir=slides --features_dir=features \\
      --weights=imagenet

Every slide becomes <slide_id>.h5 with `features` [N, 1024] and `coords` [N, 2]
(level-0 pixels) in the layout of CLAM and TRIDENT, and a picture of tissue and
tiles to look at, grids/<slide_id>.png. A run that was stopped goes
on with the slides that have no file yet. A slide that cannot be read is
skipped and named, with the reason, in a table at the end; the exit code is
then 1.
"""

import os
import pathlib
import sys

from absl import app, flags, logging

from data import slides, tiling
from data.cohort import FAILURES
from experiments import (
  cohort_tiles,
  encoding,
  files,
  grid_pictures,
  scale_flags,
  weights,
)
from experiments.preflight import slides as preflight
from experiments.preflight.flag import CHECK
from kmil_jax import port

_SLIDES_DIR = flags.DEFINE_string(
  'slides_dir', None, 'Folder with whole-slide images.', required=True
)
_FEATURES_DIR = flags.DEFINE_string(
  'features_dir', None, 'Folder for <slide_id>.h5.', required=True
)
_WEIGHTS = flags.DEFINE_string(
  'weights',
  None,
  'ResNet-50 by torchvision or timm names (.safetensors, .pth), or '
  "'imagenet', or an encoder of your own as module:function, see "
  'docs/library.md. Without it the encoder is RANDOM, and kept in the '
  "features' folder as encoder.safetensors, which other cohorts can be given "
  'here.',
)
_CACHE_DIR = flags.DEFINE_string(
  'cache_dir',
  os.path.join(os.environ.get('XDG_CACHE_HOME', '~/.cache'), 'kmil_jax'),
  'Where ImageNet weights may be put.',
)
_TILE_SIZE = flags.DEFINE_integer(
  'tile_size', 256, 'Side of a tile in pixels.', lower_bound=32
)
_MPP = flags.DEFINE_float(
  'mpp', 0.5, 'Micrometres per pixel of the tiles.', lower_bound=1e-3
)
_MIN_TISSUE = flags.DEFINE_float(
  'min_tissue',
  0.5,
  'Least part of a tile that is tissue; 0 takes every tile.',
  lower_bound=0,
  upper_bound=1,
)
_REGIONS_DIR = flags.DEFINE_string(
  'regions_dir',
  None,
  'Folder with <slide_id>.geojson (QuPath) or .xml (ASAP), level-0 pixels: what'
  ' they outline counts as tissue of that slide, and nothing else does.',
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size',
  None,
  'Tiles per step over all devices; by default 16 per CPU device, else 256.',
  lower_bound=1,
)
_THREADS = flags.DEFINE_integer(
  'threads', os.cpu_count(), 'Threads that read tiles.', lower_bound=1
)
_PRECISION = flags.DEFINE_enum(
  'precision', 'float32', ['float32', 'bfloat16'], 'Of the encoder.'
)
_AUGMENT = flags.DEFINE_bool(
  'augment', False, 'Flip tiles and jitter their colours.'
)
_SEED = flags.DEFINE_integer(
  'seed', 0, 'Of a random encoder and of --augment.', lower_bound=0
)
flags.declare_key_flag('check')
flags.adopt_module_key_flags(scale_flags)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  logging.set_verbosity(logging.WARNING)  # JAX names what it does not find.
  for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[__name__]):
    print(f'--{flag.name}={flag.value}')
  try:
    failures = _extract()
  except _REFUSALS as error:
    sys.exit(f'ERROR: {error}')
  if failures:
    print(f'{len(failures)} slides have no features:')
    width = max(len(failure.slide_id) for failure in failures)
    for failure in failures:
      print(f'  {failure.slide_id:{width}}  {failure.reason}')
    sys.exit(1)


# What is wrong with a request as a whole, in words meant for users.
_WEIGHT_FAULTS = (port.PortError, weights.WeightsError)
_REFUSALS = (encoding.EncodingError, slides.SlideError, *_WEIGHT_FAULTS)


def _extract() -> list[encoding.Failure]:
  folder = pathlib.Path(_SLIDES_DIR.value)
  paths = slides.list_slides(folder)
  if not paths:
    raise slides.SlideError(f'{folder}: holds no slides')
  ids = {slides.slide_id(path) for path in paths}
  regions = _REGIONS_DIR.value
  spec = cohort_tiles.TileSpec(
    tile_size=_TILE_SIZE.value,
    mpp=_MPP.value,
    min_tissue=_MIN_TISSUE.value,
    default_mpp=scale_flags.DEFAULT_MPP.value,
    mpp_of=scale_flags.of(paths),
    regions=tiling.read_regions(regions, ids) if regions else {},
    threads=_THREADS.value,
    augment_seed=_SEED.value if _AUGMENT.value else None,
  )
  if CHECK.value and not _WEIGHTS.value:  # Nothing is drawn for a check.
    known = {'precision': _PRECISION.value}
    preflight.check(paths, _FEATURES_DIR.value, spec, known)
  try:
    made = weights.make_encoder(
      _WEIGHTS.value,
      features_dir=_FEATURES_DIR.value,
      cache_dir=_CACHE_DIR.value,
      sample=lambda: cohort_tiles.calibration_tiles(paths, spec),
      precision=_PRECISION.value,
      seed=_SEED.value,
    )
  except _WEIGHT_FAULTS as error:
    if not CHECK.value:
      raise
    preflight.check(paths, _FEATURES_DIR.value, spec, {}, [str(error)])
  if CHECK.value:
    preflight.check(paths, _FEATURES_DIR.value, spec, made.attributes())
  failures = encoding.extract(
    paths, _FEATURES_DIR.value, made, spec, batch=_BATCH_SIZE.value
  )
  # Says later why a labelled slide has no features.
  rows = [['slide_id', 'reason'], *failures]
  files.write_csv(pathlib.Path(_FEATURES_DIR.value) / FAILURES, rows)
  grid_pictures.draw(paths, _FEATURES_DIR.value, spec)
  return failures


if __name__ == '__main__':
  app.run(main)
