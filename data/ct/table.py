"""Reads the table of one's own CT volumes: patients, files and labels."""

import collections
from collections.abc import Sequence
import csv
import dataclasses
import pathlib

from data.ct import VolumeError

COLUMNS = ('patient_id', 'image_path', 'mask_path', 'label')
VALUE = 'mask_value'  # An optional column.


@dataclasses.dataclass(frozen=True)
class Row:
  """Nodes of one class in one volume."""

  patient: str
  image: pathlib.Path
  mask: pathlib.Path
  value: int | None  # of the mask; all but 0 if None
  label: str


def read(
  path: str | pathlib.Path,
  classes: Sequence[str],
  folder: str | pathlib.Path | None = None,
) -> list[Row]:
  """Reads a CSV with `COLUMNS`, and `VALUE` where a mask holds both classes.

  Args:
    path: the CSV.
    classes: the labels there may be.
    folder: what paths in the table are relative to; that of the CSV by default.

  Returns:
    Its rows by patient, image, mask and value: their order is immaterial.

  Raises:
    VolumeError: naming all problems at once: missing columns, empty cells,
      files that are not there, unknown labels, nodes that are named twice,
      an image of two patients, and a class of fewer than two patients.
  """
  path = pathlib.Path(path)
  try:
    with path.open(newline='', encoding='utf-8-sig') as f:
      reader = csv.DictReader(f)
      cells = list(reader)
      columns = reader.fieldnames or []
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise VolumeError(f'{path}: cannot be read as CSV: {e}') from e
  if missing := [c for c in COLUMNS if c not in columns]:
    raise VolumeError(
      f'{path}: no column {", ".join(missing)}; found {", ".join(columns)}; a'
      f' header {",".join(COLUMNS)} is needed, and {VALUE} where one mask holds'
      ' nodes of both classes'
    )
  folder = pathlib.Path(folder) if folder else path.parent
  rows, problems = [], []
  for number, row in enumerate(cells, 2):
    row = {k: (row.get(k) or '').strip() for k in (*COLUMNS, VALUE)}
    found = [f'empty {name}' for name in COLUMNS if not row[name]]
    if row['label'] and row['label'] not in classes:
      found.append(
        f'label {row["label"]!r}, which is neither of {", ".join(classes)}'
      )
    if row[VALUE] and not (row[VALUE].isdecimal() and int(row[VALUE])):
      found.append(f'{VALUE} {row[VALUE]!r}; a whole number from 1 on is one')
    files = [folder / row[name] for name in COLUMNS[1:3] if row[name]]
    found += [f'no file {file}' for file in files if not file.exists()]
    problems += [f'row {number}: {problem}' for problem in found]
    if not found:
      value = int(row[VALUE]) if row[VALUE] else None
      rows.append(Row(row['patient_id'], *files, value, row['label']))
  if not cells:
    problems.append('no rows')
  problems += _contradictions(rows)
  # Rows with problems may be what a class lacks.
  for name in classes if not problems else ():
    patients = {row.patient for row in rows if row.label == name}
    if len(patients) < 2:
      what = f'{len(patients)} patients' if not patients else 'one patient only'
      problems.append(f'class {name}: {what}; it cannot be split by patient')
  if problems:
    raise VolumeError.listing(problems, str(path))
  return sorted(
    rows, key=lambda r: (r.patient, str(r.image), str(r.mask), r.value or 0)
  )


def _contradictions(rows: Sequence[Row]) -> list[str]:
  """What rows that are right by themselves do not have together."""
  problems = []
  count = collections.Counter((row.mask, row.value) for row in rows)
  for (mask, value), times in count.items():
    if times > 1:
      of = '' if value is None else f', value {value}'
      problems.append(f'{mask}{of}: {times} rows')
  values = collections.defaultdict(set)
  patients = collections.defaultdict(set)
  for row in rows:
    values[row.mask].add(row.value is None)
    patients[row.image].add(row.patient)
  problems += [
    f'{mask}: rows with and without {VALUE}'
    for mask, kinds in values.items()
    if len(kinds) > 1
  ]
  return problems + [
    f'{image}: patients {", ".join(sorted(names))} have the same image'
    for image, names in patients.items()
    if len(names) > 1
  ]
