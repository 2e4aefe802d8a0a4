"""Features of slides: read, and compared with others."""

import collections
from collections.abc import Mapping, Sequence
import math
import pathlib

from data import inspection, packed
from experiments.run import progress
from kmil_jax import parallel

_PATIENCE = 0.5  # Seconds before a bar shows: none where all is known.
_TOLERANCE = {'mpp': 1e-3}  # That tools measure.


def differences(
  attributes: Mapping[str, str], other: Mapping[str, str]
) -> list[str]:
  """Returns in what two kinds of features differ, as far as both state it.

  Args:
    attributes: of the features here, see `data.cohort.match`.
    other: of those there.
  """
  return [
    f'{name} {attributes[name]} here, {other[name]} there'
    for name in sorted(attributes.keys() & other.keys())
    if not _same(attributes[name], other[name], _TOLERANCE.get(name, 0))
  ]


def scan(
  source: packed.Folder | packed.Packed,
  slide_ids: Sequence[str],
  cache_dir: pathlib.Path | None = None,
) -> None:
  """Reads all features, unless it is known what is in them; shows a bar.

  Args:
    source: of features; its `seen` is filled.
    slide_ids: whose.
    cache_dir: where it is kept what is in files.
  """
  reads = inspection.inspect(
    source, slide_ids, cache_dir, keep=parallel.is_first()
  )
  bar = progress.bar(
    reads,
    desc='reading features',
    total=len(slide_ids),
    unit='slide',
    delay=_PATIENCE,
  )
  collections.deque(bar, maxlen=0)


def _same(one: str, other: str, tolerance: float) -> bool:
  try:
    return math.isclose(float(one), float(other), rel_tol=tolerance)
  except ValueError:
    return one == other
