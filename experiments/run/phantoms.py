"""Phantoms, rendered once in a cache that cannot go stale."""

from collections.abc import Callable, Sequence
import functools
import hashlib
import pathlib
from typing import Any

from data import phantom, slides
from experiments.run import progress
from kmil_jax import parallel

_ROOT = pathlib.Path(__file__).parents[2]
_PATIENCE = 0.5  # Seconds before a bar shows: none where all is there.
# The paper's 128-um tiles at half its resolution: a CPU encodes them 4 times
# faster.
_TILES = {'tile_size': 128, 'tile_mpp': 1.0}
_SLIDE_CODE = ('data/phantom/*.py', 'data/tiff.py')
_FEATURE_CODE = (
  'data/ahead.py',
  'data/features.py',
  'data/slides.py',
  'data/tiff_reader.py',
  'data/tiling.py',
  'data/tissue.py',
  'data/torch_files.py',
  'data/weights.py',
  'experiments/encoding/encoder.py',
  'experiments/encoding/extraction.py',
  'experiments/encoding/tiles.py',
  'experiments/run/phantoms.py',
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


def made(
  name: str,
  code: Sequence[str],
  make: Callable[..., object],
  cache_dir: pathlib.Path,
  *,
  last: str,
  unit: str = 'slide',
) -> pathlib.Path:
  """Returns the folder of a phantom; renders it unless that is done.

  Args:
    name: of the phantom.
    code: globs of the files that it is a function of, see `code_hash`. Every
      version of them has a folder of its own.
    make: renders it. Takes the folder and `progress`, a function of how much is
      done and how much there is. Slides that a killed process rendered, it
      leaves.
    cache_dir: holds the folders.
    last: the file that is written last.
    unit: what is counted.
  """
  root = pathlib.Path(cache_dir).expanduser() / f'{name}_{code_hash(*code)}'
  if parallel.is_first() and not (root / last).exists():
    print(f'making {root}', flush=True)
    with progress.bar(unit=unit, desc=name, delay=_PATIENCE) as bar:

      def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

      make(root, progress=show)
  parallel.wait_for_all(name)
  return root


@functools.cache  # Of the code that runs, whatever is edited meanwhile.
def code_hash(*patterns: str) -> str:
  """Returns eight digits of a hash of files, as they were when first asked.

  Args:
    *patterns: globs, relative to the folder that holds the packages.
  """
  digest = hashlib.sha256()
  for pattern in patterns:
    for path in sorted(_ROOT.glob(pattern)):
      digest.update(path.read_bytes())
  return digest.hexdigest()[:8]


def make_cohort(
  cache_dir: pathlib.Path, external: bool = False
) -> tuple[pathlib.Path, pathlib.Path]:
  """Renders and encodes the phantom cohort, unless that is done.

  Args:
    cache_dir: every version of the code that makes slides, tiles or features
      has a folder of its own in it.
    external: that of another hospital.

  Returns:
    The cohort's folder (`slides`, `outlines`, `labels.csv`) and its feature
    folder.

  Raises:
    RuntimeError: if a phantom slide cannot be encoded.
  """
  name, look = 'phantom', {}
  if external:
    name, look = 'phantom_external', phantom.EXTERNAL
  render = functools.partial(phantom.make, **look)
  root = made(name, _SLIDE_CODE, render, cache_dir, last='labels.csv')
  paths = slides.list_slides(root / 'slides')

  def encode(features_dir: pathlib.Path, progress: Any) -> None:
    del progress  # Extraction shows its own.
    # They import TensorFlow, which takes seconds.
    from experiments.encoding import encoder as encoders, extraction
    from experiments.encoding.tiles import SlideTiles, Tiles

    cohort = SlideTiles(paths, Tiles(**_TILES))
    encoder = encoders.make_encoder(encoders.DEFAULT, None, cache_dir=cache_dir)
    if failures := extraction.extract(cohort, features_dir, encoder):
      raise RuntimeError(f'phantom slides without features: {failures}')

  last = f'{slides.slide_id(paths[-1])}.h5'  # They are encoded in order.
  return root, made('features', _FEATURE_CODE, encode, root, last=last)
