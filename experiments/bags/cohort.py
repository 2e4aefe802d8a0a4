"""The cohort of an experiment: slides, labels, features and folds, joined."""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import hashlib
import math
import pathlib
from typing import Any

import numpy as np

from data import (
  inspection,
  labels as label_files,
  packed,
  slides,
  splits as split_files,
)
from data.cohort import CohortError, differences, match
from data.features import FeatureError, FeatureFile
from data.files import clean, first_of, free_space, memory, replacing
from data.labels import Manifest
from data.splits import Split
from data.tissue import Rule
from experiments.bags.options import STORES, Data, External, Folds
from experiments.run import phantoms, progress
from experiments.run.options import OptionError
from experiments.run.results import Folder
from experiments.run.start import Findings, gathered
from kmil_jax import parallel, splits
from kmil_jax.models.network import dtype_of
from kmil_jax.tasks.bags import BagLoader, num_rows
from kmil_jax.types import Store

# The paper's class ids; its slide names end in them.
PAPER_CLASSES = ('non-tumor', 'lymphoma', 'breast', 'squamous', 'thyroid')
METASTATIC = 'metastatic'
_TASKS = {'a': (0, 1, 2, 3, 4), 'b': (0, 1), 'c': (1, 2, 3, 4)}
# What else a feature file says of its making.
_STATED = 'overlap', 'min_tissue', 'min_focus', 'augment'
_STATED += Rule._fields  # If they are not as by default.
# Share of a device's memory that features may take and stay resident; on CPUs
# the array they were read into comes on top.
_RESIDENT_SHARE = 0.4


def room() -> float:
  """Returns the bytes of a device that features may take."""
  return _RESIDENT_SHARE * parallel.memory_bytes(memory())


