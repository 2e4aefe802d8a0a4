"""Finds feature files in the folders that CLAM, TRIDENT and STAMP write."""

from collections.abc import Iterator
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from data import digests, features as feature_files
from data.features import FeatureError, FeatureFile, Header

_DEPTH = 2  # Folders between the one given and the files.
_H5, _PT = feature_files.SUFFIXES
_TRIDENT = 'features_'  # And the encoder's name.


class Folder:
  """A folder of feature files, <slide_id>.h5 or, failing that, <slide_id>.pt.

  Slide ids are file names less that last extension: they keep dots and leading
  zeros.
  """

  def __init__(self, path: Path | str):
    """Opens the folder at or below `path`, see `locate`.

    Raises:
      FeatureError: if there is none, or several.
    """
    self.path = locate(Path(path))

  def __contains__(self, slide_id: str) -> bool:
    return self.file(slide_id).exists()

  def ids(self) -> list[str]:
    """Returns the ids of all files, sorted."""
    return sorted({path.stem for path in _files(self.path)})

  def file(self, slide_id: str) -> Path:
    """Returns where a slide's file is, or would be."""
    path = self.path / f'{slide_id}{_H5}'
    other = self.path / f'{slide_id}{_PT}'
    return other if not path.exists() and other.exists() else path

  def header(self, slide_id: str) -> Header:
    """See `data.features.header`; the encoder may be the folder's."""
    found = feature_files.header(self.file(slide_id))
    return dataclasses.replace(found, attributes=self._named(found.attributes))

  def read(self, slide_id: str, level0_mpp: float | None = None) -> FeatureFile:
    """See `data.features.read`; the encoder may be the folder's."""
    found = feature_files.read(self.file(slide_id), level0_mpp)
    return dataclasses.replace(found, attributes=self._named(found.attributes))

  def digest(self, slide_id: str) -> str:
    """Returns a hash of the file's size, first and last megabyte."""
    return digests.of_edges(self.file(slide_id))

  def _named(self, attributes: dict[str, Any]) -> dict[str, Any]:
    """Adds the encoder that TRIDENT names in the folder alone."""
    if not self.path.name.startswith(_TRIDENT):
      return attributes
    return {'encoder': self.path.name.removeprefix(_TRIDENT)} | attributes


def locate(path: Path) -> Path:
  """Returns the folder of feature files at or below a path.

  The path itself, if it holds .h5 or .pt files; else the only folder, at most
  two levels down, that is called h5_files (CLAM; or pt_files, where it is not
  beside h5_files) or features_<encoder> (TRIDENT), or whose first file has
  features (STAMP). The path, again, where there is none: its slides are then
  reported missing.

  Raises:
    FeatureError: if there is no such folder, or naming those below it, if they
      are several.
  """
  if not path.is_dir():
    raise FeatureError(f'{path}: no such folder of features')
  if next(_files(path), None) is not None:
    return path
  below = sorted(set(_candidates(path)))
  if len(below) > 1:
    names = '\n  '.join(map(str, below))
    raise FeatureError(
      f'{path}: holds {len(below)} folders of features; give one of them as'
      f' --features_dir:\n  {names}'
    )
  return below[0] if below else path


def _candidates(path: Path) -> Iterator[Path]:
  for depth in range(1, _DEPTH + 1):
    for folder in path.glob('/'.join('*' * depth)):
      hidden = any(p.startswith('.') for p in folder.relative_to(path).parts)
      if hidden or not folder.is_dir():
        continue
      first = min(_files(folder), default=None)
      if first is None:
        continue
      if folder.name == 'pt_files' and _holds(folder.parent / 'h5_files'):
        continue
      named = folder.name in ('h5_files', 'pt_files')
      if named or folder.name.startswith(_TRIDENT) or _has_rows(first):
        yield folder


def _files(folder: Path) -> Iterator[Path]:
  """Yields the feature files of a folder, in no order."""
  with contextlib.suppress(OSError):
    for path in folder.iterdir():
      if path.suffix in (_H5, _PT) and not path.name.startswith('.'):
        yield path


def _holds(folder: Path) -> bool:
  return next(_files(folder), None) is not None


def _has_rows(path: Path) -> bool:
  with contextlib.suppress(FeatureError):
    return feature_files.header(path).width > 0
  return False
