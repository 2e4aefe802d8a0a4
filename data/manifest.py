"""The table of slides: which case each belongs to and what its label is."""

import collections
import csv
import dataclasses
import pathlib
import re

import numpy as np

from data import atomic

COLUMNS = ('case_id', 'slide_id', 'label')
# File systems take 255; what is put before and after an id takes the rest.
_LONGEST_ID = 180
_SHOWN = 5  # Slides listed in an error.
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
  """Reads what can be used of a CSV, and says what cannot; see `read`.

  Returns:
    The sound rows, of a repeated slide the first, and all faults.

  Raises:
    ManifestError: if the file cannot be read or a column is missing.
  """
  path = pathlib.Path(path)
  try:
    with path.open(newline='', encoding='utf-8-sig') as f:
      reader = csv.DictReader(f)
      rows = list(reader)
      columns = reader.fieldnames or []
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise ManifestError(f'{path}: cannot be read as CSV: {e}') from e
  missing = [c for c in COLUMNS if c not in columns]
  if missing:
    raise ManifestError(
      f'{path}: no column {", ".join(missing)}; found {", ".join(columns)};'
      f' a header {",".join(COLUMNS)} is needed'
    )
  twice = [c for c in COLUMNS if columns.count(c) > 1]
  if twice:
    raise ManifestError(f'{path}: several columns {", ".join(twice)}')
  cells = [[(row[c] or '').strip() for c in COLUMNS] for row in rows]
  faults, sound = [], {}
  for i, row in enumerate(cells, 2):
    found = [
      f'row {i}: {"a control character in" if cell else "empty"} {COLUMNS[j]}'
      for j, cell in enumerate(row)
      if not cell or _CONTROL.search(cell)  # NumPy drops NUL and merges ids.
    ]
    # A comma in a label that is not quoted: it would lose its end.
    if any(cell.strip() for cell in rows[i - 2].get(None, ())):
      found.append(
        f'row {i}: more cells than the header has; quote what holds a comma'
      )
    faults += found
    if not found and not _wrong_name(row[1]):
      sound.setdefault(row[1], row)
  count = collections.Counter(row[1] for row in cells)
  faults += [f'slide {s}: {k} rows' for s, k in count.items() if k > 1 and s]
  faults += [f'slide {s[:80]}: {why}' for s in count if (why := _wrong_name(s))]
  if not rows:
    faults.append('no rows')
  kept = [sound[slide] for slide in sorted(sound)]
  columns = zip(*kept, strict=True) if kept else [()] * len(COLUMNS)
  return Manifest(*(np.array(column, str) for column in columns)), faults


def column(
  path: str | pathlib.Path, name: str, manifest: Manifest
) -> np.ndarray:
  """Reads a further column of the file that `manifest` was read from.

  Returns:
    The cells of the manifest's slides, str [n].

  Raises:
    ManifestError: if there is no such column, or naming slides without a cell.
  """
  with pathlib.Path(path).open(newline='', encoding='utf-8-sig') as f:
    reader = csv.DictReader(f)
    cells = {
      (row['slide_id'] or '').strip(): (row.get(name) or '').strip()
      for row in reader
    }
    columns = reader.fieldnames or []
  if name not in columns:
    raise ManifestError(f'{path}: no column {name}; found {", ".join(columns)}')
  empty = [slide for slide in manifest.slide.tolist() if not cells[slide]]
  if empty:
    raise ManifestError(
      f'{path}: column {name}: {len(empty)} empty cells, of'
      f' {", ".join(empty[:_SHOWN])}'
    )
  return np.array([cells[slide] for slide in manifest.slide.tolist()], str)


def _wrong_name(slide: str) -> str:
  """Says why an id cannot name files; '' if it can."""
  if '/' in slide or '\\' in slide or slide in ('.', '..'):
    return 'an id is a file name, without folders'
  if len(slide.encode('utf-8', 'surrogatepass')) > _LONGEST_ID:
    return f'an id has at most {_LONGEST_ID} bytes, as it names files'
  return ''


def write(path: str | pathlib.Path, manifest: Manifest) -> None:
  """Writes the table as `read` reads it."""
  with (
    atomic.replacing(path) as part,
    part.open('w', newline='', encoding='utf-8') as f,
  ):
    writer = csv.writer(f)
    writer.writerow(COLUMNS)
    writer.writerows(
      zip(manifest.case, manifest.slide, manifest.label, strict=True)
    )


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
