"""Reads what a results folder holds for its report."""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from data import splits as split_files
from experiments.bags.options import OPTIONS
from experiments.evaluation import predictions
from experiments.evaluation.predictions import Predictions
from experiments.run.options import renamed
from experiments.run.results import Folder, ResultsError

_AGAIN = 'give its training command again, which trains nothing that is done'


@dataclasses.dataclass(frozen=True)
class Slides:
  """Slides with their classes and sizes."""

  case: np.ndarray  # [n] str
  slide: np.ndarray  # [n] str
  label: np.ndarray  # [n] str
  instances: np.ndarray | None  # [n] int, None where it was not recorded

  @property
  def case_of(self) -> dict[str, str]:
    return dict(zip(self.slide.tolist(), self.case.tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class Record:
  """A results folder of experiments.kmil, or of one like it."""

  folder: pathlib.Path
  config: Mapping[str, Any]
  summary: Mapping[str, Any]
  folds: Mapping[int, Mapping[str, Predictions]]
  external: Predictions | None  # mean over folds
  slides: Slides  # of the cohort; without cohort.csv those of finished folds
  splits: Sequence[Mapping[str, Sequence[str]]]  # slide ids by part, per fold
  history: Mapping[int, Sequence[Mapping[str, Any]]]  # metrics.jsonl per fold

  @property
  def flags(self) -> Mapping[str, Any]:
    """Options by name."""
    # Version 1 of config.json calls them flags.
    values = self.config.get('options') or self.config['flags']
    return renamed(values, OPTIONS)

  @property
  def classes(self) -> tuple[str, ...]:
    return tuple(self.summary['classes'])

  @property
  def test(self) -> Predictions:
    """The test parts of all finished folds."""
    return predictions.pool([parts['test'] for parts in self.folds.values()])

  @property
  def tested_again(self) -> list[str]:
    """Slides in the test parts of several finished folds."""
    slides, count = np.unique(self.test.slide, return_counts=True)
    return slides[count > 1].tolist()

  @property
  def is_phantom(self) -> bool:
    flags = self.flags
    return not (flags.get('csv_path') or flags.get('features_dir'))

  @property
  def features(self) -> Mapping[str, Any]:
    """What the feature files say of their making."""
    return self.config.get('cohort', {}).get('features', {})


def read(folder: pathlib.Path) -> Record:
  """Reads a results folder that has a summary.

  Raises:
    ResultsError: if there is none, or if its files do not fit each other.
  """
  config, summary = _json(folder, 'config.json'), _json(folder, 'summary.json')
  values = 'options' if 'version' in config else 'flags'
  for name, value, keys in (
    ('config.json', config, (values, 'inputs', 'made_by')),
    ('summary.json', summary, ('model', 'classes', 'k', 'folds', 'metrics')),
  ):
    missing = [key for key in keys if key not in value]
    if missing:
      raise ResultsError(
        f'{folder / name}: lacks {", ".join(missing)}; it is not that of a'
        ' cross-validation'
      )
  classes = summary['classes']
  folds = predictions.read_folds(Folder(folder), classes)
  if list(folds) != summary['folds']:
    raise ResultsError(
      f'{folder}: summary.json is of the folds {summary["folds"]}, but'
      f' predictions are there of {list(folds)}; {_AGAIN}'
    )
  if not folds:
    raise ResultsError(f'{folder}: no fold is finished; {_AGAIN}')
  external = predictions.read_external(Folder(folder), classes)
  return Record(
    folder=folder,
    config=config,
    summary=summary,
    folds=folds,
    external=predictions.mean(external) if external else None,
    slides=_slides(folder, folds, classes),
    splits=_splits(folder),
    history={fold: _history(folder, fold) for fold in folds},
  )


def _json(folder: pathlib.Path, name: str) -> dict[str, Any]:
  path = folder / name
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise ResultsError(
      f'{path}: no such file; a report is of a folder that a training wrote,'
      f' like results/kmil_origin_s2023. If it was interrupted, {_AGAIN}'
    ) from None
  except ValueError as e:
    raise ResultsError(f'{path}: is damaged ({e}); {_AGAIN}') from e
  if not isinstance(value, dict):
    raise ResultsError(f'{path}: is not the record of a run; {_AGAIN}')
  return value


def _slides(
  folder: pathlib.Path,
  folds: Mapping[int, Mapping[str, Predictions]],
  classes: Sequence[str],
) -> Slides:
  path = folder / 'cohort.csv'
  if path.exists():
    rows = _rows(path)
    if not rows:
      raise ResultsError(f'{path}: is damaged (no rows); {_AGAIN}')
    column = lambda name: np.array([row[name] for row in rows], str)
    try:
      return Slides(
        case=column('case_id'),
        slide=column('slide_id'),
        label=column('label'),
        instances=column('instances').astype(int),
      )
    except (KeyError, ValueError, TypeError) as e:
      raise ResultsError(f'{path}: is damaged ({e!r}); {_AGAIN}') from e
  seen = predictions.pool(
    [p for parts in folds.values() for p in parts.values()]
  )
  _, first = np.unique(seen.slide, return_index=True)
  label = np.array(classes)[seen.label[first]]
  return Slides(seen.case[first], seen.slide[first], label, None)


def _splits(folder: pathlib.Path) -> list[dict[str, list[str]]]:
  found = []
  while (path := folder / 'splits' / f'splits_{len(found)}.csv').exists():
    rows = _rows(path)
    found.append(
      {
        part: [row[part] for row in rows if row.get(part)]
        for part in split_files.PARTS
      }
    )
  return found


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
  try:
    with path.open(newline='', encoding='utf-8') as file:
      return list(csv.DictReader(file))
  except (csv.Error, UnicodeDecodeError) as e:
    raise ResultsError(f'{path}: is damaged ({e}); {_AGAIN}') from e


def _history(folder: pathlib.Path, fold: int) -> list[dict[str, Any]]:
  """The lines of the stage whose predictions count."""
  path = folder / f'fold_{fold}' / 'metrics.jsonl'
  if not path.exists():
    return []
  lines = []
  for text in path.read_text(encoding='utf-8').splitlines():
    try:
      line = json.loads(text)
    except json.JSONDecodeError as e:
      raise ResultsError(f'{path}: is damaged ({e}); {_AGAIN}') from e
    if line.get('stage') == 'model':
      lines.append(line)
  return lines
