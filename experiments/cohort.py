"""The cohort of an experiment: slides, labels, features and splits, joined."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np

from data import labels as label_files, packed, slides
from data.cohort import CohortError, match
from data.features import FeatureError, FeatureFile
from data.files import first_of
from data.labels import Manifest
from experiments import class_labels
from experiments.preflight.findings import Findings

# What else a feature file says of its making.
_STATED = ('precision', 'overlap', 'min_tissue', 'augment')


@dataclasses.dataclass(frozen=True)
class Cohort:
  """n slides in the order of their ids, each with features."""

  manifest: Manifest
  classes: tuple[str, ...]  # C names
  label: np.ndarray  # int32 [n]
  source: packed.Folder | packed.Packed  # of features
  length: np.ndarray  # int32 [n], instances
  width: int  # D
  slides: dict[str, pathlib.Path]  # slide files by id, where there are any
  left_out: frozenset[str]  # listed, but relabelled away or without features
  made: dict[str, str]  # encoder, mpp, patch_size of the features, if known
  warnings: tuple[str, ...] = ()  # what was odd in joining them

  def read(self, index: int) -> FeatureFile:
    """Reads the features of a slide."""
    return self.source.read(self.manifest.slide[index])

  def read_placed(self, index: int) -> FeatureFile:
    """Reads a slide's features; its file turns micrometres into pixels.

    STAMP stores coordinates in micrometres and not the slide's scale. Without a
    readable slide file they stay unknown.
    """
    found, slide = self.read(index), self.manifest.slide[index]
    in_micrometres = found.coords is None and found.attributes.get('unit')
    if not in_micrometres or slide not in self.slides:
      return found
    try:
      with slides.Slide(self.slides[slide]) as opened:
        mpp = opened.mpp
    except slides.SlideError:
      return found  # Whoever draws it says why there is no picture.
    return self.source.read(slide, mpp)

  def about(self) -> dict[str, Any]:
    """What a model trained on the cohort takes, as JSON has it."""
    header = self.source.header(self.manifest.slide[0])
    stated = {
      name: str(header.attributes[name])
      for name in _STATED
      if name in header.attributes
    }
    known = {k: v for k, v in self.made.items() if k != 'dimensions'}
    return {
      'classes': list(self.classes),
      'width': int(self.width),
      'features': stated | known,
      'features_dir': str(self.source.path.absolute()),
      'left_out': sorted(self.left_out),
    }

  def rows(self) -> list[list]:
    """Rows of cohort.csv, its header first: every slide and its size."""
    table = self.manifest
    columns = (table.case, table.slide, table.label, self.length)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [[*label_files.COLUMNS, 'instances'], *map(list, rows)]

  def fingerprint(self) -> dict[str, str]:
    """Hashes of what a result depends on: labels and feature files."""
    table, labels = self.manifest, hashlib.sha256()
    for column in (table.case, table.slide, table.label):
      labels.update('\n'.join(column).encode())
    content = hashlib.sha256()
    for slide in table.slide:
      content.update(f'{slide} {self.source.digest(slide)}\n'.encode())
    return {
      'labels_sha256': labels.hexdigest(),
      'features_sha256': content.hexdigest(),
    }


@dataclasses.dataclass(frozen=True)
class Joined:
  """Slides, labels and features as far as they fit together.

  Attributes:
    cohort: all that can be used; None if nothing can.
    table: every labelled slide, with features or without; None if the CSV
      cannot be read.
    left_out: slides that a relabelling dropped.
    findings: what does not fit.
  """

  cohort: Cohort | None
  table: Manifest | None
  left_out: frozenset[str]
  findings: Findings

  def checked(self) -> Cohort:
    """Returns the cohort with its warnings, having printed them.

    Raises:
      CohortError: naming all problems, if there are any.
    """
    if self.findings.problems:
      raise CohortError('\n'.join(self.findings.problems))
    self.findings.warn()
    return dataclasses.replace(
      self.cohort, warnings=tuple(self.findings.warnings)
    )


def load(csv_path: str, features_dir: str, **options: Any) -> Cohort:
  """Returns `join`'s cohort.

  Raises:
    CohortError: if there are problems, naming all of them.
  """
  return join(csv_path, features_dir, **options).checked()


def join(
  csv_path: str,
  features_dir: str,
  *,
  slides_dir: str | None = None,
  mapping: dict[str, str] | None = None,
  shuffle_seed: int | None = None,
  like: Cohort | None = None,
  allow_missing: bool = False,
) -> Joined:
  """Joins labels and features; what does not fit is found all at once.

  Problems are faults of the table, slides without features, files that cannot
  be read, and features that were not all made by one encoder at one width, mpp
  and tile size, or do not fit `like`.

  Args:
    csv_path: labels.
    features_dir: holds <slide_id>.h5 or .pt of every slide in the table, itself
      or in the one folder of features below it; or a dataset of
      experiments.pack.
    slides_dir: slide files, if any.
    mapping: old label to new; slides of other labels are left out.
    shuffle_seed: deals the labels anew to the cases, for the leak alarm.
    like: a cohort whose models this one is for: it gives the classes, and its
      features were made in the same way.
    allow_missing: leaves out slides without features, with a warning.
  """
  findings = Findings()
  nothing = Joined(None, None, frozenset(), findings)
  try:
    table, faults = label_files.scan(csv_path)
  except label_files.ManifestError as e:
    findings.problems.append(str(e))
    return nothing
  findings.problems += [f'{csv_path}: {fault}' for fault in faults]
  listed = frozenset(table.slide.tolist())
  try:
    table = class_labels.relabelled(table, mapping)
  except label_files.ManifestError as e:
    findings.problems.append(str(e))
  left_out = listed - frozenset(table.slide.tolist())
  if shuffle_seed is not None and len(table.slide):
    table = class_labels.shuffled(table, shuffle_seed)
  classes = like.classes if like else class_labels.ordered(table.label)
  unknown = sorted(set(table.label.tolist()) - set(classes))
  if unknown:
    findings.problems.append(
      f'{csv_path}: labels {first_of(unknown)} are none of those the models'
      f' know: {", ".join(classes)}'
    )
  if len(classes) == 1:
    findings.problems.append(f'{csv_path}: one class only, {classes[0]}')
  files = {}
  try:
    if slides_dir:
      files = {slides.slide_id(p): p for p in slides.list_slides(slides_dir)}
  except slides.SlideError as e:
    findings.problems.append(str(e))
  try:
    source = packed.find(features_dir)
  except FeatureError as e:
    findings.problems.append(str(e))
    return Joined(None, table, left_out, findings)
  found = match(
    source,
    table.slide.tolist(),
    others=left_out,
    allow_missing=allow_missing,
  )
  findings.problems += found.problems
  findings.warnings += found.warnings
  if like and (differ := _differences(found.made, like.made)):
    findings.problems.append(
      f'{features_dir}: these features and those of the models differ: {differ}'
    )
  has = np.array([slide in found.headers for slide in table.slide], bool)
  # What else is wrong with slides of known labels is told, too.
  has &= np.isin(table.label, classes)
  usable = table.subset(has)
  if not has.any() or len(classes) < 2:
    return Joined(None, table, left_out, findings)
  cohort = Cohort(
    manifest=usable,
    classes=classes,
    label=np.array([classes.index(x) for x in usable.label], np.int32),
    source=source,
    length=np.array([found.headers[s].length for s in usable.slide], np.int32),
    width=found.headers[usable.slide[0]].width,
    slides=files,
    left_out=left_out | frozenset(table.slide[~has].tolist()),
    made=found.made,
  )
  return Joined(cohort, table, left_out, findings)


def _differences(made: dict[str, str], other: dict[str, str]) -> str:
  """Says how features differ from others in their making; '' if in nothing."""
  return '; '.join(
    f'{name} {made[name]} here, {other[name]} there'
    for name in sorted(made.keys() & other.keys())
    if made[name] != other[name]
  )


def check_apart(first: Cohort, second: Cohort) -> None:
  """Refuses a second cohort that holds slides of the first.

  Raises:
    CohortError: naming slides whose features are the same file.
  """
  seen = {first.source.digest(s) for s in first.manifest.slide}
  shared = [
    slide
    for slide in second.manifest.slide
    if second.source.digest(slide) in seen
  ]
  if shared:
    raise CohortError(
      f'the second cohort holds {len(shared)} slides of the first, on which the'
      f' models were trained: {first_of(shared)}; take them out of its CSV'
    )
  cases = sorted(set(first.manifest.case) & set(second.manifest.case))
  if cases:
    print(
      f'warning: both cohorts have cases named {first_of(cases)}; if they are'
      ' the same patients, the second cohort is not external'
    )
