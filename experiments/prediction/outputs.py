"""What is written of new slides: HDF5 of each, tables of all."""

from collections.abc import Sequence
import pathlib

import h5py
import numpy as np

from data.features import FeatureFile
from experiments import files
from experiments.prediction.bags import Failure
from experiments.prediction.card import Card
from kmil_jax import calibration
from kmil_jax.calibration import at_bound

_MODEL, _FEATURES = 'model_sha256', 'features_sha256'
_TEMPERATURE = 'temperature'  # Of `slide_maps.tile_scores`, too.


def path_of(folder: pathlib.Path, fold: int, slide: str) -> pathlib.Path:
  """Returns where a fold's view of a slide lies, as in a results folder."""
  return folder / f'fold_{fold}' / 'attention' / f'{slide}.h5'


def write(
  folder: pathlib.Path,
  card: Card,
  slide: str,
  bag: FeatureFile,
  digest: str,
  said: dict[str, np.ndarray],
) -> None:
  """Writes what each fold's model says of a slide, atomically.

  `fold_<i>/attention/<slide_id>.h5` has the layout of `maps.write`; `prob` is
  that of the model itself, before any temperature. Attributes tell which model
  and which features it is of, and the temperature that maps are to apply.

  Args:
    folder: of the predictions.
    card: of the models.
    slide: its id.
    bag: its features.
    digest: of its features.
    said: as of `predictor.Predictor`.
  """
  for r, fold in enumerate(card.folds):
    arrays = {name: value[r] for name, value in said.items()}
    if bag.coords is not None:
      arrays['coords'] = bag.coords
    marks = {
      _MODEL: card.sha256[r],
      _FEATURES: digest,
      'classes': list(card.classes),
    }
    if card.temperature[r] is not None:
      marks[_TEMPERATURE] = card.temperature[r]
    path = path_of(folder, fold, slide)
    files.write_h5(path, arrays, bag.attributes | marks)


def is_done(folder: pathlib.Path, card: Card, slide: str, digest: str) -> bool:
  """Whether a slide's files are there, of these models and features."""
  for r, fold in enumerate(card.folds):
    try:
      with h5py.File(path_of(folder, fold, slide), locking=False) as f:
        marks = _MODEL, _FEATURES, _TEMPERATURE
        found = tuple(f.attrs.get(name) for name in marks)
    except OSError:  # Absent, or not of this script.
      return False
    if found != (card.sha256[r], digest, card.temperature[r]):
      return False
  return True


def doubts(card: Card) -> list[str]:
  """Says which folds have no temperature, or a doubtful one; one line each."""
  pairs = list(zip(card.folds, card.temperature, strict=True))
  without = [str(fold) for fold, t in pairs if t is None]
  bound = [f'{fold} ({t:.3g})' for fold, t in pairs if t and at_bound(t)]
  found = []
  if without:
    found.append(
      f'no temperature for folds {", ".join(without)}, whose probabilities are'
      ' not calibrated: the validation patients are too few, or do not show how'
      ' sure the model may be.'
    )
  if bound:
    found.append(
      f'the temperatures of folds {", ".join(bound)} are bounds of the fit: the'
      ' validation patients do not show how sure the model may be.'
      ' --nocalibrate applies none.'
    )
  return found


def write_tables(
  folder: pathlib.Path,
  card: Card,
  slides: Sequence[str],
  failures: Sequence[Failure],
) -> dict[str, int]:
  """Writes predictions.csv and failures.csv.

  A row has the mean of the folds' probabilities, their sample standard
  deviation (empty of one fold), and each fold's, which are those at its
  temperature where the card has one. `calibrated` is `yes`, `no`, `partly` if
  only some folds have one, or `bound` if one lies at the bound of its fit: then
  the validation slides do not say how sure the model may be.

  Maps of slides without a row, which an earlier call may have left, are
  removed.

  Args:
    folder: of the predictions.
    card: of the models.
    slides: those asked for.
    failures: those of them, and others, that have no files.

  Returns:
    How many slides are predicted to be of each class.
  """
  columns = [f'prob_{c}' for c in card.classes]
  lines = [
    [
      *('slide_id', 'pred', *columns),
      *(f'std_{c}' for c in card.classes),
      *(f'fold_{i}_{column}' for i in card.folds for column in columns),
      *('instances', 'calibrated'),
    ]
  ]
  calibrated = _calibrated(card)
  counts = dict.fromkeys(card.classes, 0)
  without = {failure.slide_id for failure in failures}
  told_of = sorted(set(slides) - without)
  _remove_others(folder, card, set(told_of))
  for slide in told_of:
    prob, count = _read(folder, card, slide)
    mean = prob.mean(0)
    spread = prob.std(0, ddof=1) if len(prob) > 1 else [None] * len(mean)
    pred = card.classes[mean.argmax()]
    counts[pred] += 1
    values = [*mean, *spread, *prob.ravel()]
    told = ['' if x is None else repr(float(x)) for x in values]
    lines.append([slide, pred, *told, count, calibrated])
  files.write_csv(folder / 'predictions.csv', lines)
  rows = [['slide_id', 'reason'], *sorted(failures)]
  files.write_csv(folder / 'failures.csv', rows)
  return counts


def _remove_others(folder: pathlib.Path, card: Card, slides: set[str]) -> None:
  """Removes what `write` wrote of other slides."""
  for fold in card.folds:
    for path in path_of(folder, fold, 'any').parent.glob('*.h5'):
      if path.stem not in slides:
        path.unlink()


def _calibrated(card: Card) -> str:
  fitted = [t for t in card.temperature if t is not None]
  if not fitted:
    return 'no'
  if len(fitted) < len(card.temperature):
    return 'partly'
  return 'bound' if any(map(at_bound, fitted)) else 'yes'


def _read(
  folder: pathlib.Path, card: Card, slide: str
) -> tuple[np.ndarray, int]:
  """Returns a slide's probabilities, float64 [R, C], and its instances."""
  rows = []
  for fold, temperature in zip(card.folds, card.temperature, strict=True):
    with h5py.File(path_of(folder, fold, slide), locking=False) as f:
      prob, count = f['prob'][()].astype(float), len(f['kept'])
    if temperature is not None:
      prob = calibration.scale(prob[None], temperature)[0]
    rows.append(prob)
  return np.stack(rows), count
