"""Hashes of files in a `sha256.json` beside them: what was changed shows."""

from collections.abc import Mapping
import hashlib
import json
import pathlib

SUMS = 'sha256.json'


def of_file(path: pathlib.Path) -> str:
  """Returns the hash of a file."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def to_json(files: Mapping[str, bytes]) -> str:
  """Returns what stands in `sha256.json` of files of such content."""
  sums = {name: hashlib.sha256(files[name]).hexdigest() for name in files}
  return json.dumps(sums, indent=2)


def damage(
  folder: pathlib.Path, only: str | None = None
) -> pathlib.Path | None:
  """Returns a file that is missing or changed, None if none is.

  Args:
    folder: of the files. Of an older version, without hashes, all are sound.
    only: the name of the one file that is asked for; by default all are.
  """
  try:
    sums = json.loads((folder / SUMS).read_bytes())
    for name, sha256 in sums.items():
      path = folder / name
      if only in (None, name) and (
        not path.is_file() or of_file(path) != sha256
      ):
        return path
  except FileNotFoundError:
    return None
  except (OSError, ValueError, AttributeError, RecursionError):
    return folder / SUMS
  return None
