"""The card of trained models: what they are, and which features they take."""

from collections.abc import Callable, Mapping
import dataclasses
import math
import pathlib
from typing import Any

from data.features import Header

_FORMAT = 1
# What features of a run and of new slides must have in common, where stated.
_USUAL = ('encoder', 'mpp', 'patch_size')
_ALIKE = (*_USUAL, 'target_magnification')  # The last is TRIDENT's.


class PredictionError(ValueError):
  """Models and slides that do not go together; says which and what to do."""


def _list_of(is_sound: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, list) and all(map(is_sound, value))


def _is(kind: type) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, kind)


def _is_count(value: Any) -> bool:
  return type(value) is int and value >= 0


def _is_temperature(value: Any) -> bool:
  return value is None or (type(value) in (int, float) and 0 < value < 1e6)


# What JSON must hold under each name of a card.
_SOUND = (
  ('model', _is(str)),
  ('task', _is(str)),
  ('classes', _list_of(_is(str))),
  ('width', _is_count),
  ('folds', _list_of(_is_count)),
  ('temperature', _list_of(_is_temperature)),
  ('sha256', _list_of(_is(str))),
  ('settings', _is(dict)),
  ('features', _is(dict)),
  ('training', _is(dict)),
  ('made_by', _list_of(_is(dict))),
)


@dataclasses.dataclass(frozen=True)
class Card:
  """The models of R folds."""

  model: str
  task: str
  classes: tuple[str, ...]  # C names
  width: int  # of the features
  folds: tuple[int, ...]  # R
  # [R], fitted on validation slides; None where it was not, see `scores`.
  temperature: tuple[float | None, ...]
  sha256: tuple[str, ...]  # [R], of weights and settings
  settings: Mapping[str, Any]
  features: Mapping[str, str]  # how they were made, as far as they say
  training: Mapping[str, str]  # hashes of labels, features and splits
  made_by: tuple[Mapping[str, Any], ...]  # versions, commits

  def uncalibrated(self) -> 'Card':
    """Returns the card without temperatures."""
    nothing = (None,) * len(self.folds)
    return dataclasses.replace(self, temperature=nothing)

  def to_json(self) -> dict[str, Any]:
    """Returns the card as JSON has it."""
    return {'format': _FORMAT} | dataclasses.asdict(self)

  @classmethod
  def from_json(
    cls, path: pathlib.Path | str, value: Mapping[str, Any]
  ) -> 'Card':
    """Returns what `to_json` was called on.

    Raises:
      PredictionError: if it is something else, naming the file at `path`.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    missing = [name for name in names if name not in value]
    if value.get('format') != _FORMAT or missing:
      raise PredictionError(
        f'{path}: a card of format {value.get("format")}'
        f'{", without " + ", ".join(missing) if missing else ""}; this version'
        f' reads format {_FORMAT}: export the model again'
      )
    values = {name: value[name] for name in names}
    if wrong := [
      name for name, is_sound in _SOUND if not is_sound(values[name])
    ]:
      raise PredictionError(
        f'{path}: {", ".join(wrong)} of its card are not as written; export the'
        ' model again'
      )
    lists = [name for name in names if isinstance(values[name], list)]
    card = cls(**values | {name: tuple(values[name]) for name in lists})
    if not len(card.folds) == len(card.temperature) == len(card.sha256) > 0:
      raise PredictionError(f'{path}: a card without a temperature per fold')
    return card

  def summary(self) -> str:
    """Returns a line that says what the models are."""
    return (
      f'{self.model} of folds {", ".join(map(str, self.folds))}; classes'
      f' {", ".join(self.classes)}; {self.width} features of encoder'
      f' {self.features.get("encoder", "unknown")}'
    )

  def differences(self, header: Header) -> list[str]:
    """Says what keeps features from being those of the models.

    What a file does not state is not compared.

    Returns:
      Nothing for features that fit.
    """
    found = []
    if header.width != self.width:
      found.append(f'{header.width} features, not {self.width}')
    for name in _ALIKE:
      mine, theirs = self.features.get(name), header.attributes.get(name)
      if None not in (mine, theirs) and not _same(mine, str(theirs)):
        found.append(f'{name} {theirs}, not {mine}')
    return found

  def unstated(self, header: Header) -> list[str]:
    """Names what most tools state and could not be compared."""
    return [
      name
      for name in _USUAL
      if self.features.get(name) is None or header.attributes.get(name) is None
    ]


def _same(one: str, other: str) -> bool:
  try:
    return math.isclose(float(one), float(other), rel_tol=1e-3)
  except ValueError:
    return one == other
