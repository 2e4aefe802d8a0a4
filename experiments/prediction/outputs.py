"""Predicts slides one after the other: HDF5 of each, tables of all."""

from collections.abc import Mapping
import pathlib

import h5py
import numpy as np

from data import features, files
from data.features import FeatureError
from experiments.evaluation import predictions
from experiments.evaluation.predictions import Predictions
from experiments.maps import tile_scores
from experiments.prediction.bags import Bags
from experiments.prediction.models import Card
from experiments.run import progress
from experiments.run.results import Folder
from kmil_jax import calibration
from kmil_jax.export import Predictor

CASES = predictions.CASES
_MARKS = ('model_sha256', 'features_sha256', 'temperature')


def predict(
  bags: Bags,
  card: Card,
  models: Predictor,
  folder: Folder,
  failures: Mapping[str, str] | None = None,
  case_of: Mapping[str, str] | None = None,
  trained_on: Mapping[str, str] | None = None,
) -> dict[str, str]:
  """Writes what models predict of slides, into files of each and tables of all.

  `fold_<i>/attention/<slide_id>.h5` has the layout of a training's; `prob` is
  that of the model itself, before any temperature. Attributes hold which model
  and which features it is of, and the temperature that maps are to apply. A
  slide is done when its files are there: what was killed goes on with the slide
  it was at. Files of other models or features are replaced.

  Args:
    bags: slides.
    card: of the models.
    models: that predict them.
    folder: of the predictions.
    failures: other slides, which have no features, and the reasons.
    case_of: case of each slide, if known: predictions_cases.csv then has those
      of cases, as a training's.
    trained_on: what the training knows of each slide, see `Models.known`.

  Returns:
    By slide without a prediction the reason; none of their files stay.
  """
  predicted, failures, done = {}, dict(failures or {}), 0
  for slide in progress.bar(bags.ids, unit='slide', desc='predicted'):
    try:
      if pathlib.PurePath(slide).name != slide or '\\' in slide:
        raise FeatureError('its id is no name of a file. Rename it.')
      digest = bags.source.digest(slide)
      prediction = _read(folder, card, slide, digest)
      if prediction is None:
        bags.check_memory(slide, models)
        bag = bags.source.read(slide)
        arrays = models(bag.features)
        if not np.isfinite(arrays['prob']).all():
          raise FloatingPointError('the probabilities are not finite')
    except Exception as error:  # Whatever it is, the other slides go on.
      failures[slide] = f'{type(error).__name__}: {error}'
      continue
    if prediction is None:  # A full disk is no fault of the slide.
      for r, fold in enumerate(card.folds):
        of_fold = {name: value[r] for name, value in arrays.items()}
        if bag.coords is not None:
          of_fold['coords'] = bag.coords
        marks = _marks(card, r, digest) | {'classes': list(card.classes)}
        path = tile_scores.path_of(folder.path, fold, slide)
        tile_scores.write(path, of_fold, bag.attributes | marks)
      prediction = arrays['prob'], len(bag.features)
    else:
      done += 1
    predicted[slide] = prediction
  if done:
    print(f'slides done before: {done} of {len(bags.ids)}')
  for fold in card.folds:
    for path in folder.at(f'fold_{fold}/attention').glob('*.h5'):
      if path.stem not in predicted:
        path.unlink()
  failures = dict(sorted(failures.items()))
  folder.write('failures.csv', [['slide_id', 'reason'], *failures.items()])
  lines, means = _rows(card, predicted, case_of or {}, trained_on or {})
  folder.write('predictions.csv', lines)
  print(f'slides: {_counts(means, card)}')
  if not case_of:
    return failures
  slides = sorted(predicted)
  p = Predictions(
    case=np.array([case_of[slide] for slide in slides], str),
    slide=np.array(slides, str),
    label=np.full(len(slides), -1),
    prob=means,
  )
  fold = 'mean' if len(card.folds) > 1 else card.folds[0]
  lines = predictions.case_rows({fold: p}, card.classes)
  folder.write(CASES, lines)
  for how in predictions.JOINED:
    prob = predictions.of_cases(p, how).prob
    print(f'patients, by the {how} of their slides: {_counts(prob, card)}')
  print(f'predictions of patients in {folder.at(CASES)}')
  failed = {case_of[slide] for slide in failures.keys() & case_of.keys()}
  there = failed & set(p.case.tolist())
  for cases, lack, then in (
    (there, 'slides without a', 'Their other slides count alone'),
    (failed - there, 'no', 'None of their slides could be predicted'),
  ):
    if cases:
      print(
        f'warning: patients with {lack} prediction:'
        f' {files.first_of(sorted(cases))}. {then}.'
      )
  return failures


