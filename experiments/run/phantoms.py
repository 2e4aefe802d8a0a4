"""Phantoms, rendered once in a cache that cannot go stale."""

from collections.abc import Callable, Sequence
import functools
import hashlib
import pathlib

from experiments.run import progress
from kmil_jax import parallel

_ROOT = pathlib.Path(__file__).parents[2]
_PATIENCE = 0.5  # Seconds before a bar shows: none where all is there.


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
      done and how much there is. What a killed process rendered it leaves.
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
