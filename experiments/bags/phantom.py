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
  'data/tiff_reader.py',
  'data/tiling.py',
  'data/tissue.py',
  'data/torch_files.py',
  'data/weights.py',
  'experiments/bags/phantom.py',
  'experiments/encoding/encoder.py',
  'experiments/encoding/extraction.py',
  'experiments/encoding/tiles.py',
  'kmil_jax/augment.py',
  'kmil_jax/models/batch_norm.py',
  'kmil_jax/models/convolutions.py',
  'kmil_jax/models/cpu.py',
  'kmil_jax/models/efficientnet.py',
  'kmil_jax/models/mobilenet.py',
  'kmil_jax/models/network.py',
  'kmil_jax/port.py',
  'kmil_jax/types.py',
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
  return _made('phantom', cache_dir)


def make_external(cache_dir: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Renders and encodes the phantom of another hospital, as `make`."""
  return _made('phantom_external', cache_dir, **phantom.EXTERNAL)


def _made(
  name: str, cache_dir: pathlib.Path, **look: Any
) -> tuple[pathlib.Path, pathlib.Path]:
  render = functools.partial(phantom.make, **look)
  root = phantoms.made(name, _SLIDE_CODE, render, cache_dir, last='labels.csv')
  paths = slides.list_slides(root / 'slides')

  def encode(features_dir: pathlib.Path, progress: Any) -> None:
    del progress  # Extraction shows its own.
    # They import TensorFlow, which takes seconds.
    from experiments.encoding import encoder as encoders, extraction
    from experiments.encoding.tiles import SlideTiles, Tiles

    cohort = SlideTiles(paths, Tiles(**_TILES))
    encoder = encoders.make_encoder(
      encoders.DEFAULT,
      None,
      features_dir=features_dir,
      cache_dir=cache_dir,
      sample=tuple,  # Not called: of random encoders.
    )
    if failures := extraction.extract(cohort, features_dir, encoder):
      raise RuntimeError(f'phantom slides without features: {failures}')

  last = f'{slides.slide_id(paths[-1])}.h5'  # They are encoded in order.
  return root, phantoms.made('features', _FEATURE_CODE, encode, root, last=last)
