"""Opens the models of a finished results folder, without its cohort."""

from collections.abc import Mapping
import csv
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from experiments import predictions, scores
from experiments.prediction.card import Card
from experiments.provenance import ResultsError
from experiments.run.progress import DIVERGED
from kmil_jax import folds as kept, inference
from kmil_jax.inference import Design
from kmil_jax.models import SPECS

_AGAIN = 'give its training command again, which trains nothing that is done'
# What a fold's folder holds once the summary counts it.
_FINISHED = ('predictions.csv', 'temperature.json', 'checkpoints')


def read(
  folder: pathlib.Path, fold: int | None
) -> tuple[Card, Design, dict[str, np.ndarray]]:
  """Returns the models of a results folder.

  Args:
    folder: of experiments.kmil, or of one setting of experiments.ablations.
    fold: the only one asked for; None for all.

  Returns:
    Their card, design and weights as of `inference.stack`.

  Raises:
    ResultsError: if this is no such folder, if folds asked for are not
      finished, or if its files do not fit each other.
  """
  config, summary = _json(folder, 'config.json'), _json(folder, 'summary.json')
  flags = config['flags']
  if flags.get('model') not in SPECS:
    raise ResultsError(
      f'{folder}: results of another script; models are kept by'
      ' experiments.kmil and experiments.ablations'
    )
  if 'cohort' not in config:
    raise ResultsError(
      f'{folder}/config.json does not say what the models take: it was begun'
      f' by an older version; {_AGAIN}'
    )
  cohort = config['cohort']
  classes = tuple(cohort['classes'])
  if tuple(summary['classes']) != classes:
    raise ResultsError(
      f'{folder}: summary.json has the classes {", ".join(summary["classes"])},'
      f' config.json {", ".join(classes)}; {_AGAIN}'
    )
  folds = _folds(folder, summary['k'], fold)
  # Refuses probabilities of other classes.
  fitted = scores.temperatures(predictions.read_folds(folder, classes))
  design = Design.of_flags(
    flags, num_classes=len(classes), width=cohort['width']
  )
  models = [_weights(folder / f'fold_{i}', design) for i in folds]
  settings = _settings(design)
  card = Card(
    model=design.model,
    task=flags['task'],
    classes=classes,
    width=design.width,
    folds=folds,
    temperature=tuple(
      None if fitted[i].reason else fitted[i].value for i in folds
    ),
    sha256=tuple(_digest(weights, settings) for weights in models),
    settings=settings,
    features=cohort['features'],
    training=config['inputs'],
    made_by=tuple(config['made_by']),
  )
  return card, design, inference.stack(models)


def features_dir(folder: pathlib.Path) -> pathlib.Path:
  """Returns where the features were that the models were trained on."""
  return pathlib.Path(_json(folder, 'config.json')['cohort']['features_dir'])


def slides(folder: pathlib.Path) -> set[str]:
  """Returns the ids of the slides that a results folder is of.

  Nothing of folders of versions that kept no table.
  """
  path = folder / 'cohort.csv'
  if not path.exists():
    return set()
  with path.open(newline='', encoding='utf-8') as file:
    return {row['slide_id'] for row in csv.DictReader(file)}


def _folds(folder: pathlib.Path, k: int, fold: int | None) -> tuple[int, ...]:
  if fold is not None and fold >= k:
    raise ResultsError(f'--fold={fold}: folds of {folder} are 0 to {k - 1}')
  finished = [
    i
    for i in range(k)
    if all((folder / f'fold_{i}' / name).exists() for name in _FINISHED)
  ]
  asked = range(k) if fold is None else [fold]
  missing = [i for i in asked if i not in finished]
  if missing:
    told = ', '.join(map(str, missing))
    some = f', or take one of {finished} by --fold' if finished else ''
    lost = [i for i in missing if (folder / f'fold_{i}' / DIVERGED).exists()]
    if lost:
      raise ResultsError(
        f'{folder}: folds that diverged and have no model:'
        f' {", ".join(map(str, lost))}. Train anew with a lower --lr{some}'
      )
    raise ResultsError(
      f'{folder}: folds not finished: {told}; {_AGAIN} and completes the'
      f' rest{some}'
    )
  return tuple(asked)


def _settings(design: Design) -> dict[str, Any]:
  """What of a design its weights do not say."""
  settings = {
    'precision': design.precision,
    'combine': design.combine,
    **design.options,
  }
  if SPECS[design.model].chooser:
    settings |= vars(design.choice)
  return settings


def _weights(folder: pathlib.Path, design: Design) -> dict[str, Any]:
  """The parameters of one fold by network."""
  try:
    return kept.load(folder, design)
  except (FileNotFoundError, AssertionError, ValueError, KeyError) as error:
    raise ResultsError(
      f'{folder}/checkpoints: not the parameters of {design.model} with'
      f' {design.num_classes} classes and {design.width} features ({error})'
    ) from error


def _digest(weights: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
  """A hash of one fold's model."""
  content = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  for name, leaf in sorted(inference.stack([weights]).items()):
    content.update(f'{name} {leaf.dtype} {leaf.shape}'.encode())
    content.update(np.ascontiguousarray(leaf).tobytes())
  return content.hexdigest()


def _json(folder: pathlib.Path, name: str) -> dict[str, Any]:
  path = folder / name
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise ResultsError(
      f'{path}: no such file; --run takes the folder of a finished training'
    ) from error
  except ValueError as error:
    raise ResultsError(f'{path}: not JSON ({error}); {_AGAIN}') from error
