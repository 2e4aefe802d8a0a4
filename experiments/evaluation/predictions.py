"""The probabilities of slides, and the CSV files that keep them."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from experiments.run.results import Folder, ResultsError

VALIDATION = 'validation_predictions.csv'
TEST = 'predictions.csv'
EXTERNAL = 'external.csv'
CASES = 'predictions_cases.csv'
# Files of a fold, by the part whose slides they hold, in the order they are
# written. The first edition had the rows of `val` in the second, too.
FILES = {'val': VALIDATION, 'test': TEST, 'external': EXTERNAL}
JOINED = ('mean', 'max')  # How the slides of a case become one.
_KNOWN = ('case_id', 'slide_id', 'fold', 'split', 'label')


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Slides of one fold and part with their probabilities."""

  case: np.ndarray  # [n] str
  slide: np.ndarray  # [n] str
  label: np.ndarray  # [n] int
  prob: np.ndarray  # [n, C]

  def __len__(self) -> int:
    return len(self.label)

  def take(self, rows: np.ndarray) -> 'Predictions':
    """Returns some of the slides, by place or as bool [n]."""
    return Predictions(*(column[rows] for column in vars(self).values()))


def write(
  folder: Folder,
  fold: int,
  parts: dict[str, Predictions],
  classes: Sequence[str],
) -> None:
  """Writes the predictions of one fold into its folder, a file per part."""
  for part, name in FILES.items():
    if part in parts:
      folder.write(name, rows({fold: parts[part]}, part, classes))


def rows(
  folds: dict[Any, Predictions], part: str, classes: Sequence[str]
) -> list[list]:
  """Returns rows of a file, header first; probabilities keep all digits.

  Args:
    folds: a part of each fold, by its number.
    part: its name.
    classes: C names.
  """
  lines, prob = [], []
  for fold, p in folds.items():
    prob += [*p.prob]
    for case, slide, label in zip(p.case, p.slide, p.label, strict=True):
      lines.append([case, slide, fold, part, classes[label]])
  return table(_KNOWN, lines, prob, classes)


def table(
  known: Sequence[str],
  lines: Sequence[Sequence[Any]],
  prob: Sequence[np.ndarray],
  classes: Sequence[str],
) -> list[list]:
  """Returns rows of slides, header first: what is known, what is predicted.

  Args:
    known: names of the first columns.
    lines: their cells, of each slide.
    prob: [C] of each.
    classes: C names.
  """
  rows = [[*known, 'pred', *(f'prob_{c}' for c in classes)]]
  for line, p in zip(lines, prob, strict=True):
    rows.append([*line, classes[p.argmax()], *(repr(float(x)) for x in p)])
  return rows


def read(folder: Folder, part: str, classes: Sequence[str]) -> Predictions:
  """Returns what `write` wrote of a part; no slides if there are no rows.

  Raises:
    ResultsError: if the file is missing or has rows of other parts alone, its
      columns or a label are not those of `classes`, it names a slide twice, or
      a probability is none.
  """
  name = FILES[part]
  # The first edition had no file of its own for validation.
  if part == 'val' and not folder.at(name).exists():
    name = TEST
  path, lines = folder.at(name), folder.read(name)
  columns = table(_KNOWN, (), (), classes)[0]
  seen, again = set(), ' Remove the file and run again.'
  for number, row in enumerate(lines, 2):
    where = f'{path}, line {number}'
    if list(row) != columns:
      raise ResultsError(
        f'{path}: its columns are not those of the classes'
        f' {", ".join(classes)}. Choose another --exp_code, or remove the'
        ' folder.'
      )
    key = row['split'], row['slide_id']
    if key in seen:
      raise ResultsError(
        f'{where}: slide {key[1]!r} is in {key[0]!r} twice.{again}'
      )
    seen.add(key)
    if row['label'] not in classes:
      raise ResultsError(
        f'{where}: label {row["label"]!r} is none of {", ".join(classes)}.'
        + again
      )
    if not all(_is_share(row[f'prob_{c}']) for c in classes):
      raise ResultsError(
        f'{where}: a probability is no number from 0 to 1.{again}'
      )
  others = [row for row in lines if row['split'] != part]
  lines = [row for row in lines if row['split'] == part]
  if name == TEST and others and not lines:
    raise ResultsError(f'{path}: no rows of the split {part!r}.{again}')
  column = lambda name: np.array([row[name] for row in lines], str)
  prob = [[float(row[f'prob_{c}']) for c in classes] for row in lines]
  return Predictions(
    case=column('case_id'),
    slide=column('slide_id'),
    label=np.array([classes.index(row['label']) for row in lines], int),
    prob=np.array(prob, float).reshape(-1, len(classes)),
  )


class Folds(dict[int, dict[str, Predictions]]):
  """The validation and test parts, 'val' and 'test', of folds by number.

  The test part has no slides where nothing is tested (--k=1).
  """

  @property
  def evaluated(self) -> dict[int, Predictions]:
    """What each fold is judged by, see `evaluated`."""
    return {fold: evaluated(parts) for fold, parts in self.items()}

  @property
  def pooled(self) -> Predictions:
    """These of all folds together."""
    return pool([*self.evaluated.values()])


