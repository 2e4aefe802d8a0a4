"""Reads the scales that a user gives for single slides."""

import csv
import pathlib

from data.pixel_size import MPP_RANGE
from data.slide_files import SlideError

_COLUMNS = ('slide_id', 'mpp')


def read(path: pathlib.Path | str) -> dict[str, float]:
  """Returns um/px of level 0 by slide id.

  Args:
    path: CSV with the columns slide_id and mpp; others are ignored, and so are
      rows without an mpp. A table of labels may have the column.

  Raises:
    SlideError: if the file cannot be read, or naming all wrong rows.
  """
  path = pathlib.Path(path)
  try:
    with path.open(newline='', encoding='utf-8-sig') as f:
      reader = csv.DictReader(f)
      rows = list(reader)
      missing = [c for c in _COLUMNS if c not in (reader.fieldnames or ())]
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise SlideError(f'{path}: cannot be read as CSV: {e}') from e
  if missing:
    raise SlideError(f'{path}: no column {", ".join(missing)}')
  found, faults = {}, []
  low, high = MPP_RANGE
  for i, row in enumerate(rows, 2):
    slide, text = ((row[c] or '').strip() for c in _COLUMNS)
    if not text:
      continue
    try:
      mpp = float(text)
    except ValueError:
      mpp = 0.0
    if not low <= mpp <= high:
      faults.append(f'row {i}: mpp {text!r}, not {low:g} to {high:g} um/px')
    elif not slide:
      faults.append(f'row {i}: empty slide_id')
    elif found.setdefault(slide, mpp) != mpp:
      faults.append(f'row {i}: slide {slide} has another mpp above')
  if faults:
    raise SlideError(f'{path}: ' + '; '.join(faults))
  return found
