"""Predicts slides one after the other: HDF5 of each, tables of all."""

from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from experiments import files
from experiments.prediction.bags import Bags, Failure
from experiments.prediction.models import Card, Predict
from experiments.run import progress
from experiments.run.results import Folder
from kmil_jax import calibration

_MARKS = ('model_sha256', 'features_sha256', 'temperature')


def predict(
  bags: Bags, card: Card, models: Predict, folder: Folder
) -> list[Failure]:
  """Writes what models predict of slides, into a file of each and into tables.

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

  Returns:
    The slides without a prediction; none of their files stay.
  """
  found, failures, done = {}, list(bags.failures), 0
  for slide in progress.bar(bags.ids, unit='slide', desc='predicted'):
    try:
      digest, bag = bags.source.digest(slide), None
      held = _read(folder, card, slide, digest)
      if held is None:
        bag = bags.source.read(slide)
        arrays = models(bag.features)
        if not np.isfinite(arrays['prob']).all():
          raise FloatingPointError('the probabilities are not finite')
    except Exception as error:  # Whatever it is, the other slides go on.
      failures.append(Failure(slide, f'{type(error).__name__}: {error}'))
      continue
    done += bag is None
    # A full disk is no fault of the slide.
    for r, fold in enumerate(card.folds if bag else ()):
      of_fold = {name: value[r] for name, value in arrays.items()}
      if bag.coords is not None:
        of_fold['coords'] = bag.coords
      marks = {
        k: v for k, v in _marks(card, r, digest).items() if v is not None
      }
      attributes = bag.attributes | marks | {'classes': list(card.classes)}
      path = folder.at(_name(fold, slide))
      files.write_h5(path, of_fold, bag.attributes | stated)
    found[slide] = held or (arrays['prob'], len(bag.features))
  if done:
    print(f'done before: {done} of {len(bags.ids)} slides')
  for fold in card.folds:
    for path in folder.at(_name(fold, '_')).parent.glob('*.h5'):
      if path.stem not in found:
        path.unlink()
  _write_tables(folder, card, found, failures)
  return sorted(failures)


def _write_tables(
  folder: Folder,
  card: Card,
  found: Mapping[str, tuple[np.ndarray, int]],
  failures: Sequence[Failure],
) -> None:
  """Writes predictions.csv and failures.csv; prints how many are of a class.

  A row has the mean of the folds' probabilities, their sample standard
  deviation (empty of one fold), and each fold's, which are those at its
  temperature if the card has one; `calibrated` is `yes`, `no`, or `partly` if
  only some folds have one.

  Args:
    folder: of the predictions.
    card: of the models.
    found: probabilities [R, C] and number of instances, by slide.
    failures: slides without.
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
  absent = card.temperature.count(None)
  calibrated = (
    'partly' if 0 < absent < len(card.folds) else 'no' if absent else 'yes'
  )
  counts = dict.fromkeys(card.classes, 0)
  for slide, (raw, instances) in sorted(found.items()):
    prob = np.array([
      p if t is None else calibration.scale(p[None], t)[0]
      for p, t in zip(raw.astype(float), card.temperature, strict=True)
    ])  # fmt: skip
    mean, spread = prob.mean(0), [None] * len(columns)
    if len(prob) > 1:
      spread = prob.std(0, ddof=1).tolist()
    pred = card.classes[mean.argmax()]
    counts[pred] += 1
    values = [*mean.tolist(), *spread, *prob.ravel().tolist()]
    lines.append([slide, pred, *values, instances, calibrated])
  folder.write('predictions.csv', lines)
  folder.write('failures.csv', [['slide_id', 'reason'], *sorted(failures)])
  print(', '.join(f'{name} {count}' for name, count in counts.items()))


def _name(fold: int, slide: str) -> str:
  """Returns the file of what a fold predicts of a slide."""
  return f'fold_{fold}/attention/{slide}.h5'


def _read(
  folder: Folder, card: Card, slide: str, digest: str
) -> tuple[np.ndarray, int] | None:
  """Returns probabilities [R, C] and number of instances of a slide.

  None unless the files of all folds are there, of these models and features.
  """
  prob = []
  for r, fold in enumerate(card.folds):
    try:
      with h5py.File(folder.at(_name(fold, slide)), locking=False) as file:
        if {n: file.attrs.get(n) for n in _MARKS} != _marks(card, r, digest):
          return None
        prob.append(file['prob'][()])
        instances = len(file['kept'])
    except OSError:  # Absent, or not of this script.
      return None
  return np.stack(prob), instances


def _marks(card: Card, run: int, digest: str) -> dict[str, str | float | None]:
  """Returns what the file of a fold is a function of."""
  values = card.sha256[run], digest, card.temperature[run]
  return dict(zip(_MARKS, values, strict=True))