def _counts(prob: np.ndarray, card: Card) -> str:
  """Returns how many are predicted as each class."""
  counts = np.bincount(prob.argmax(1), minlength=len(card.classes))
  pairs = zip(card.classes, counts, strict=True)
  return ', '.join(f'{name} {count}' for name, count in pairs)


def _rows(
  card: Card,
  predicted: Mapping[str, tuple[np.ndarray, int]],
  case_of: Mapping[str, str],
  trained_on: Mapping[str, str],
) -> tuple[list[list], np.ndarray]:
  """Returns the rows of predictions.csv, and the mean probabilities, [n, C].

  A row has the mean of the folds' probabilities, their sample standard
  deviation (empty of one fold), and each fold's, which are those at its
  temperature if the card has one; `calibrated` is `yes`, `no`, or `partly` if
  only some folds have one.

  Args:
    card: of the models.
    predicted: probabilities [R, C] and number of instances, by slide.
    case_of: as for `predict`.
    trained_on: as for `predict`.
  """
  has = [t is not None for t in card.temperature]
  calibrated = 'yes' if all(has) else 'partly' if any(has) else 'no'
  folds = [f'fold_{i}_prob_{c}' for i in card.folds for c in card.classes]
  more = [[*(f'std_{c}' for c in card.classes), *folds]]
  more[0] += ['instances', 'calibrated', 'trained_on']
  known, means = [], []
  for slide, (raw, instances) in sorted(predicted.items()):
    prob = raw.astype(float)
    for r in np.flatnonzero(has):
      prob[r] = calibration.scale(prob[r : r + 1], card.temperature[r])[0]
    spread = [None] * len(card.classes)
    if len(prob) > 1:
      spread = prob.std(0, ddof=1).tolist()
    about = instances, calibrated, trained_on.get(slide)
    known.append([case_of.get(slide), slide])
    means.append(prob.mean(0))
    more.append([*spread, *prob.ravel().tolist(), *about])
  columns = 'case_id', 'slide_id'
  rows = predictions.table(columns, known, means, card.classes)
  lines = [[*row, *rest] for row, rest in zip(rows, more, strict=True)]
  return lines, np.reshape(means, (-1, len(card.classes)))


def _read(
  folder: Folder, card: Card, slide: str, digest: str
) -> tuple[np.ndarray, int] | None:
  """Returns probabilities [R, C] and number of instances of a slide.

  None unless the files of all folds are there, of these models and features.
  """
  prob = []
  for r, fold in enumerate(card.folds):
    try:
      path = tile_scores.path_of(folder.path, fold, slide)
      with h5py.File(path, locking=False) as file:
        marks = {n: v for n, v in file.attrs.items() if n in _MARKS}
        if marks != _marks(card, r, digest):
          return None
        of_slide = features.part(file, 'prob')[()]
        prob.append(np.reshape(of_slide, len(card.classes)))
        instances = len(features.part(file, 'kept'))
    except Exception:  # Absent, damaged, or not of this script.
      return None
  return np.stack(prob), instances


def _marks(card: Card, run: int, digest: str) -> dict[str, str | float]:
  """Returns what the file of a fold is a function of, as attributes of it."""
  values = card.sha256[run], digest, card.temperature[run]
  marks = zip(_MARKS, values, strict=True)
  return {name: value for name, value in marks if value is not None}
