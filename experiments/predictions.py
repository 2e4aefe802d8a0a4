"""The probabilities of slides, and the CSV files that keep them."""

from collections.abc import Sequence
import csv
import dataclasses
import pathlib

import numpy as np

from experiments import files
from experiments.provenance import ResultsError

_COLUMNS = ('case_id', 'slide_id', 'fold', 'split', 'label', 'pred')


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Slides of one fold and part with their probabilities."""

  case: np.ndarray  # [n] str
  slide: np.ndarray  # [n] str
  label: np.ndarray  # [n] int
  prob: np.ndarray  # [n, C]

  def __len__(self) -> int:
    return len(self.label)


def write(
  path: pathlib.Path,
  fold: int,
  parts: dict[str, Predictions],
  classes: Sequence[str],
) -> None:
  """Writes the predictions of one fold, atomically."""
  lines = [header(classes)]
  for part, p in parts.items():
    lines += rows(fold, part, p, classes)
  files.write_csv(path, lines)


def header(classes: Sequence[str]) -> list[str]:
  """Columns of a file of predictions."""
  return [*_COLUMNS, *(f'prob_{c}' for c in classes)]


def rows(
  fold: int | str, part: str, p: Predictions, classes: Sequence[str]
) -> list[list]:
  """Rows of a file of predictions; probabilities keep all their digits."""
  lines = []
  for i in range(len(p)):
    pred = classes[p.prob[i].argmax()]
    ids = [p.case[i], p.slide[i], fold, part, classes[p.label[i]], pred]
    lines.append(ids + [repr(float(x)) for x in p.prob[i]])
  return lines


def read(
  path: pathlib.Path,
  classes: Sequence[str],
  parts: Sequence[str] = ('val', 'test'),
) -> dict[str, Predictions]:
  """Reads what `write` wrote, by part; a part without rows is empty.

  Raises:
    ResultsError: if the columns or a label are not those of `classes`, a part
      names a slide twice, or a probability is none.
  """
  try:
    with path.open(newline='', encoding='utf-8') as f:
      reader = csv.DictReader(f)
      lines, columns = list(reader), reader.fieldnames
  except (UnicodeDecodeError, csv.Error) as e:
    raise ResultsError(f'{path}: cannot be read as CSV: {e}') from e
  if columns != header(classes):
    raise ResultsError(
      f'{path}: columns {columns}, not those of the classes'
      f' {", ".join(classes)}; choose another --exp_code, or remove the folder'
    )
  seen = set()
  for number, row in enumerate(lines, 2):
    key = (row['split'], row['slide_id'])
    if key in seen:
      raise ResultsError(
        f'{path}, line {number}: slide {key[1]!r} is in {key[0]!r} twice'
      )
    seen.add(key)
    if row['label'] not in classes:
      raise ResultsError(
        f'{path}, line {number}: label {row["label"]!r} is none of'
        f' {", ".join(classes)}'
      )
    if not all(_is_share(row[f'prob_{c}']) for c in classes):
      raise ResultsError(
        f'{path}, line {number}: a probability is no number from 0 to 1; remove'
        ' the file and run again'
      )
  return {
    part: _of_rows([row for row in lines if row['split'] == part], classes)
    for part in parts
  }


def read_folds(
  folder: pathlib.Path, classes: Sequence[str]
) -> dict[int, dict[str, Predictions]]:
  """Reads the validation and test parts of a folder's finished folds."""
  return {
    fold: read(path, classes)
    for fold, path in _by_fold(folder, 'predictions.csv').items()
  }


def read_external(
  folder: pathlib.Path, classes: Sequence[str]
) -> dict[int, Predictions]:
  """Reads what the models of the folds say of the external cohort."""
  return {
    fold: read(path, classes, ['external'])['external']
    for fold, path in _by_fold(folder, 'external.csv').items()
  }


def pool(parts: Sequence[Predictions]) -> Predictions:
  """Puts predictions of several folds together."""
  return Predictions(
    *(
      np.concatenate([getattr(p, f.name) for p in parts])
      for f in dataclasses.fields(Predictions)
    )
  )


def mean(parts: dict[int, Predictions]) -> Predictions:
  """Averages the probabilities of several models of the same slides.

  Args:
    parts: by fold; slides in any order.

  Returns:
    The slides in the order of their names.

  Raises:
    ResultsError: if two folds differ in a slide, its case or its label.
  """
  (first_fold, first), *others = parts.items()
  first = by_slide(first)
  total = first.prob.astype(float)
  for fold, p in others:
    if differ := differences(first, p):
      raise ResultsError(
        f'external cohort: folds {first_fold} and {fold} differ:\n  '
        + '\n  '.join(differ)
        + '\nremove fold_*/external.csv and run again'
      )
    total += by_slide(p).prob
  return dataclasses.replace(first, prob=total / len(parts))


def by_slide(p: Predictions) -> Predictions:
  """Returns the same predictions in the order of slide names."""
  order = np.argsort(p.slide, kind='stable')
  return Predictions(
    *(getattr(p, f.name)[order] for f in dataclasses.fields(Predictions))
  )


def differences(
  one: Predictions, other: Predictions, limit: int = 3
) -> list[str]:
  """Says where slides, cases or labels differ, whatever the order.

  Returns:
    Up to `limit` lines, each of one slide; none if all agree.
  """
  known = [
    {
      str(slide): (str(case), int(label))
      for slide, case, label in zip(p.slide, p.case, p.label, strict=True)
    }
    for p in (one, other)
  ]
  lines = []
  for name in sorted(known[0] | known[1]):
    first, second = (table.get(name) for table in known)
    if first is None or second is None:
      side = 'second' if first is None else 'first'
      lines.append(f'slide {name!r}: in the {side} only')
    elif first[0] != second[0]:
      lines.append(f'slide {name!r}: case {first[0]!r} or {second[0]!r}')
    elif first[1] != second[1]:
      lines.append(f'slide {name!r}: class {first[1]} or {second[1]}')
    if len(lines) == limit:
      break
  return lines


def _is_share(text: str | None) -> bool:
  try:
    return 0 <= float(text or 'nan') <= 1
  except ValueError:
    return False


def _of_rows(lines: list[dict], classes: Sequence[str]) -> Predictions:
  prob = [[float(row[f'prob_{c}']) for c in classes] for row in lines]
  return Predictions(
    case=np.array([row['case_id'] for row in lines], str),
    slide=np.array([row['slide_id'] for row in lines], str),
    label=np.array([classes.index(row['label']) for row in lines], int),
    prob=np.array(prob, float).reshape(-1, len(classes)),
  )


def _by_fold(folder: pathlib.Path, name: str) -> dict[int, pathlib.Path]:
  """Paths of one file of each fold that has it, in the order of folds."""
  found = {
    int(path.parent.name.removeprefix('fold_')): path
    for path in folder.glob(f'fold_*/{name}')
  }
  return dict(sorted(found.items()))
