"""Names what code makes by the code itself, so that caches never go stale."""

import functools
import hashlib
import pathlib

_ROOT = pathlib.Path(__file__).parents[1]


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