def read_folds(folder: Folder, classes: Sequence[str]) -> Folds:
  """Returns what a folder's finished folds predict.

  Raises:
    ResultsError: see `read`; or if a fold has a test part but no rows of it.
  """
  folds = Folds()
  for fold, of_fold in _folds(folder, TEST).items():
    parts = {part: read(of_fold, part, classes) for part in ('val', 'test')}
    if not len(parts['test']):
      splits = folder.read(f'splits/splits_{fold}.csv')
      if any(row.get('test') for row in splits):
        raise ResultsError(
          f"{of_fold.at(TEST)}: no rows of the split 'test'. Remove the file"
          ' and run again.'
        )
    folds[fold] = parts
  return folds


def evaluated(parts: Mapping[str, Predictions]) -> Predictions:
  """Returns the test part of a fold, or validation if nothing is tested."""
  return parts['test'] if len(parts['test']) else parts['val']


def read_external(
  folder: Folder, classes: Sequence[str]
) -> dict[int, Predictions]:
  """Returns the predictions of each fold's model for the second cohort."""
  return {
    fold: read(of_fold, 'external', classes)
    for fold, of_fold in _folds(folder, EXTERNAL).items()
  }


def pool(parts: Sequence[Predictions]) -> Predictions:
  """Puts predictions of several folds together."""
  columns = zip(*(vars(p).values() for p in parts), strict=True)
  return Predictions(*map(np.concatenate, columns))


def of_cases(p: Predictions, how: str) -> Predictions:
  """Joins the slides of each case.

  Args:
    p: of one fold, or of folds that share no case.
    how: 'mean' of the probabilities of its slides, or 'max' of each class, in
      shares of their sum.

  Returns:
    The cases in order. The label of a case with slides of several classes is
    -1. Its slide is the surest of the class that is predicted for the case.
  """
  cases, place = np.unique(p.case, return_inverse=True)
  prob = np.empty((len(cases), p.prob.shape[1]))
  label, slide = np.empty(len(cases), int), np.empty(len(cases), p.slide.dtype)
  for i in range(len(cases)):
    rows = np.flatnonzero(place == i)
    joined = p.prob[rows].mean(0) if how == 'mean' else p.prob[rows].max(0)
    prob[i] = joined / joined.sum()
    slide[i] = p.slide[rows[p.prob[rows, prob[i].argmax()].argmax()]]
    known = set(p.label[rows].tolist())
    label[i] = known.pop() if len(known) == 1 else -1
  return Predictions(case=cases, slide=slide, label=label, prob=prob)


def case_rows(
  folds: dict[Any, Predictions], classes: Sequence[str]
) -> list[list]:
  """Returns rows of `CASES`, header first.

  Args:
    folds: evaluated slides of each fold, by its number.
    classes: C names.
  """
  header, ways = ['case_id', 'fold', 'slides', 'label', 'top_slide'], JOINED
  for way in ways:
    header += [f'pred_{way}', *(f'prob_{way}_{c}' for c in classes)]
  lines = [header]
  for fold, p in folds.items():
    both = [of_cases(p, way) for way in ways]
    for i, case in enumerate(both[0].case):
      slides = (p.case == case).sum()
      label = both[0].label[i]
      label = classes[label] if label >= 0 else ''
      line = [case, fold, slides, label, both[0].slide[i]]
      for way in both:
        line.append(classes[way.prob[i].argmax()])
        line += [repr(float(x)) for x in way.prob[i]]
      lines.append(line)
  return lines


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
        + '\nRemove fold_*/external.csv and run again.'
      )
    total += by_slide(p).prob
  return dataclasses.replace(first, prob=total / len(parts))


def by_slide(p: Predictions) -> Predictions:
  """Returns the same predictions in the order of slide names."""
  return p.take(np.argsort(p.slide, kind='stable'))


def differences(
  one: Predictions, other: Predictions, limit: int = 3
) -> list[str]:
  """Says where slides, cases or labels differ, whatever the order.

  Returns:
    Up to `limit` lines, each of one slide; none if all agree.
  """
  known = [
    {
      str(slide): {'case': str(case), 'class': int(label)}
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
    elif differ := [key for key in first if first[key] != second[key]]:
      key = differ[0]
      lines.append(f'slide {name!r}: {key} {first[key]!r} or {second[key]!r}')
  return lines[:limit]


def _is_share(text: str | None) -> bool:
  try:
    return 0 <= float(text or 'nan') <= 1
  except ValueError:
    return False


def _folds(folder: Folder, name: str) -> dict[int, Folder]:
  """Returns the folders of the folds that have a file, in their order."""
  folders = {
    int(number): Folder(path.parent)
    for path in folder.path.glob(f'fold_*/{name}')
    if (number := path.parent.name.removeprefix('fold_')).isdecimal()
  }
  return {fold: folders[fold] for fold in sorted(folders)}
