"""The phantom cohorts, rendered and encoded once in a cache folder."""

import functools
import pathlib
from typing import Any

from data import phantom, slides
from experiments.run import phantoms

# The paper's 128-um tiles at half its resolution: a CPU encodes them 4 times
# faster.
_TILES = {'tile_size': 128, 'tile_mpp': 1.0}
_SLIDE_CODE = ('data/phantom/*.py', 'data/tiff.py')
_FEATURE_CODE = (
  'data/features.py',
  'data/slides.py',
  'data/tiling.py',
  'data/tissue.py',
  'data/torch_files.py',
  'data/weights.py',
  'experiments/bags/phantom.py',
  'experiments/encoding/encoder.py',
  'experiments/encoding/extraction.py',
  'experiments/encoding/tiles.py',
  'kmil_jax/models/batch_norm.py',
  'kmil_jax/models/convolutions.py',
  'kmil_jax/models/cpu.py',
  'kmil_jax/models/network.py',
  'kmil_jax/models/resnet.py',
  'kmil_jax/port.py',
)


def make(cache_dir: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
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
  return _made('phantom', cache_dir, None)


def make_external(cache_dir: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Renders and encodes the phantom of another hospital, unless that is done.

  The encoder is the main cohort's, batch-norm statistics included: nothing is
  fitted to the external slides. The main cohort is made first if absent.

  Returns:
    The external cohort's folder and its feature folder, as of `make`.

  Raises:
    RuntimeError: if a phantom slide cannot be encoded, or the main cohort's
      encoder is no longer beside its features.
  """
  _, encoder_dir = make(cache_dir)
  return _made('phantom_external', cache_dir, encoder_dir, **phantom.EXTERNAL)


def _made(
  name: str,
  cache_dir: pathlib.Path,
  encoder_dir: pathlib.Path | None,
  **look: Any,
) -> tuple[pathlib.Path, pathlib.Path]:
  """Makes one cohort; without `encoder_dir` it has an encoder of its own."""
  render = functools.partial(phantom.make, **look)
  root = phantoms.made(name, _SLIDE_CODE, render, cache_dir, last='labels.csv')
  paths = slides.list_slides(root / 'slides')

  def encode(features_dir: pathlib.Path, progress: Any) -> None:
    del progress  # Extraction shows its own.
    # They import TensorFlow, which takes seconds.
    from experiments.encoding import encoder as encoders, extraction
    from experiments.encoding.tiles import SlideTiles, Tiles

    cohort = SlideTiles(paths, Tiles(**_TILES))
    file = encoder_dir and encoder_dir / encoders.RANDOM_FILE
    if file and not file.exists():
      raise RuntimeError(
        f'{file}: the encoder that made the features beside it is gone. Delete'
        f' {encoder_dir}, and both phantom cohorts are encoded anew.'
      )
    encoder = encoders.make_encoder(
      'resnet50' if file else 'random',
      file and str(file),
      features_dir=features_dir,
      cache_dir=cache_dir,
      sample=cohort.sample,
    )
    if failures := extraction.extract(cohort, features_dir, encoder):
      raise RuntimeError(f'phantom slides without features: {failures}')

  last = f'{slides.slide_id(paths[-1])}.h5'  # They are encoded in order.
  return root, phantoms.made('features', _FEATURE_CODE, encode, root, last=last)
