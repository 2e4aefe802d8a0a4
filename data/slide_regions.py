"""Reads outlines that a user draws: what of a slide counts as tissue."""

from collections.abc import Collection
import pathlib

from data import outlines
from data.labelled_tiles import TileError
from data.slide_files import SlideError


def read(
  folder: pathlib.Path | str, slides: Collection[str]
) -> dict[str, list[outlines.Ring]]:
  """Returns the outlines of slides by slide id.

  Args:
    folder: holds <slide_id>.geojson (QuPath) or .xml (ASAP), see
      `outlines.read`; slides without a file are not in the result.
    slides: ids of all slides.

  Raises:
    SlideError: naming every file that cannot be used: it is damaged, has no
      outlines, is of no slide, or is the second of one.
  """
  folder, found, faults = pathlib.Path(folder), {}, []
  if not folder.is_dir():
    raise SlideError(f'{folder}: no such folder')
  for path in sorted(folder.iterdir()):
    hidden = path.name.startswith('.')  # macOS's own.
    if hidden or path.suffix.lower() not in outlines.EXTENSIONS:
      continue
    if path.stem not in slides:
      faults.append(f'{path}: there is no slide {path.stem}')
    elif path.stem in found:
      faults.append(f'{path}: a second file of slide {path.stem}')
    else:
      try:
        found[path.stem] = outlines.read(path)
      except TileError as e:
        faults.append(str(e))
        continue
      if not found[path.stem]:
        faults.append(f'{path}: no outlines; remove the file to find tissue')
  if not found and not faults:
    faults.append(f'{folder}: no {", ".join(outlines.EXTENSIONS)} of slides')
  if faults:
    raise SlideError('\n'.join(faults))
  return found
