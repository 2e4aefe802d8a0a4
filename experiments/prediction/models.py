"""Trained models: what they are, which features they take, what they predict.

Those of a results folder, or of a file of experiments.export, which runs
without the code of the models.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import pathlib
import typing
from typing import Any

import numpy as np

from data import files, labels
from experiments.evaluation import predictions, summary
from experiments.run.options import free
from experiments.run.results import Folder, ResultsError
from experiments.run.start import Source
from kmil_jax import calibration, export

_FORMAT = 1


class PredictionError(ValueError):
  """Models and slides that do not go together; says which and what to do."""


@dataclasses.dataclass(frozen=True)
class Card:
  """What the models of R folds are."""

  model: str
  task: str
  classes: tuple[str, ...]  # C names
  width: int  # of the features
  folds: tuple[int, ...]  # R
  # [R], fitted on validation slides; None if it was not, see `summary`.
  temperature: tuple[float | None, ...]
  sha256: tuple[str, ...]  # [R], of weights and settings
  settings: Mapping[str, Any]
  features: Mapping[str, str]  # how they were made, as far as it is stated
  training: Mapping[str, str]  # hashes of labels, features and splits
  made_by: tuple[Mapping[str, Any], ...]  # versions, commits

  def to_json(self) -> dict[str, Any]:
    """Returns the card as JSON has it."""
    return {'format': _FORMAT} | dataclasses.asdict(self)

  @classmethod
  def from_json(
    cls, path: pathlib.Path | str, value: Mapping[str, Any]
  ) -> 'Card':
    """Returns what `to_json` was called on, without temperatures at a bound.

    Raises:
      PredictionError: if it is something else, naming the file at `path`.
    """
    kinds = typing.get_type_hints(cls)
    per_fold = 'folds', 'temperature', 'sha256'
    wrong = [n for n in kinds if not _is(kinds[n], value.get(n))] or [
      n for n in per_fold if len(value[n]) != max(1, len(value['folds']))
    ]
    if value.get('format') != _FORMAT or wrong:
      raise PredictionError(
        f'{path}: a card of format {value.get("format")}, in which'
        f' {", ".join(wrong) or "nothing"} is wrong. This version reads format'
        f' {_FORMAT}: export the models again.'
      )
    fields = {n: value[n] for n in kinds}
    fields['temperature'] = [
      None if t is None or calibration.at_bound(t) else t
      for t in value['temperature']
    ]
    lists = [n for n in kinds if isinstance(fields[n], list)]
    return cls(**fields | {n: tuple(fields[n]) for n in lists})

  def summary(self) -> str:
    """Returns a line that says what the models are."""
    return (
      f'{self.model} of {summary.name_folds(self.folds)}; classes'
      f' {", ".join(self.classes)}; {self.width} features of encoder'
      f' {self.features.get("encoder", "unknown")}'
    )


@dataclasses.dataclass(frozen=True)
class Folds(Source):
  """The models."""

  fold: int | None = free(
    None,
    'The only fold of --run to take, from 0. By default all of them.',
    least=0,
    only={'run': True},
  )


@dataclasses.dataclass(frozen=True)
class Models(Folds):
  """The models."""

  model: pathlib.Path | None = free(
    None, 'File of experiments.export, instead of --run.'
  )
  calibrate: bool = free(
    True, 'Divide log probabilities by the temperatures of the folds.'
  )

  def read(self) -> tuple[Card, export.Predictor]:
    """Returns the card, as --calibrate asks for it, and the function of a bag.

    Prints what the models are, and warns if some are not calibrated.

    Raises:
      ExportError: if --model is damaged, or of another JAX.
      PredictionError: if another version wrote its card.
      ResultsError: see `read`.
    """
    if self.model:
      archive = export.read(self.model)
      card = Card.from_json(self.model, archive.card)
      # Programs count on as many rows; see `inference.Design.lower`.
      predict = archive.predictor(card.settings.get('total_instances', 1))
      cautions = archive.card.get('cautions', [])
      is_phantom = any(one.startswith('Phantom') for one in cautions)
    else:
      card, trained = read(self.folder(), self.fold)
      predict = trained.predictor
      is_phantom = not self.folder().config().values.get('csv_path')
    print(card.summary())
    if is_phantom:
      print(
        'warning: these models were trained on the phantom cohort. Of slides of'
        ' patients they say nothing.'
      )
    if not self.calibrate:
      nothing = (None,) * len(card.folds)
      card = dataclasses.replace(card, temperature=nothing)
    elif missing := card.temperature.count(None):
      print(
        f'warning: models not calibrated: {missing} of {len(card.folds)}, for'
        ' fewer than 30 validation patients, or a fit that ended at a bound.'
        ' Their own probabilities are used.'
      )
    return card, predict

  def known(
    self, slide_ids: Sequence[str], case_of: Mapping[str, str]
  ) -> dict[str, str]:
    """Returns what the training knows of each slide; warns if it knows any.

    That is 'slide', 'patient' if it knows other slides of the slide's case, or
    'no'. Nothing is returned where no cohort.csv lists the training's slides.

    Args:
      slide_ids: which may be predicted.
      case_of: case of each, if it is known.

    Raises:
      data.labels.ManifestError: if cohort.csv is damaged.
      PredictionError: if the fold's split is.
    """
    if self.model:
      print(
        f'note: {self.model} does not name the slides of its training. If these'
        ' are among them, predictions are no test of the models.'
      )
    if not self.run or not self.folder().has('cohort.csv'):
      return {}
    table = labels.read(self.folder().at('cohort.csv'))
    case_in = dict(zip(table.slide.tolist(), table.case.tolist(), strict=True))
    if self.fold is not None:  # What it tests, it was not trained on.
      name, parts = f'splits/splits_{self.fold}.csv', ('train', 'val')
      split = self.folder().read(name)
      if not split or not split[0].keys() >= {*parts}:
        raise PredictionError(
          f'{self.folder().at(name)}: lacks the columns train and val. Give the'
          ' results folder as the training left it.'
        )
      used = {row[part] for row in split for part in parts}
      case_in = {slide: case_in[slide] for slide in used & case_in.keys()}
    slides = set(case_in)
    cases = set(map(labels.same_patient, case_in.values())) - {''}
    known = dict.fromkeys(slide_ids, 'no')
    for slide in known:
      if labels.same_patient(case_of.get(slide, '')) in cases:
        known[slide] = 'patient'
    known |= dict.fromkeys(slides & known.keys(), 'slide')
    for kind, words in ('slide', 'with ids'), ('patient', 'of patients'):
      if seen := [slide for slide in known if known[slide] == kind]:
        print(
          f'warning: slides {words} of the training: {files.first_of(seen)}.'
          ' Their predictions are no test of the models.'
        )
    return known


def read(folder: Folder, fold: int | None) -> tuple[Card, Any]:
  """Returns the models of a results folder, and the card of them.

  Args:
    folder: of experiments.kmil, or of one setting of experiments.ablations.
    fold: the only one to take; None for all.

  Returns:
    The card and the `kmil_jax.Trained`.

  Raises:
    ResultsError: if this is no such folder, if a fold is not finished, or if
      its files do not fit each other.
  """
  # They import all models; a file of experiments.export does without.
  from experiments.bags import options
  from kmil_jax import library
  from kmil_jax.models import SPECS

  config = folder.config()
  config.options(*options.OPTIONS)  # Refuses what is none of them.
  try:
    library.check_of_one_seed(folder.path)
    numbers = _finished(folder, fold)
    trained = library.load(folder.path, numbers)
    task, features = config.values['task'], config.cohort['features']
  except KeyError as error:
    raise ResultsError(f'{config.path} is damaged: no {error}.') from error
  except ValueError as error:
    raise ResultsError(str(error)) from error
  design, weights = trained.design, trained.weights
  # Refuses probabilities of other classes.
  fitted = summary.temperatures(predictions.read_folds(folder, trained.classes))
  settings = {
    'precision': design.precision,
    'combine': design.combine,
    **design.options,
    **(vars(design.choice) if SPECS[design.model].chooser else {}),
  }
  card = Card(
    model=design.model,
    task=task,
    classes=trained.classes,
    width=design.width,
    folds=numbers,
    temperature=tuple(
      None if fitted[i].reason else fitted[i].temperature for i in numbers
    ),
    sha256=tuple(_digest(weights, r, settings) for r in range(len(numbers))),
    settings=settings,
    features=features,
    training=config.inputs,
    made_by=tuple(config.made_by),
  )
  return card, trained


def _finished(folder: Folder, fold: int | None) -> tuple[int, ...]:
  """Returns the folds to take."""
  kind = {'k': int, 'folds': [int], '*': object}
  content = folder.read('summary.json', kind)
  k, finished = content['k'], content['folds']
  numbers = range(k) if fold is None else [fold]
  if missing := sorted(set(numbers) - set(finished)):
    raise ResultsError(
      f'{folder.path}: of its {k} folds, {missing} have no model. Take one of'
      f' {finished} by --fold, or give its command again, without --fold, which'
      ' trains the others (those that diverged need a lower --lr and another'
      ' --exp_code).'
    )
  return tuple(numbers)


def _digest(
  weights: Mapping[str, np.ndarray], run: int, settings: Mapping[str, Any]
) -> str:
  """Returns a hash of one of R models."""
  content = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  for name, leaf in sorted(weights.items()):
    leaf = leaf[run : run + 1]
    content.update(f'{name} {leaf.dtype} {leaf.shape}'.encode())
    content.update(leaf.tobytes())
  return content.hexdigest()


def _is(kind: Any, value: Any) -> bool:
  """Whether a value of JSON is one of a field's type."""
  outer = typing.get_origin(kind)
  if outer is tuple:
    one = typing.get_args(kind)[0]
    return isinstance(value, list) and all(_is(one, each) for each in value)
  if isinstance(value, bool) or (isinstance(value, float) and value <= 0):
    return False
  return isinstance(value, dict if outer is Mapping else kind)
