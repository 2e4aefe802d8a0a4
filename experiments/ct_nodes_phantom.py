"""The CT phantom, rendered once in a cache folder."""

import functools
import hashlib
import pathlib

import tqdm

from data.phantom import ct as phantom
from experiments.run import progress
from kmil_jax import parallel

_PATIENCE = 0.5  # Seconds before a bar shows: none where all is there.
_ROOT = pathlib.Path(__file__).parents[1]
# The code that the phantom's volumes are a function of.
_CODE = (
  'data/ct/volumes.py',
  'data/phantom/ct.py',
  'data/phantom/texture.py',
)


def make(cache_dir: str, patients: int = phantom.PATIENTS) -> pathlib.Path:
  """Renders the phantom, unless that is done.

  Args:
    cache_dir: every version of the code has a folder of its own in it.
    patients: how many there are.

  Returns:
    The path of its `labels.csv`.
  """
  root = pathlib.Path(cache_dir).expanduser()
  root = root / f'ct_phantom_{_code_hash()}_{patients}'
  if parallel.is_first():
    if not (root / 'labels.csv').exists():
      print(f'rendering a CT phantom in {root}', flush=True)
    with progress.bar(unit='patient', desc='phantom', delay=_PATIENCE) as bar:
      phantom.make(
        root, patients=patients, progress=functools.partial(_show, bar)
      )
  parallel.wait_for_all('ct_phantom')
  return root / 'labels.csv'


def _show(bar: tqdm.tqdm, done: int, total: int) -> None:
  bar.total = total
  bar.update(done - bar.n)


@functools.cache  # Of the code that runs, whatever is edited meanwhile.
def _code_hash() -> str:
  digest = hashlib.sha256()
  for name in _CODE:
    digest.update((_ROOT / name).read_bytes())
  return digest.hexdigest()[:8]