@dataclasses.dataclass(frozen=True)
class Cohort:
  """n slides in the order of their ids, each with features."""

  manifest: Manifest
  classes: tuple[str, ...]  # C names
  label: np.ndarray  # int32 [n]
  source: packed.Folder | packed.Packed  # of features
  length: np.ndarray  # int32 [n], instances
  width: int  # D
  slides: dict[str, pathlib.Path]  # slide files by id, as far as there are any
  left_out: frozenset[str]  # listed, but relabelled away or without features
  attributes: dict[str, str]  # of the features, see `data.cohort.Match`
  cache_dir: pathlib.Path | None = None  # where copies of features may be kept

  def read(self, index: int) -> FeatureFile:
    """Reads the features of a slide."""
    slide = self.manifest.slide[index]
    bag = self.source.read(slide)
    if len(bag.features) != self.length[index]:
      raise FeatureError(
        f'slide {slide}: its features were changed while they were in use. Give'
        ' the command again.'
      )
    return bag

  def read_placed(self, index: int) -> FeatureFile:
    """Reads a slide's features; its file turns micrometres into pixels.

    STAMP stores coordinates in micrometres and not the slide's scale. Without a
    readable slide file they stay unknown.
    """
    file, slide = self.read(index), self.manifest.slide[index]
    in_micrometres = file.coords is None and file.attributes.get('unit')
    if not in_micrometres or slide not in self.slides:
      return file
    try:
      with slides.Slide(self.slides[slide]) as opened:
        mpp = opened.mpp
    except slides.SlideError:
      return file  # Whoever draws it says why there is no picture.
    return self.source.read(slide, mpp)

  def resident_bytes(self, precision: str) -> int:
    """Returns the bytes of all features on a device."""
    size = dtype_of(precision).itemsize
    return num_rows(self.length) * self.width * size

  def store_of(self, precision: str, store: str) -> str:
    """Returns which of `STORES`: the one asked for, or the first that fits.

    'spread' has to be asked for on CPUs, where a stream reads the same memory.
    """
    if store in STORES:
      return store
    shares = 1 if parallel.platform() == 'cpu' else parallel.num_devices()
    size = self.resident_bytes(precision)
    fits = size <= room(), size / shares <= room(), True
    return STORES[int(parallel.agree(fits.index(True)))]

  def bags(self, precision: str, store: str, cache_gib: int = 0) -> BagLoader:
    """Returns the bags, ready for training.

    Args:
      precision: of the features, see `network.build`.
      store: see `store_of`.
      cache_gib: GiB up to which streamed features are copied to one file.

    Raises:
      FeatureError: naming every feature file that cannot be read.
    """
    where = self.store_of(precision, store)
    dtype, length = dtype_of(precision), self.length
    ends = np.cumsum(length, dtype=np.int64)
    table = Store(
      features=None,
      offset=(ends - length).astype(np.int32),
      length=length,
      label=self.label,
    )
    loader = BagLoader(table, len(self.classes), self.width)
    if where != 'streamed':
      spread = where == 'spread'
      rows = num_rows(length)
      if spread:  # Shares are cut at the longest length, wherever a bag starts.
        rows = max(rows, int(ends[-1]) + loader.buckets[-1])
      shape = rows, self.width
      make = parallel.Spread.zeros if spread else np.zeros
      held = make(shape, dtype)

      def put(i):
        start = ends[i] - length[i]
        try:
          x = self.read(i).features
          if spread:
            held.write(start, x)
          else:
            held[start : ends[i]] = x
        except FeatureError as e:
          return str(e)

      with futures.ThreadPoolExecutor() as pool:
        faults = [*filter(None, pool.map(put, range(len(ends))))]
      if faults:
        raise FeatureError('\n'.join(faults))
      loader = dataclasses.replace(loader, store=table.replace(features=held))
      if not spread:
        return loader

    def from_files(bucket, index):
      # It imports TensorFlow, which takes seconds.
      from data import pipeline

      batches = pipeline.bag_batches(
        lambda i: self.read(i).features,
        self.width,
        loader.buckets,
        bucket,
        index,
      )
      yield from (batch.astype(dtype, copy=False) for batch in batches)

    def from_copy(bucket, index):
      for b, bags in zip(bucket, index, strict=True):
        size, starts = loader.buckets[b], table.offset[np.maximum(bags, 0)]
        yield np.stack([copy[start : start + size] for start in starts])

    loader = dataclasses.replace(loader, stream=from_files)
    if where == 'spread':  # The host has a share alone.
      return loader
    copy = self._copied(loader, dtype, cache_gib * 2**30)
    if copy is None:
      return loader
    return dataclasses.replace(loader, stream=from_copy)

  def _copied(
    self, loader: BagLoader, dtype: np.dtype, most: int
  ) -> np.ndarray | None:
    """Returns all rows of a store, mapped from a copy that is written once.

    Args:
      loader: reads the feature files, which takes longer.
      dtype: of the copy.
      most: bytes of the copy; None is returned where it would be larger, or
        leave less than its size free.
    """
    if not most or not self.cache_dir:
      return None
    shape = num_rows(self.length), self.width
    size = math.prod(shape) * dtype.itemsize
    name = f'{self.fingerprint()["features_sha256"][:16]}_{dtype}.bin'
    path = self.cache_dir / 'features' / name
    fits = size <= min(most, free_space(path.parent) // 2)
    copied = lambda: path.exists() and path.stat().st_size == size
    # Processes may share a disk.
    for mine in (parallel.is_first(), fits):
      if mine and fits and not copied():
        order = np.arange(len(self.length))
        bags = progress.bar(
          zip(loader.read(order), self.length, strict=True),
          desc='copying features',
          total=len(order),
          unit='slide',
        )
        try:
          with replacing(path) as part, part.open('wb') as file:
            for x, length in bags:
              file.write(x[:length].tobytes())
            file.truncate(size)  # Zeros follow.
        except OSError as e:  # As of a quota. It is only slower without.
          print(f'warning: {path} cannot be written ({e})', flush=True)
          fits = False
      parallel.wait_for_all('features')
    if parallel.is_first():
      about = f'{size / 2**30:.1f} GiB'
      print(
        f'features are streamed from {path} ({about}); it may be deleted later'
        if copied()
        else f'warning: features ({about}) are streamed from their files, which'
        f' is slow: --stream_cache allows {most / 2**30:g} GiB, and'
        f' {free_space(path) / 2**30:.1f} are free in {path.parent}, of which'
        ' half may be taken.'
      )
    return np.memmap(path, dtype, 'r', shape=shape) if copied() else None

  def fingerprint(self) -> dict[str, str]:
    """Returns hashes of what a result depends on: labels and feature files."""
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
class Material:
  """What an experiment trains and tests on, as far as it fits together.

  Attributes:
    cohort: all slides that can be used; None if there are none.
    splits: the folds, of the cohort's slides unless there are problems.
    second: a cohort to test the models on, if one is asked for and fits.
    group: by --group_col, of each slide of the cohort.
    warnings: on the cohort and its folds.
    findings: these, and all problems.
  """

  cohort: Cohort | None
  splits: list[Split]
  second: Cohort | None
  group: dict[str, str]
  warnings: tuple[str, ...]
  findings: Findings

  def check(self) -> None:
    """Prints the warnings.

    Raises:
      CohortError: naming all problems, if there are any.
    """
    if self.findings.problems:
      raise CohortError('\n'.join(self.findings.problems))
    if parallel.is_first():
      self.findings.warn()

  def inputs(self) -> dict[str, str]:
    """Returns hashes of labels, features and splits."""
    table = self.cohort.manifest
    return self.cohort.fingerprint() | {
      'splits_sha256': split_files.fingerprint(table, self.splits)
    }

  def about(self) -> dict[str, Any]:
    """Returns what users of the models need to know, as JSON has it."""
    cohort = self.cohort
    header = cohort.source.header(cohort.manifest.slide[0])
    stated = {
      name: str(header.attributes[name])
      for name in _STATED
      if name in header.attributes
    }
    known = {k: v for k, v in cohort.attributes.items() if k != 'dimensions'}
    return {
      'classes': list(cohort.classes),
      'width': int(cohort.width),
      'features': stated | known,
      'features_dir': str(cohort.source.path.absolute()),
      'left_out': sorted(cohort.left_out),
      'warnings': list(self.warnings),
    }

  def write(self, folder: Folder) -> None:
    """Writes cohort.csv and the splits into a results folder."""
    table = self.cohort.manifest
    columns = table.case, table.slide, table.label, self.cohort.length
    rows = zip(*(column.tolist() for column in columns), strict=True)
    header = [*label_files.COLUMNS, 'instances']
    folder.write('cohort.csv', [header, *rows])
    if parallel.is_first():
      split_files.write(folder.at('splits'), table, self.splits)


def load(
  data: Data,
  folds: Folds,
  seed: int,
  cache_dir: pathlib.Path,
  external: External | None = None,
) -> Material:
  """Returns slides with labels, features and folds, and a second cohort.

  What does not fit is gathered, not raised.

  Args:
    data: labels and features; by default those of the phantom.
    folds: how patients are assigned.
    seed: of folds that are made, and of labels that are shuffled.
    cache_dir: of the phantoms.
    external: the second cohort, if any.

  Raises:
    OptionError: see `relabelling`.
  """
  external = external or External()
  csv_path, features_dir = data.csv_path, data.features_dir
  slides_dir = data.slides_dir
  if not csv_path:
    root, features_dir = phantoms.make_cohort(cache_dir)
    csv_path, slides_dir = root / 'labels.csv', root / 'slides'
  mapping, findings = relabelling(data.task, data.labels), Findings()
  cohort, table, left_out = join(
    csv_path,
    features_dir,
    findings,
    slides_dir=slides_dir,
    mapping=mapping,
    shuffle_seed=seed if data.shuffle_labels else None,
    allow_missing=data.allow_missing,
    cache_dir=cache_dir,
  )
  if cohort and not findings.problems:
    # Folds are those of the slides that will be trained on.
    table, left_out = cohort.manifest, cohort.left_out
  group, parts = {}, []
  try:
    column = None
    if folds.group_col:
      column = label_files.column(csv_path, folds.group_col, table)
      if names := label_files.alike(column.tolist()):
        findings.warnings.append(
          f'{csv_path}: column {folds.group_col}: {names} differ only in how'
          ' they are spelled. If they are the same, spell them in one way'
        )
      group = dict(zip(table.slide.tolist(), column.tolist(), strict=True))
    parts = make_folds(table, folds, seed, findings, left_out, column)
  except label_files.ManifestError as e:
    findings.problems.append(str(e))
  warnings = tuple(findings.warnings)
  csv_path = external.external_csv
  features_dir, second = external.external_features_dir, None
  if external.external_phantom:
    root, features_dir = phantoms.make_cohort(cache_dir, external=True)
    csv_path = root / 'labels.csv'
  if csv_path and cohort:
    second, *_ = join(
      csv_path,
      features_dir,
      findings,
      mapping=mapping,
      like=cohort,
      allow_missing=data.allow_missing,
      cache_dir=cache_dir,
    )
  return Material(cohort, parts, second, group, warnings, findings)


def join(
  csv_path: pathlib.Path,
  features_dir: pathlib.Path,
  findings: Findings,
  *,
  slides_dir: pathlib.Path | None = None,
  mapping: dict[str, str] | None = None,
  shuffle_seed: int | None = None,
  like: Cohort | None = None,
  allow_missing: bool = False,
  cache_dir: pathlib.Path | None = None,
) -> tuple[Cohort | None, Manifest, frozenset[str]]:
  """Joins labels and features; what does not fit is found all at once.

  Problems are faults of the table, slides without features, files that cannot
  be read, numbers that cannot be used, and features that were not all made by
  one encoder at one width, mpp and tile size, or do not fit `like`.

  Args:
    csv_path: labels.
    features_dir: holds <slide_id>.h5 or .pt of every slide in the table, itself
      or in the one folder of features below it; or a dataset of
      experiments.pack.
    findings: receives problems and warnings.
    slides_dir: slide files, if any.
    mapping: old label to new; slides of other labels are left out.
    shuffle_seed: assigns the labels anew to the cases, for the leak alarm.
    like: a cohort whose models this one is for: it gives the classes, its
      features were made in the same way, and its slides are others.
    allow_missing: leaves out slides without features, with a warning.
    cache_dir: where it is kept what is in feature files.

  Returns:
    All that can be used, None if nothing can; every labelled slide, with
    features or without; and the slides that the relabelling dropped.
  """
  problems = findings.problems
  empty = np.array([], str)
  table = Manifest(empty, empty, empty)
  try:
    table, faults = label_files.scan(csv_path)
  except label_files.ManifestError as e:
    problems.append(str(e))
    return None, table, frozenset()
  problems += [f'{csv_path}: {fault}' for fault in faults]
  listed = frozenset(table.slide.tolist())
  try:
    table = relabelled(table, mapping, may_lack=bool(like))
  except label_files.ManifestError as e:
    problems.append(str(e))
  left_out = listed - frozenset(table.slide.tolist())
  wrong, odd = label_files.check(table)
  problems += [f'{csv_path}: {fault}' for fault in wrong]
  findings.warnings += [f'{csv_path}: {text}' for text in odd]
  if shuffle_seed is not None and len(table.slide):
    table = label_files.shuffled(table, shuffle_seed)
  classes = like.classes if like else ordered(table.label)
  if unknown := sorted(set(table.label.tolist()) - set(classes)):
    problems.append(
      f'{csv_path}: labels {first_of(unknown)} are none of those the models'
      f' know: {", ".join(classes)}. Rename them, or take their slides out.'
    )
  if len(classes) == 1:
    problems.append(f'{csv_path}: one class only, {classes[0]}. Add others.')
  slide_files, source = {}, None
  try:
    if slides_dir:
      with gathered(findings.warnings):
        paths = slides.list_slides(slides_dir)
      slide_files = {slides.slide_id(path): path for path in paths}
  except slides.SlideError as e:
    problems.append(str(e))
  try:
    source = packed.find(features_dir)
  except FeatureError as e:
    problems.append(str(e))
    return None, table, left_out
  ids, keep = table.slide.tolist(), parallel.is_first()
  reads = inspection.inspect(source, ids, cache_dir, keep=keep)
  for _ in progress.over(reads, 'reading features', len(ids)):
    pass  # What was read is in `source.seen`.
  found = match(source, table, others=left_out, allow_missing=allow_missing)
  headers, attributes = found.headers, found.attributes
  problems += found.problems
  theirs = like.attributes if like else {}
  if differ := differences(attributes, theirs):
    problems.append(
      f'{features_dir}: these features and those of the models differ:'
      f' {"; ".join(differ)}. Encode the slides as those of the models.'
    )
  findings.warnings += found.warnings
  has = np.array([slide in headers for slide in table.slide], bool)
  # Slides of unknown labels are a problem already; the others are joined.
  has &= np.isin(table.label, classes)
  if not has.any() or len(classes) < 2:
    return None, table, left_out
  usable = table.subset(has)
  lost = set(classes) - set(usable.label.tolist())
  if allow_missing and lost and not like:
    problems.append(
      f'{features_dir}: no slide of the classes {first_of(sorted(lost))} has'
      ' features. Take these classes out of the table, or by --labels.'
    )
  cohort = Cohort(
    manifest=usable,
    classes=classes,
    label=np.array([classes.index(x) for x in usable.label], np.int32),
    source=source,
    length=np.array([headers[s].length for s in usable.slide], np.int32),
    width=headers[usable.slide[0]].width,
    slides=slide_files,
    left_out=left_out | frozenset(table.slide[~has].tolist()),
    attributes=attributes,
    cache_dir=cache_dir,
  )
  if like:
    _check_apart(like, cohort, findings)
  return cohort, table, left_out


def _check_apart(first: Cohort, second: Cohort, findings: Findings) -> None:
  """Finds slides of the first cohort, by their features, in the second."""
  seen = {first.source.digest(s) for s in first.manifest.slide}
  shared = [s for s in second.manifest.slide if second.source.digest(s) in seen]
  if shared:
    findings.problems.append(
      'the second cohort holds slides of the first, on which the models were'
      f' trained: {first_of(shared)}. Take them out of its CSV.'
    )
  one, other = (
    {label_files.same_patient(c): c for c in of.manifest.case}
    for of in (first, second)
  )
  if cases := sorted(other[c] for c in one.keys() & other.keys()):
    findings.warnings.append(
      f'both cohorts have cases named {first_of(cases)}. If they are the same'
      ' patients, the second cohort is not external.'
    )


def make_folds(
  table: Manifest,
  folds: Folds,
  seed: int,
  findings: Findings,
  left_out: frozenset[str] = frozenset(),
  group: np.ndarray | None = None,
) -> list[Split]:
  """Reads or makes the folds; finds what is odd about them.

  Args:
    table: all labelled slides.
    folds: their number, and the folder that they are in, if any.
    seed: of folds that are made.
    findings: receives problems and warnings.
    left_out: slides that files may name though the table does not.
    group: of each slide, for folds that are made to keep whole.

  Returns:
    The folds; of a folder with problems those that could be read.
  """
  if not len(table.slide):
    return []  # Why its rows cannot be used was found before.
  if folds.split_dir:
    read = split_files.read(folds.split_dir, table, folds.k, left_out)
    parts, faults = read
    findings.problems += faults
    if (folds.split_dir / f'splits_{folds.k}.csv').exists():
      findings.warnings.append(
        f'{folds.split_dir} has more splits than --k={folds.k}: the others are'
        ' not used'
      )
  else:
    try:
      new = splits.make(table.case, table.label, folds.k, seed, group)
    except splits.SplitError as e:
      findings.problems.append(
        f'--k={folds.k}: {e} --labels merges classes, --split_dir reads other'
        ' splits.'
      )
      return []
    parts = [Split(*part) for part in new]
  findings.warnings += _oddities(table, parts)
  return parts


def _oddities(table: Manifest, folds: Sequence[Split]) -> list[str]:
  """Says what is odd about patients, classes and folds."""
  lines = []
  if mixed := label_files.mixed_cases(table):
    lines.append(
      f'cases with slides of several labels: {first_of(mixed)}.'
      ' Labels are those of slides, and cases stay whole in every split.'
    )
  if not folds:
    return lines
  if again := split_files.tested_again(table, folds):
    lines.append(
      'slides in the test part of several folds (repeated random splits?):'
      f' {first_of(again)}. Pooled figures count them each time.'
    )
  tests_nothing = len(folds) == 1 and not folds[0].test.any()
  if tests_nothing:
    lines.append(
      'one training without a test part. Its metrics are of the slides that'
      ' validate it, which flatters them: what the model is worth on other'
      ' patients is not known'
    )
    if (folds[0].train & folds[0].val).any():
      lines.append(
        'no class has two cases: the training slides themselves validate, so'
        ' that the metrics say nothing'
      )
  for part in ('val',) if tests_nothing else ('test', 'val'):
    without = [
      f'{name} in fold {i}'
      for i, split in enumerate(folds)
      for name in np.unique(table.label)
      if name not in table.label[getattr(split, part)]
    ]
    if without:
      lines.append(
        f'{part} parts without a slide of a class: {first_of(without)}. There'
        ' is no AUROC of that fold'
        + ('.' if tests_nothing else ', only the pooled one.')
      )
  used = np.any([s.train | s.val | s.test for s in folds], axis=0)
  if not used.all():
    names = table.slide[~used].tolist()
    lines.append(f'no fold names the slides {first_of(names)}')
  return lines


def relabelling(
  task: str, labels: Sequence[str] | None
) -> dict[str, str] | None:
  """Returns the new label of each old one by --task and --labels.

  The paper's tasks (Zheng et al. 2024, as run in the released code): a tells
  non-tumor, lymphoma and metastatic apart; b non-tumor and lymphoma; c lymphoma
  and metastatic. None leaves all labels as they are.

  Raises:
    OptionError: if a pair of --labels is not old:new, or an old label has two
      new ones.
  """
  if labels:
    if task != 'origin':
      raise OptionError(f'--labels and --task={task}: leave one out.')
    pairs = [[*map(clean, pair.split(':'))] for pair in labels]
    wrong = [':'.join(p) for p in pairs if len(p) != 2 or not all(p)]
    if wrong:
      raise OptionError(f'--labels: {wrong[0]!r} is not of the form old:new.')
    mapping = dict(pairs)
    if twice := [old for old, new in pairs if mapping[old] != new]:
      raise OptionError(f'--labels: {twice[0]} is given twice.')
    return mapping
  if task == 'origin':
    return None
  return {
    PAPER_CLASSES[c]: METASTATIC if c > 1 else PAPER_CLASSES[c]
    for c in _TASKS[task]
  }


def relabelled(
  table: Manifest, mapping: dict[str, str] | None, *, may_lack: bool = False
) -> Manifest:
  """Relabels; the paper's classes may be numbered in the table.

  Args:
    table: of slides.
    mapping: old label to new.
    may_lack: whether the table may lack some of the old labels, not all.
  """
  if mapping is None:
    return table
  names = {str(c): name for c, name in enumerate(PAPER_CLASSES)}
  if set(table.label) <= set(names) and set(mapping) <= set(PAPER_CLASSES):
    table = label_files.relabel(table, {c: names[c] for c in set(table.label)})
  if may_lack:
    there = set(table.label.tolist())
    mapping = {old: mapping[old] for old in mapping if old in there} or mapping
  return label_files.relabel(table, mapping)


def ordered(labels: np.ndarray) -> tuple[str, ...]:
  """Orders class names: as the paper does, by number, or by name."""
  names = sorted(set(labels.tolist()))
  known = (*PAPER_CLASSES, METASTATIC)
  if set(names) <= set(known):
    return tuple(sorted(names, key=known.index))
  return tuple(
    sorted(names, key=int if all(map(str.isdecimal, names)) else None)
  )
