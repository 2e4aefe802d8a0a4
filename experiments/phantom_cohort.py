"""The phantom cohorts, rendered and encoded once in a cache folder."""

import functools
import hashlib
import pathlib
from typing import Any

import tqdm

from data import labels as label_files, phantom, slides
from experiments.run import progress
from kmil_jax import parallel

# The paper's 128-um tiles at half its resolution: a CPU encodes them 4 times
# faster.
_PHANTOM_TILES = {'tile_size': 128, 'tile_mpp': 1.0}
_PATIENCE = 0.5  # Seconds before a bar shows: none where all is there.
_ROOT = pathlib.Path(__file__).parents[1]
# The code that phantom slides, and their features, are a function of.
_SLIDE_CODE = ('data/phantom/*.py',)
_FEATURE_CODE = (
  'data/features.py',
  'data/slides.py',
  'data/pipeline.py',
  'data/tiling.py',
  'data/tissue.py',
  'experiments/encoding/encoder.py',
  'experiments/encoding/extraction.py',
  'experiments/encoding/tiles.py',
  'experiments/phantom_cohort.py',
  'kmil_jax/models/batch_norm.py',
  'kmil_jax/models/convolutions.py',
  'kmil_jax/models/cpu.py',
  'kmil_jax/models/network.py',
  'kmil_jax/models/resnet.py',
  'kmil_jax/port.py',
)


def make(cache_dir: str) -> tuple[pathlib.Path, pathlib.Path]:
  """Renders and encodes the phantom cohort, unless that is done.

  Args:
    cache_dir: every version of the code that makes slides, tiles or features
      has a folder of its own in it.

  Returns:
    The cohort's folder (`slides`, `outlines`, `labels.csv`) and its feature
    folder.

  Raises:
    RuntimeError: if a phantom slide cannot be encoded.
  """
  return _make('phantom', cache_dir)


def make_external(cache_dir: str) -> tuple[pathlib.Path, pathlib.Path]:
  """Renders and encodes the phantom of another hospital, unless that is done.

  The encoder is the main cohort's, batch-norm statistics included: nothing is
  fitted to the external slides. The main cohort is made first where it is not
  there.

  Args:
    cache_dir: as of `make`.

  Returns:
    The external cohort's folder and its feature folder, as of `make`.

  Raises:
    RuntimeError: if a phantom slide cannot be encoded, or the main cohort's
      encoder is no longer beside its features.
  """
  _, main_features_dir = make(cache_dir)
  return _make(
    'phantom_external', cache_dir, main_features_dir, **phantom.EXTERNAL
  )


def _make(
  name: str,
  cache_dir: str,
  encoder_dir: pathlib.Path | None = None,
  **options: Any,
) -> tuple[pathlib.Path, pathlib.Path]:
  """Makes one cohort; see `make`.

  Args:
    name: of the cohort's folder.
    cache_dir: as of `make`.
    encoder_dir: features whose encoder is taken; by default the cohort gets
      one of its own.
    **options: for `phantom.make`.
  """
  root = pathlib.Path(cache_dir).expanduser()
  root = root / f'{name}_{_code_hash(_SLIDE_CODE)}'
  features_dir = root / f'features_{_code_hash(_FEATURE_CODE)}'
  if parallel.is_first():
    if not (root / 'labels.csv').exists():
      print(f'rendering a phantom cohort in {root}', flush=True)
    with progress.bar(unit='slide', desc=name, delay=_PATIENCE) as bar:
      phantom.make(root, progress=functools.partial(_show, bar), **options)
    ids = label_files.read(root / 'labels.csv').slide
    if not all((features_dir / f'{i}.h5').exists() for i in ids):
      _encode(root / 'slides', features_dir, cache_dir, encoder_dir)
  parallel.wait_for_all(name)
  return root, features_dir


def _encode(
  slides_dir: pathlib.Path,
  features_dir: pathlib.Path,
  cache_dir: str,
  encoder_dir: pathlib.Path | None,
) -> None:
  # They import TensorFlow, which takes seconds: only where slides are encoded.
  from experiments.encoding import encoder as encoders, extraction
  from experiments.encoding.tiles import SlideTiles, Tiles

  tiles = Tiles(**_PHANTOM_TILES)
  cohort = SlideTiles(slides.list_slides(slides_dir), tiles)
  file = encoder_dir and encoder_dir / encoders.RANDOM_FILE
  if file and not file.exists():
    raise RuntimeError(
      f'{file}: the encoder that made the features beside it is gone; delete '
      f'{encoder_dir}, and both phantom cohorts are encoded anew'
    )
  encoder = encoders.make_encoder(
    file and str(file),
    features_dir=features_dir,
    cache_dir=cache_dir,
    sample=cohort.sample,
  )
  print(f'encoder {encoder.name}: {encoder.note}', flush=True)
  failures = extraction.extract(cohort, features_dir, encoder)
  if failures:
    raise RuntimeError(f'phantom slides without features: {failures}')


def _show(bar: tqdm.tqdm, done: int, total: int) -> None:
  bar.total = total
  bar.update(done - bar.n)


@functools.cache  # Of the code that runs, whatever is edited meanwhile.
def _code_hash(patterns: tuple[str, ...]) -> str:
  digest = hashlib.sha256()
  for pattern in patterns:
    for path in sorted(_ROOT.glob(pattern)):
      digest.update(path.read_bytes())
  return digest.hexdigest()[:8]
