"""The table of slides: which case each belongs to and what its label is."""

import collections
import csv
import dataclasses
import pathlib

import numpy as np

COLUMNS = ('case_id', 'slide_id', 'label')


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
    ManifestError: if a column is missing, a cell empty or a slide repeated.
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
  cells = [[(row[c] or '').strip() for c in COLUMNS] for row in rows]
  faults = [
    f'row {i}: {"a NUL byte in" if cell else "empty"} {COLUMNS[j]}'
    for i, row in enumerate(cells, 2)
    for j, cell in enumerate(row)
    if not cell or '\0' in cell  # NumPy would drop it and merge ids.
  ]
  count = collections.Counter(row[1] for row in cells)
  faults += [f'slide {s}: {k} rows' for s, k in count.items() if k > 1 and s]
  faults += [
    f'slide {s}: an id is a file name, without folders'
    for s in count
    if '/' in s or '\\' in s or s in ('.', '..')
  ]
  if not rows:
    faults.append('no rows')
  if faults:
    raise ManifestError(f'{path}: ' + '; '.join(faults))
  cells.sort(key=lambda row: row[1])
  return Manifest(*(np.array(column) for column in zip(*cells, strict=True)))


def write(path: str | pathlib.Path, manifest: Manifest) -> None:
  """Writes the table as `read` reads it."""
  with pathlib.Path(path).open('w', newline='', encoding='utf-8') as f:
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
