"""Slides of a table joined with their features, or every fault named."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path
import re
import statistics
from typing import Any, NamedTuple
import warnings

import numpy as np

from data import inspection, labels, packed, slides
from data.features import READ, FeatureError, Header
from data.files import first_of

# TRIDENT states a magnification where others state um/px.
_STATED = 'encoder', 'normalisation', 'precision'
_STATED += 'mpp', 'patch_size', 'target_magnification'
_TOLERANCE = {'mpp': 1e-3}  # That tools measure.
_CAMELYON16 = re.compile(r'(tumor|normal|test)_\d{3}')


class CohortError(ValueError):
  """Slides, labels and features that do not fit; says which and how."""


@dataclasses.dataclass(frozen=True)
class LabelledBags:
  """n slides in the order of their ids, as `kmil_jax.fit` takes them."""

  bags: list[np.ndarray]  # of [N_i, D] float32
  labels: np.ndarray  # [n] str
  patients: np.ndarray  # [n] str, the case ids
  slides: np.ndarray  # [n] str


def read_cohort(
  csv_path: str | Path,
  features_dir: str | Path,
  *,
  allow_missing: bool = False,
) -> LabelledBags:
  """Reads the labels and all features of a cohort.

  Files are read once, in this process. `data.inspection` reads them in others
  before, which takes longer by a third and more: where HDF5's library hangs or
  crashes on a damaged file, `experiments.kmil --check` names it.

  Args:
    csv_path: table with the columns case_id, slide_id and label.
    features_dir: holds <slide_id>.h5 or .pt of every slide in the table, itself
      or in the one folder of features below it; or a dataset of
      experiments.pack.
    allow_missing: leaves out slides without features, with a warning.

  Raises:
    CohortError: naming all faults of the table, all slides without features,
      all files that cannot be read, and features that were not all made alike.
    ManifestError: if the table cannot be read at all.
    FeatureError: if there is no such folder, or several.
  """
  table, faults = labels.scan(csv_path)
  wrong, odd = labels.check(table)
  source, bags = packed.find(features_dir), []
  for slide in filter(source.__contains__, table.slide.tolist()):
    try:
      bag = source.read(slide)
      source.seen[slide] = inspection.of(bag, source.header(slide))
      bags.append(bag.features)
    except FeatureError as error:
      source.seen[slide] = inspection.Inspection(fault=str(error))
  matched = match(source, table, allow_missing=allow_missing)
  problems = [f'{csv_path}: {fault}' for fault in faults + wrong]
  if problems := problems + matched.problems:
    raise CohortError('\n'.join(problems))
  odd = [f'{csv_path}: {text}' for text in odd]
  for warning in odd + matched.warnings:
    warnings.warn(warning, stacklevel=2)
  table = table.subset(np.isin(table.slide, list(matched.headers)))
  return LabelledBags(bags, table.label, table.case, table.slide)


class Match(NamedTuple):
  """Features that belong to the slides of a table.

  Attributes:
    headers: by slide, in the table's order, of those that can be used.
    attributes: what all have in common, as far as they state it: `dimensions`,
      the encoder and what it computes, and the scale of the tiles.
    problems: what makes features unusable, each with what and where.
    warnings: what may be meant.
  """

  headers: dict[str, Header]
  attributes: dict[str, str]
  problems: list[str]
  warnings: list[str]


def match(
  source: packed.Folder | packed.Packed,
  table: labels.Manifest,
  *,
  others: frozenset[str] = frozenset(),
  allow_missing: bool = False,
) -> Match:
  """Reads the headers of all slides' features, and how they were made.

  Args:
    source: of features, as far as `data.inspection` has seen them.
    table: of slides.
    others: further slides that may have features.
    allow_missing: slides without features are a warning.
  """
  matched, slide_ids = Match({}, {}, [], []), table.slide.tolist()
  spare = sorted(set(source.ids()) - set(slide_ids) - others)
  missing = [slide for slide in slide_ids if slide not in source]
  if missing:
    text = (
      f'{source.path}: no features of {len(missing)} of {len(slide_ids)}'
      f' labelled slides: {first_of(missing)}'
    )
    hints = labels.hints(missing, spare, '{} in the CSV, {} on disk')
    hints += _kinds(source.path, missing)
    if allow_missing and len(missing) < len(slide_ids):
      matched.warnings.append(f'{text}. They are left out.{hints}')
    else:
      matched.problems.append(
        f'{text}. Run experiments.extract, whose failures.csv says why it made'
        f' none, or leave them out with --allow_missing.{hints}'
      )
  if spare:
    matched.warnings.append(
      f'{source.path}: {len(spare)} feature files have no row in the CSV and'
      f' are not used: {first_of(spare)}'
    )
  for slide in slide_ids:
    if slide not in source:
      continue
    try:
      matched.headers[slide] = source.header(slide)
    except FeatureError as error:
      matched.problems.append(str(error))
  compare(source.path, matched)
  cases = dict(zip(slide_ids, table.case.tolist(), strict=True))
  faults, odd = inspection.report(source.path, source.seen, cases)
  matched.problems.extend(faults)
  matched.warnings.extend(odd)
  return matched


def compare(path: Path, matched: Match) -> None:
  """Fills in how all features were made; what is mixed is a problem.

  Args:
    path: of the features.
    matched: has their headers.
  """
  attributes = {
    slide: h.attributes | {'dimensions': h.width}
    for slide, h in matched.headers.items()
  }
  for name in ('dimensions', *_STATED):
    # Not every tool says how its features were made.
    stated = {
      slide: _text(values[name])
      for slide, values in attributes.items()
      if values.get(name) is not None
    }
    if not stated:
      continue
    matched.attributes[name] = usual = statistics.mode(stated.values())
    if odd := [s for s in stated if not _same(stated[s], usual, 0)]:
      matched.problems.append(
        f'{path}: features of different {name} are mixed:'
        f' {first_of(sorted(set(stated.values())))}. Other than the rest are'
        f' {first_of(odd)}. Extract all of them alike, or into folders apart.'
      )
  low, high = slides.SCANNER_MPP
  scales = {s: v.get('level0_mpp', low) for s, v in attributes.items()}
  if odd := [
    slide
    for slide, mpp in scales.items()
    if not isinstance(mpp, int | float) or not low <= mpp <= high
  ]:
    matched.warnings.append(
      f'{path}: level0_mpp outside {low} to {high} um (slide {odd[0]}:'
      f' {scales[odd[0]]}): {first_of(odd)}. Were the slides tiled at the scale'
      ' that was meant?'
    )
  public = list(filter(_CAMELYON16.fullmatch, matched.headers))
  encoder = matched.attributes.get('encoder', 'not named')
  if public and 'random' not in encoder:
    matched.warnings.append(
      f"{path}: slides named as CAMELYON16's: {first_of(public)}. The tiles"
      ' of PatchCamelyon are cut from them: features of an encoder that was'
      f' trained on those (here: {encoder}) do not show how it does on new'
      ' slides.'
    )


def differences(
  attributes: Mapping[str, str], other: Mapping[str, str]
) -> list[str]:
  """Returns in what two kinds of features differ, as far as both state it.

  Args:
    attributes: of the features here, see `Match`.
    other: of those there.
  """
  return [
    f'{name} {attributes[name]} here, {other[name]} there'
    for name in sorted(attributes.keys() & other.keys())
    if not _same(attributes[name], other[name], _TOLERANCE.get(name, 0))
  ]


def _kinds(folder: Path, missing: Sequence[str]) -> str:
  """Says in what the files end that slides without features have there."""
  paths, slides_without = folder.iterdir(), set(missing)
  kinds = {p.suffix for p in paths if p.stem in slides_without and p.suffix}
  if not kinds:
    return ''
  return (
    f' Files of these slides end in {", ".join(sorted(kinds))} there, and'
    f' features are read from {", ".join(READ)}.'
  )


def _text(value: Any) -> str:
  """Returns a value to compare by; float32 attributes are rounded."""
  if isinstance(value, float) and math.isfinite(value):
    return str(round(value, 6))
  return str(value)


def _same(one: str, other: str, tolerance: float) -> bool:
  if one == other:
    return True
  try:
    return math.isclose(float(one), float(other), rel_tol=tolerance)
  except ValueError:
    return False
