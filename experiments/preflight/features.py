"""Joins the slides of a table with feature files."""

from collections.abc import Sequence
from concurrent import futures
import csv
import math
import pathlib
import re
from typing import Any

from data import packed, slides
from data.features import FeatureError, Header
from experiments.preflight.findings import Findings, some
from experiments.run import progress

# um/px of level 0 that scanners have; others are defaults or mistakes.
PLAUSIBLE = (0.1, 2.0)
FAILURES = 'failures.csv'  # What experiments.extract leaves of failed slides.
# TRIDENT states a magnification where others state um/px.
_STATED = ('encoder', 'mpp', 'patch_size', 'target_magnification')
_CAMELYON16 = re.compile(r'(tumor|normal|test)_\d{3}')


def join(
  source: packed.Folder | packed.Packed,
  slides: Sequence[str],
  findings: Findings,
  *,
  others: frozenset[str] = frozenset(),
  allow_missing: bool = False,
) -> tuple[dict[str, Header], dict[str, str]]:
  """Reads the headers of all slides' features, and how they were made.

  Args:
    source: of features.
    slides: ids in the table.
    findings: receives all that does not fit.
    others: further slides that may have features.
    allow_missing: slides without features are a warning.

  Returns:
    Headers by slide, of those that can be used, and `dimensions`, `encoder`,
    `mpp`, `patch_size` and `target_magnification` as far as they are stated.
  """
  spare = sorted(set(source.ids()) - set(slides) - others)
  missing = [slide for slide in slides if slide not in source]
  hints = _hints(missing, spare)
  if missing:
    text = (
      f'{source.path}: no features of {len(missing)} of {len(slides)} labelled'
      f' slides: {some(missing)}{_reasons(source.path, missing)}'
    )
    if allow_missing and len(missing) < len(slides):
      findings.warnings.append(f'{text}; they are left out{hints}')
    else:
      advice = 'run experiments.extract, or take them out of the CSV'
      findings.problems.append(f'{text}; {advice}' + hints)
  if spare:
    findings.warnings.append(
      f'{source.path}: {len(spare)} feature files have no row in the CSV and'
      f' are not used: {some(spare)}'
    )
  headers = {}
  for slide in slides:
    if slide not in source:
      continue
    try:
      headers[slide] = source.header(slide)
    except FeatureError as e:
      findings.problems.append(str(e))
  return headers, _made(source, headers, findings)


def scan(
  source: packed.Folder | packed.Packed,
  slides: Sequence[str],
  findings: Findings,
) -> None:
  """Reads all features: NaN and infinity, and damage that headers hide."""

  def fault(slide):
    try:
      source.read(slide)
    except FeatureError as e:
      return str(e)
    return None

  with futures.ThreadPoolExecutor() as pool:
    found = progress.bar(
      pool.map(fault, slides),
      desc='reading features',
      total=len(slides),
      unit='slide',
    )
    findings.problems += filter(None, found)


def unlike(made: dict[str, str], other: dict[str, str]) -> str:
  """Says how features differ from others in their making; '' if in nothing."""
  return '; '.join(
    f'{name} {made[name]} here, {other[name]} there'
    for name in sorted(made.keys() & other.keys())
    if made[name] != other[name]
  )


def _hints(missing: Sequence[str], spare: Sequence[str]) -> str:
  """Says which files may be meant by ids that have none."""
  by_look: dict[str, list[str]] = {}
  for slide in spare:
    by_look.setdefault(_look(slide), []).append(slide)
  pairs = [
    f'{slide} in the CSV, {other} on disk'
    for slide in missing
    for other in by_look.get(_look(slide), [])[:1]
  ]
  if not pairs:
    return ''
  return (
    '. Some ids differ only in leading zeros, which spreadsheets drop, in case'
    f' or in an extension: {some(pairs)}'
  )


def _reasons(folder: pathlib.Path, missing: Sequence[str]) -> str:
  """Says which of the slides were tried in vain, and why."""
  path = folder / FAILURES
  if not path.exists():
    return ''
  with path.open(newline='', encoding='utf-8', errors='replace') as file:
    rows = list(csv.DictReader(file))
  # A file of that name may be another tool's.
  reasons = {r.get('slide_id'): r.get('reason') for r in rows}
  told = [f'{s}: {reasons[s]}' for s in missing if s in reasons]
  return f' (extraction failed: {some(told)})' if told else ''


def _look(slide: str) -> str:
  """What ids have in common that a spreadsheet or a tool took apart."""
  look = slides.slide_id(slide.casefold())
  return look.removesuffix('.h5').removesuffix('.0').lstrip('0')


def _made(
  source: packed.Folder | packed.Packed,
  headers: dict[str, Header],
  findings: Findings,
) -> dict[str, str]:
  """Returns how all features were made; what is mixed is a problem."""
  made: dict[str, dict[str, Any]] = {
    'dimensions': {slide: h.width for slide, h in headers.items()}
  }
  for name in _STATED:
    # Not every tool says how its features were made.
    made[name] = {
      slide: h.attributes[name]
      for slide, h in headers.items()
      if h.attributes.get(name) is not None
    }
  same = {}
  for name, stated in made.items():
    values = [_text(v) for v in stated.values()]
    if not values:
      continue
    usual = max(values, key=values.count)
    odd = [s for s, v in zip(stated, values, strict=True) if v != usual]
    if odd:
      findings.problems.append(
        f'{source.path}: features of different {name} are mixed:'
        f' {some(sorted(set(values)))}; other than the rest are {some(odd)}'
      )
    same[name] = usual
  scales = {s: h.attributes.get('level0_mpp') for s, h in headers.items()}
  odd = [s for s, mpp in scales.items() if mpp is not None and not _likely(mpp)]
  if odd:
    findings.warnings.append(
      f'{source.path}: level0_mpp outside {PLAUSIBLE[0]} to {PLAUSIBLE[1]} um'
      f' (slide {odd[0]}: {scales[odd[0]]}): {some(odd)}; were the slides tiled'
      ' at the scale that was meant?'
    )
  public = [slide for slide in headers if _CAMELYON16.fullmatch(slide)]
  encoder = same.get('encoder', 'not named')
  if public and 'random' not in encoder:
    findings.warnings.append(
      f"{source.path}: slides named as CAMELYON16's: {some(public)}; the tiles"
      ' of PatchCamelyon are cut from them: features of an encoder that was'
      f' trained on those (here: {encoder}) say nothing of new slides'
    )
  return same


def _text(value: Any) -> str:
  """Returns a value to compare by; float32 attributes are rounded."""
  if isinstance(value, float) and math.isfinite(value):
    return str(round(value, 6))
  return str(value)


def _likely(mpp: Any) -> bool:
  low, high = PLAUSIBLE
  return isinstance(mpp, int | float) and low <= mpp <= high
