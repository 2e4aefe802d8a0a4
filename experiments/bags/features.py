"""Features of slides: read, and compared with others."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import math
from typing import Any

from data import packed
from data.features import FeatureError
from experiments.run import progress
from experiments.run.check import Findings

_TOLERANCE = {'mpp': 1e-3}  # That tools measure.


def differences(made: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
  """Returns in what two kinds of features differ, as far as both state it.

  Args:
    made: of the features here, see `data.cohort.match`.
    other: of those there.
  """
  return [
    f'{name} {made[name]} here, {other[name]} there'
    for name in sorted(made.keys() & other.keys())
    if not _same(made[name], other[name], _TOLERANCE.get(name, 0))
  ]


def scan(
  source: packed.Folder | packed.Packed,
  slide_ids: Sequence[str],
  findings: Findings,
) -> None:
  """Reads all features: NaN and infinity, and damage that headers hide."""
  found = progress.bar(
    faults(source.read, slide_ids),
    desc='reading features',
    total=len(slide_ids),
    unit='slide',
  )
  findings.problems += filter(None, found)


def faults(
  read: Callable[[Any], object], items: Iterable[Any]
) -> Iterator[str]:
  """Reads in threads; yields of each item its fault, '' if there is none."""

  def fault(item):
    try:
      read(item)
    except FeatureError as e:
      return str(e)
    return ''

  with futures.ThreadPoolExecutor() as pool:
    yield from pool.map(fault, items)


def _same(one: str, other: str, tolerance: float) -> bool:
  try:
    return math.isclose(float(one), float(other), rel_tol=tolerance)
  except ValueError:
    return one == other
