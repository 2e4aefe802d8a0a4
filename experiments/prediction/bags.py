"""The bags to predict: features that can be read and fit the models."""

import collections
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import NamedTuple

from data import packed
from data.features import FeatureError
from experiments.prediction.models import Card, PredictionError
from experiments.run.check import some


class Failure(NamedTuple):
  """A slide without a prediction, and why."""

  slide_id: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Bags:
  """The features of slides beside those that models take."""

  source: packed.Folder | packed.Packed
  ids: list[str]  # of slides whose features can be read
  failures: list[Failure]  # the other slides
  unlike: list[str]  # slides whose features were made otherwise, and how

  def problems(self) -> list[str]:
    """Returns what is wrong with any slide."""
    unread = [f'{slide}: {reason}' for slide, reason in self.failures]
    return unread + [
      f"{u}, unlike the models' own features" for u in self.unlike
    ]

  def check(self) -> None:
    """Raises if no prediction of the folder can be trusted.

    Raises:
      PredictionError: if features were made otherwise than those of the models.
    """
    if self.unlike:
      raise PredictionError(
        f'{self.source.path}: features of {len(self.unlike)} of'
        f' {len(self.ids)} slides are not made as those that the models were'
        f' trained on: {some(self.unlike)}'
      )


def find(
  features_dir: pathlib.Path, card: Card, requested: Sequence[str] | None = None
) -> Bags:
  """Returns the slides whose features can be read; warns of what is unstated.

  Args:
    features_dir: of any kind that `data.packed` opens.
    card: of the models.
    requested: slides; by default all that are there.

  Raises:
    PredictionError: if there are none.
  """
  source = packed.find(features_dir)
  ids = source.ids() if requested is None else list(requested)
  if not ids and requested is None:
    raise PredictionError(f'{features_dir}: no feature files, <slide_id>.h5')
  readable, failures, unlike = [], [], []
  unstated = collections.Counter()
  for slide in ids:
    try:
      if pathlib.PurePath(slide).name != slide or '\\' in slide:
        raise FeatureError('its id is no name of a file')
      differences, unknown = card.compare(source.header(slide))
    except FeatureError as error:
      failures.append(Failure(slide, str(error)))
      continue
    readable.append(slide)
    unstated.update(unknown)
    if differences:
      unlike.append(f'{slide}: {", ".join(differences)}')
  for name, count in unstated.items():
    print(
      f'warning: {name} of {count} of {len(ids)} slides, or of the models, is'
      ' not stated. Make sure that they are alike.'
    )
  return Bags(source, readable, failures, unlike)
