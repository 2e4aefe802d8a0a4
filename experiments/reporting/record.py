"""Reads what a results folder holds for its report."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from data.splits import PARTS
from experiments.bags import options
from experiments.evaluation import predictions, summary as summaries
from experiments.evaluation.predictions import Predictions
from experiments.run.options import to_json
from experiments.run.results import Config, Folder, ResultsError
from kmil_jax.folds import Settings, damage

_AGAIN = 'Run its training command again: it repeats nothing that is done.'
_SLIDES = ('case_id', 'slide_id', 'label', 'instances')
_LINE = {'epoch': int, 'best_epoch': int, 'stage?': str, '*': object}


@dataclasses.dataclass(frozen=True)
class Slides:
  """The slides of a cohort."""

  case: np.ndarray  # [n] str
  slide: np.ndarray  # [n] str
  label: np.ndarray  # [n] str
  instances: np.ndarray  # [n] int


@dataclasses.dataclass(frozen=True)
class Tested:
  """A slide of a test part, and its prediction."""

  fold: int
  case: str
  slide: str
  label: str
  pred: str
  prob: float  # of the predicted class
  prob_label: float  # of the true class

  @property
  def is_wrong(self) -> bool:
    return self.label != self.pred


@dataclasses.dataclass(frozen=True)
class Record:
  """A results folder of experiments.kmil, or of one like it."""

  folder: Folder
  config: Config
  flags: Mapping[str, Any]  # all of them, those not given by default
  settings: Settings | None  # of the training; None of models of no epochs
  summary: Mapping[str, Any]
  folds: Mapping[int, Mapping[str, Predictions]]
  external: Predictions | None  # mean over folds
  slides: Slides
  splits: Sequence[Mapping[str, Sequence[str]]]  # slide ids by part, per fold
  history: Mapping[int, Sequence[Mapping[str, Any]]]  # metrics.jsonl per fold

  @property
  def is_phantom(self) -> bool:
    return not (self.flags['csv_path'] or self.flags['features_dir'])

  @property
  def chose_epoch(self) -> bool:
    """Whether validation chose an epoch, and not every stage kept its last."""
    recipes = self.settings.recipes.values() if self.settings else ()
    return any(recipe.select != 'last' for recipe in recipes)

  @property
  def tested(self) -> list[Tested]:
    """The test slides of all finished folds, those of each by their names."""
    classes, tested = self.summary['classes'], []
    for fold, parts in self.folds.items():
      p = predictions.by_slide(predictions.evaluated(parts))
      for i, pred in enumerate(p.prob.argmax(1)):
        ids = fold, str(p.case[i]), str(p.slide[i])
        names = classes[p.label[i]], classes[pred]
        probs = float(p.prob[i, pred]), float(p.prob[i, p.label[i]])
        tested.append(Tested(*ids, *names, *probs))
    return tested

  @property
  def tested_again(self) -> list[str]:
    """Slides in the test parts of several finished folds."""
    slides = [t.slide for t in self.tested]
    names, count = np.unique(slides, return_counts=True)
    return names[count > 1].tolist()


def read(folder: Folder) -> Record:
  """Reads a results folder that has a summary.

  Raises:
    ResultsError: if there is none, or if its files do not fit each other.
    OptionError: if an option of config.json is not one of a run on bags.
  """
  config, summary = folder.config(), summaries.read(folder)
  classes = summary['classes']
  folds = predictions.read_folds(folder, classes)
  if list(folds) != summary['folds'] or not folds:
    raise ResultsError(
      f'{folder.path}: summary.json is of the folds {summary["folds"]}, but'
      f' there are predictions of {list(folds)}. {_AGAIN}'
    )
  for fold in folds:
    if file := damage(folder.at(f'fold_{fold}')):
      raise ResultsError(f'{file} is damaged. {_AGAIN}')
  external = predictions.read_external(folder, classes)
  return Record(
    folder=folder,
    config=config,
    flags=to_json(config.options(*options.OPTIONS)),
    settings=options.trained(config),
    summary=summary,
    folds=folds,
    external=predictions.mean(external) if external else None,
    slides=_slides(folder, classes),
    splits=_splits(folder),
    history={fold: _history(folder, fold) for fold in folds},
  )


def _slides(folder: Folder, classes: Sequence[str]) -> Slides:
  rows = folder.read('cohort.csv')
  try:
    columns = [np.array([row[name] for row in rows]) for name in _SLIDES]
    if absent := set(classes).difference(columns[2].tolist()):
      raise ValueError(f'no slides of {", ".join(sorted(absent))}')
    return Slides(*columns[:3], columns[3].astype(int))
  except (KeyError, TypeError, ValueError) as e:
    raise ResultsError(
      f'{folder.at("cohort.csv")} is damaged ({e!r}). {_AGAIN}'
    ) from e


def _splits(folder: Folder) -> list[dict[str, list[str]]]:
  folds = []
  while folder.at(name := f'splits/splits_{len(folds)}.csv').exists():
    rows = folder.read(name)
    folds.append(
      {part: [row[part] for row in rows if row.get(part)] for part in PARTS}
    )
  return folds


def _history(folder: Folder, fold: int) -> list[dict[str, Any]]:
  """The lines of the stage whose predictions count."""
  name = f'fold_{fold}/metrics.jsonl'
  lines = folder.read(name, _LINE) if folder.at(name).exists() else []
  return [line for line in lines if line.get('stage') == 'model']
