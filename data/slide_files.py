"""Finds slide files in a folder and names the slides."""

import hashlib
from pathlib import Path

import openslide

from data import digests

# What OpenSlide 4 opens (https://openslide.org/formats/).
EXTENSIONS = frozenset(
  '.bif .czi .dcm .mrxs .ndpi .scn .svs .svslide .tif .tiff .vms .vmu'.split()
)


class SlideError(Exception):
  """A slide cannot be used: its name, what was found, and what to do."""


def slide_id(path: Path | str) -> str:
  """Returns the file name less its last extension, if that is a slide's.

  'TCGA-3C.01Z.svs' gives 'TCGA-3C.01Z', '007.tiff' gives '007', and a DICOM
  folder 'case.3' keeps its whole name.
  """
  path = Path(path)
  return path.stem if path.suffix.lower() in EXTENSIONS else path.name


def digest(path: Path) -> str:
  """Returns a hash that tells a slide from others of its name.

  It is of the edges of the file, or of those of all files of a DICOM folder.
  """
  files = [path]
  if path.is_dir():
    files = sorted(p for p in path.iterdir() if p.is_file())
  edges = ''.join(map(digests.of_edges, files))
  return hashlib.sha256(edges.encode()).hexdigest()[:16]


def list_slides(folder: Path | str) -> list[Path]:
  """Returns every slide under a folder, sorted by path.

  Files count by extension, in subfolders too; names that start with a dot are
  ignored. The DICOM files of one series are one slide: it is named by their
  folder if that lies below `folder` and holds no other slide, and by the first
  file of the series otherwise.

  Raises:
    SlideError: if the folder is absent, or two slides have the same id, so that
      their features would overwrite each other.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise SlideError(f'{folder}: no such folder of slides; check --slides_dir.')
  slides, dicom, dicom_slides = [], {}, []
  for path in sorted(folder.rglob('*')):
    hidden = any(p.startswith('.') for p in path.relative_to(folder).parts)
    extension = path.suffix.lower()
    if hidden or extension not in EXTENSIONS or not path.is_file():
      continue
    if extension == '.dcm':
      dicom.setdefault(path.parent, []).append(path)
    else:
      slides.append(path)
  for parent, paths in dicom.items():
    series = _first_of_each_series(paths)
    shared = any(slide.parent == parent for slide in slides)
    alone = parent != folder and len(series) == 1 and not shared
    dicom_slides += [parent] if alone else series
  ids = {}
  for path in sorted(slides + dicom_slides):
    other = ids.setdefault(slide_id(path), path)
    if other != path:
      raise SlideError(
        f'{path.name}: has the same slide id, {slide_id(path)!r}, as {other}; '
        'rename one of them.'
      )
  return list(ids.values())


def _first_of_each_series(paths: list[Path]) -> list[Path]:
  """Returns the first DICOM file of each series; an unreadable one is kept."""
  first = {}
  for path in paths:
    try:
      with openslide.OpenSlide(path) as handle:
        key = handle.properties['openslide.quickhash-1']  # Of the series.
    except (openslide.OpenSlideError, KeyError):
      key = path  # Listed, so that whoever opens it reports it.
    first.setdefault(key, path)
  return list(first.values())
