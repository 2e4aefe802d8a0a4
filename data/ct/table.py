"""Reads the table of one's own CT volumes: patients, files and labels."""

import collections
from collections.abc import Sequence
import dataclasses
import pathlib
import warnings

from data import files
from data.ct import VolumeError
from data.labels import leaks

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
      and an image of two patients.
  """
  folder = pathlib.Path(folder or pathlib.Path(path).parent)
  rows, problems = [], []
  table = files.read_csv(path, COLUMNS, VolumeError)
  for line, cells in table:
    # Where some cells are empty, pandas writes 1.0 for 1.
    value, label = cells.get(VALUE, '').removesuffix('.0'), cells['label']
    faults = [f'empty {name}' for name in COLUMNS if not cells[name]]
    if label and label not in classes:
      faults.append(
        f'label {label!r}, which is neither of {", ".join(classes)}: correct'
        ' it, or name both with --classes'
      )
    if value and not (value.isdecimal() and int(value)):
      faults.append(f'{VALUE} {value!r}, not a whole number from 1 on')
    paths = [folder / cells[name] for name in COLUMNS[1:3] if cells[name]]
    faults += [
      files.link_fault(path) or f'no file {path}'
      for path in paths
      if not files.exists(path)
    ]
    problems += [f'row {line}: {fault}' for fault in faults]
    if not faults:
      value = int(value) if value else None
      rows.append(Row(cells['patient_id'], *paths, value, label))
  problems += _contradictions(rows) if table else ['no rows']
  if problems:
    raise VolumeError.listing(problems, str(path))
  for line in leaks(row.patient for row in rows):
    warnings.warn(f'{path}: {line}', stacklevel=2)
  return sorted(
    rows, key=lambda r: (r.patient, str(r.image), str(r.mask), r.value or 0)
  )


def _contradictions(rows: Sequence[Row]) -> list[str]:
  """What rows that are right by themselves do not have together."""
  values = collections.defaultdict(list)
  patients = collections.defaultdict(set)
  for row in rows:
    values[row.mask].append(row.value)
    patients[row.image].add(row.patient)
  problems = []
  for mask, of in values.items():
    problems += [
      f'{mask}{f", value {value}" if value else ""}: {times} rows'
      for value, times in collections.Counter(of).items()
      if times > 1
    ]
    if None in of and any(of):
      problems.append(f'{mask}: rows with and without {VALUE}. Give each one.')
  return problems + [
    f'{image}: patients {", ".join(sorted(names))} have the same image'
    for image, names in patients.items()
    if len(names) > 1
  ]
