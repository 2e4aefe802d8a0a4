"""The bags to predict: features that can be read and fit the models."""

from collections.abc import Sequence
import pathlib
from typing import NamedTuple

from data import packed
from data.features import FeatureError
from data.files import first_of
from experiments.prediction.card import Card, PredictionError


class Failure(NamedTuple):
  """A slide without a prediction, and why."""

  slide_id: str
  reason: str


class Bags(NamedTuple):
  """Slides whose features can be read."""

  source: packed.Folder | packed.Packed
  ids: list[str]


class Compared(NamedTuple):
  """The slides of a folder beside the features that models take."""

  found: Bags
  failures: list[Failure]  # slides that cannot be read
  faults: list[str]  # slides whose features were made otherwise


def compare(
  features_dir: pathlib.Path, card: Card, asked: Sequence[str] | None = None
) -> Compared:
  """Compares the features of slides with those that the models take.

  Args:
    features_dir: of any kind that `data.packed` opens.
    card: of the models.
    asked: slides; by default all that are there.

  Raises:
    PredictionError: if there are none.
  """
  if not features_dir.is_dir():
    raise PredictionError(f'{features_dir}: no such folder')
  source = packed.find(features_dir)
  ids = source.ids() if asked is None else list(asked)
  if not ids and asked is None:
    raise PredictionError(f'{features_dir}: no feature files, <slide_id>.h5')
  failures, faults, sound, unstated = [], [], [], {}
  for slide in ids:
    if pathlib.PurePath(slide).name != slide or '\\' in slide:
      reason = 'an id is a file name, without folders'
      failures.append(Failure(slide, reason))
      continue
    try:
      header = source.header(slide)
    except FeatureError as error:
      failures.append(Failure(slide, str(error)))
      continue
    if differ := card.differences(header):
      faults.append(f'{slide}: {", ".join(differ)}')
    for name in card.unstated(header):
      unstated[name] = unstated.get(name, 0) + 1
    sound.append(slide)
  for name, count in unstated.items():
    print(
      f'warning: {name} of {count} of {len(ids)} slides, or of the models, is'
      ' not stated: make sure that they are alike'
    )
  return Compared(Bags(source, sound), failures, faults)


def check(
  features_dir: pathlib.Path, card: Card, asked: Sequence[str] | None = None
) -> tuple[Bags, list[Failure]]:
  """Returns the slides whose files can be read, and the others.

  Raises:
    PredictionError: as of `compare`, or if features were made otherwise than
      those of the models: then no prediction of the folder can be trusted.
  """
  found, failures, faults = compare(features_dir, card, asked)
  if faults:
    said = (
      f'{features_dir}: features of {len(faults)} of {len(found.ids)} slides'
      ' are not made as those that the models were trained on: '
      + first_of(faults)
    )
    unread = [f'{slide}: {reason}' for slide, reason in failures]
    if unread:
      said += f'; not read: {first_of(unread)}'
    raise PredictionError(said)
  return found, failures
