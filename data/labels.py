"""The table of slides: which case each belongs to and what its label is."""

import collections
import dataclasses
import pathlib
import re

import numpy as np

from data import files

COLUMNS = ('case_id', 'slide_id', 'label')
# File systems take 255; what is put before and after an id takes the rest.
_LONGEST_ID = 180
_CONTROL = re.compile(r'[\x00-\x1f\x7f]')


class ManifestError(ValueError):
  """A table that cannot be used; names the file and the rows."""


@dataclasses.dataclass(frozen=True)
class Manifest:
  """Slides in the order of their ids, so that the file's order is immaterial.

  All columns are strings: ids keep leading zeros and dots.
  """

  case: np.ndarray  # [n] str
  slide: np.ndarray  # [n] str, unique, ascending
  label: np.ndarray  # [n] str

  def subset(self, rows: np.ndarray) -> 'Manifest':
    """Returns the slides at `rows`, a bool or index array."""
    return Manifest(self.case[rows], self.slide[rows], self.label[rows])


def read(path: str | pathlib.Path) -> Manifest:
  """Reads a CSV with the columns case_id, slide_id and label.

  Further columns are ignored; all rows' faults are reported at once.

  Raises:
    ManifestError: if a column is missing or there twice, a cell empty or beyond
      the header's, a slide repeated or its id no file name.
  """
  table, faults = scan(path)
  if faults:
    raise ManifestError(f'{path}: ' + '; '.join(faults))
  return table


def scan(path: str | pathlib.Path) -> tuple[Manifest, list[str]]:
  """Reads what can be used of a CSV, and lists what cannot; see `read`.

  Returns:
    The sound rows, of a repeated slide the first, and all faults.

  Raises:
    ManifestError: if the file cannot be read or a column is missing.
  """
  rows = files.read_csv(path, COLUMNS, ManifestError)
  faults, sound = [], {}
  for line, row in rows:
    wrong = [
      f'{"a control character in" if row[c] else "empty"} {c}'
      for c in COLUMNS
      if not row[c] or _CONTROL.search(row[c])  # NumPy drops NUL, merging ids.
    ]
    # A comma in a label that is not quoted: it would lose its end.
    if any(cell.strip() for cell in row.get(None, ())):
      wrong.append('more cells than the header has; quote what holds a comma')
    faults += [f'row {line}: {fault}' for fault in wrong]
    if not wrong and not _wrong_name(row['slide_id']):
      sound.setdefault(row['slide_id'], [row[c] for c in COLUMNS])
  count = collections.Counter(row['slide_id'] for _, row in rows)
  faults += [f'slide {s}: {k} rows' for s, k in count.items() if k > 1 and s]
  faults += [f'slide {s[:80]}: {why}' for s in count if (why := _wrong_name(s))]
  if not rows:
    faults.append('no rows')
  cells = np.array([sound[slide] for slide in sorted(sound)], str)
  return Manifest(*cells.reshape(-1, len(COLUMNS)).T), faults


def column(
  path: str | pathlib.Path, name: str, manifest: Manifest
) -> np.ndarray:
  """Reads a further column of the file that `manifest` was read from.

  Returns:
    The cells of the manifest's slides, str [n].

  Raises:
    ManifestError: if there is no such column, or naming slides without a cell.
  """
  rows = files.read_csv(path, ('slide_id', name), ManifestError)
  cells = {row['slide_id']: row[name] for _, row in rows}
  slides = manifest.slide.tolist()
  if empty := [slide for slide in slides if not cells[slide]]:
    raise ManifestError(
      f'{path}: column {name}: {len(empty)} empty cells, of'
      f' {files.first_of(empty)}'
    )
  return np.array([cells[slide] for slide in slides], str)


def _wrong_name(slide: str) -> str:
  """Returns why an id cannot name files; '' if it can."""
  if '/' in slide or '\\' in slide or slide in ('.', '..'):
    return 'an id is a file name, without folders'
  if len(slide.encode('utf-8', 'surrogatepass')) > _LONGEST_ID:
    return f'an id has at most {_LONGEST_ID} bytes, as it names files'
  return ''


def relabel(manifest: Manifest, mapping: dict[str, str]) -> Manifest:
  """Renames labels and drops the slides whose label is not in `mapping`.

  Raises:
    ManifestError: if `mapping` names a label that no slide has.
  """
  unknown = sorted(set(mapping) - set(manifest.label))
  if unknown:
    raise ManifestError(
      f'no slide has the label {", ".join(unknown)}; labels are'
      f' {", ".join(sorted(set(manifest.label)))}'
    )
  kept = manifest.subset(np.isin(manifest.label, list(mapping)))
  label = np.array([mapping[x] for x in kept.label])
  return dataclasses.replace(kept, label=label)
