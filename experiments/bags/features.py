"""Features of the slides of a table: found, and compared with each other."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import csv
import math
import pathlib
import re
import statistics
from typing import Any

from data import packed, slides
from data.features import FeatureError, Header
from experiments.run import progress
from experiments.run.check import Findings, some

# um/px of level 0 that scanners have; others are defaults or mistakes.
PLAUSIBLE = (0.1, 2.0)
FAILURES = 'failures.csv'  # What experiments.extract leaves of failed slides.
# TRIDENT states a magnification where others state um/px.
_STATED = ('encoder', 'mpp', 'patch_size', 'target_magnification')
_TOLERANCE = {'mpp': 1e-3}  # That tools measure.
_CAMELYON16 = re.compile(r'(tumor|normal|test)_\d{3}')


def find(
  source: packed.Folder | packed.Packed,
  slide_ids: Sequence[str],
  findings: Findings,
  *,
  others: frozenset[str] = frozenset(),
  allow_missing: bool = False,
) -> dict[str, Header]:
  """Returns the headers of the features that can be used, by slide.

  Args:
    source: of features.
    slide_ids: of the table.
    findings: receives what does not fit.
    others: further slides that may have features.
    allow_missing: slides without features are a warning, no problem.
  """
  spare = sorted(set(source.ids()) - set(slide_ids) - others)
  missing = [slide for slide in slide_ids if slide not in source]
  if missing:
    text = (
      f'{source.path}: no features of {len(missing)} of {len(slide_ids)}'
      f' labelled slides: {some(missing)}{_failed(source.path, missing)}.'
    )
    on_disk = {_normalised(slide): slide for slide in reversed(spare)}
    alike = [
      f'{slide} in the CSV, {on_disk[_normalised(slide)]} on disk'
      for slide in missing
      if _normalised(slide) in on_disk
    ]
    if alike:
      text += (
        ' Some ids differ only in leading zeros, which spreadsheets drop, in'
        f' case or in an extension: {some(alike)}.'
      )
    if allow_missing and len(missing) < len(slide_ids):
      findings.warnings.append(f'{text} They are left out.')
    else:
      findings.problems.append(
        f'{text} Run experiments.extract, or take them out of the CSV.'
      )
  if spare:
    findings.warnings.append(
      f'{source.path}: {len(spare)} feature files have no row in the CSV and'
      f' are not used: {some(spare)}'
    )
  headers = {}
  for slide in slide_ids:
    if slide in missing:
      continue
    try:
      header = source.header(slide)
    except FeatureError as e:
      findings.problems.append(str(e))
      continue
    if header.length and header.width:
      headers[slide] = header
    else:
      findings.problems.append(
        f'{source.path / slide}.h5: an empty bag, no features. Extract the'
        ' slide again.'
      )
  return headers


def shared(
  path: pathlib.Path, headers: Mapping[str, Header], findings: Findings
) -> dict[str, str]:
  """Returns how all features were made; what is mixed is a problem.

  Args:
    path: of the features.
    headers: by slide.
    findings: receives what does not fit.

  Returns:
    `dimensions`, `encoder`, `mpp`, `patch_size` and `target_magnification` as
    far as they are stated; of mixed ones the most frequent.
  """
  stated = {'dimensions': {slide: h.width for slide, h in headers.items()}}
  for name in _STATED:
    values = {slide: h.attributes.get(name) for slide, h in headers.items()}
    stated[name] = {s: v for s, v in values.items() if v is not None}
  same = {}
  for name, values in stated.items():
    texts = {slide: _text(value) for slide, value in values.items()}
    if not texts:
      continue
    same[name] = statistics.mode(texts.values())
    if odd := [slide for slide, text in texts.items() if text != same[name]]:
      findings.problems.append(
        f'{path}: features of different {name} are mixed:'
        f' {some(sorted(set(texts.values())))}; other than the rest are'
        f' {some(odd)}'
      )
  scales = {s: h.attributes.get('level0_mpp') for s, h in headers.items()}
  odd = [s for s, mpp in scales.items() if mpp is not None and not _likely(mpp)]
  if odd:
    findings.warnings.append(
      f'{path}: level0_mpp outside {PLAUSIBLE[0]} to {PLAUSIBLE[1]} um (slide'
      f' {odd[0]}: {scales[odd[0]]}): {some(odd)}; were the slides tiled at the'
      ' scale that was meant?'
    )
  public = [slide for slide in headers if _CAMELYON16.fullmatch(slide)]
  encoder = same.get('encoder', 'not named')
  if public and 'random' not in encoder:
    findings.warnings.append(
      f"{path}: slides named as CAMELYON16's: {some(public)}; the tiles of"
      ' PatchCamelyon are cut from them: features of an encoder that was'
      f' trained on those (here: {encoder}) say nothing about new slides'
    )
  return same


def differences(made: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
  """Returns in what two kinds of features differ, as far as both state it.

  Args:
    made: of the features here, see `shared`.
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


def _failed(folder: pathlib.Path, missing: Sequence[str]) -> str:
  """Says which of the slides could not be extracted, and why."""
  path = folder / FAILURES
  if not path.exists():
    return ''
  with path.open(newline='', encoding='utf-8', errors='replace') as file:
    # A file of that name may be another tool's.
    reasons = {r.get('slide_id'): r.get('reason') for r in csv.DictReader(file)}
  known = [f'{s}: {reasons[s]}' for s in missing if s in reasons]
  return f' (extraction failed: {some(known)})' if known else ''


def _normalised(slide: str) -> str:
  """Returns an id without what a spreadsheet or a tool may have changed."""
  name = slides.slide_id(slide.casefold())
  return name.removesuffix('.h5').removesuffix('.0').lstrip('0')


def _text(value: Any) -> str:
  """Returns a value to compare by; float32 attributes are rounded."""
  if isinstance(value, float) and math.isfinite(value):
    return str(round(value, 6))
  return (
    value.decode(errors='replace') if isinstance(value, bytes) else str(value)
  )


def _same(one: str, other: str, tolerance: float) -> bool:
  try:
    return math.isclose(float(one), float(other), rel_tol=tolerance)
  except ValueError:
    return one == other


def _likely(mpp: Any) -> bool:
  low, high = PLAUSIBLE
  return isinstance(mpp, int | float) and low <= mpp <= high
