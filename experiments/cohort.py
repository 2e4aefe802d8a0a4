"""The cohort of an experiment: slides, labels, features and splits, joined."""

import dataclasses
import hashlib
import pathlib

import numpy as np

from data import manifest as manifests, packed, slides
from data.features import FeatureError, FeatureFile, Header
from data.manifest import Manifest

# The paper's class ids; its slide names end in them.
PAPER_CLASSES = ('non-tumor', 'lymphoma', 'breast', 'squamous', 'thyroid')
METASTATIC = 'metastatic'

_SHOWN = 10  # Names listed in an error.


class CohortError(ValueError):
  """Slides, labels and features that do not fit; says which and how."""


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
  left_out: frozenset[str]  # slides that a relabelling dropped
  made: dict[str, str]  # encoder, mpp, patch_size of the features, if known

  def read(self, index: int) -> FeatureFile:
    """Reads the features of a slide."""
    return self.source.read(self.manifest.slide[index])

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


def mapping_of(task: str, labels: list[str] | None) -> dict[str, str] | None:
  """Returns the relabelling of --task and --labels, None for none.

  The paper's tasks (Zheng et al. 2024, as run in the released code): a tells
  non-tumor, lymphoma and metastatic apart; b non-tumor and lymphoma; c lymphoma
  and metastatic.

  Raises:
    CohortError: if both flags are given, a pair is not old:new, or an old label
      has two new ones.
  """
  if labels and task != 'origin':
    raise CohortError(f'--labels and --task={task} exclude each other')
  if labels:
    pairs = [pair.split(':') for pair in labels]
    wrong = [':'.join(p) for p in pairs if len(p) != 2 or not all(p)]
    if wrong:
      raise CohortError(f'--labels: {wrong[0]!r} is not of the form old:new')
    mapping = dict(pairs)
    twice = [old for old, new in pairs if mapping[old] != new]
    if twice:
      raise CohortError(f'--labels: {twice[0]} is given twice')
    return mapping
  if task == 'origin':
    return None
  kept = {'a': (0, 1, 2, 3, 4), 'b': (0, 1), 'c': (1, 2, 3, 4)}[task]
  return {
    PAPER_CLASSES[c]: METASTATIC if c > 1 else PAPER_CLASSES[c] for c in kept
  }


def load(
  csv_path: str,
  features_dir: str,
  *,
  slides_dir: str | None = None,
  mapping: dict[str, str] | None = None,
  shuffle_seed: int | None = None,
  like: Cohort | None = None,
) -> Cohort:
  """Joins labels and features; every fault is reported at once.

  Args:
    csv_path: labels.
    features_dir: holds <slide_id>.h5 of every slide in the table, or a dataset
      of experiments.pack.
    slides_dir: slide files, if any.
    mapping: old label to new; slides of other labels are left out.
    shuffle_seed: deals the labels anew to the cases, for the leak alarm.
    like: a cohort whose models this one is for: it gives the classes, and its
      features were made in the same way.

  Raises:
    CohortError: if slides lack features, files cannot be read, were not all
      made by one encoder at one width, mpp and tile size, or do not fit `like`.
    data.manifest.ManifestError: if the table cannot be used.
  """
  table = manifests.read(csv_path)
  listed = frozenset(table.slide.tolist())
  if mapping is not None:
    names = {str(c): name for c, name in enumerate(PAPER_CLASSES)}
    if set(table.label) <= set(names) and set(mapping) <= set(PAPER_CLASSES):
      table = manifests.relabel(table, {c: names[c] for c in set(table.label)})
    table = manifests.relabel(table, mapping)
  if shuffle_seed is not None:
    table = _shuffled(table, shuffle_seed)
  classes = like.classes if like else _classes(table.label)
  unknown = sorted(set(table.label.tolist()) - set(classes))
  if unknown:
    raise CohortError(
      f'{csv_path}: labels {_some(unknown)} are none of those the models know:'
      f' {", ".join(classes)}'
    )
  if len(classes) < 2:
    raise CohortError(f'{csv_path}: one class only, {classes[0]}')
  source = packed.find(features_dir)
  headers, made = _headers(source, table.slide, features_dir)
  if like:
    _check_alike(features_dir, made, like)
  found = {}
  if slides_dir:
    found = {slides.slide_id(p): p for p in slides.list_slides(slides_dir)}
  return Cohort(
    manifest=table,
    classes=classes,
    label=np.array([classes.index(x) for x in table.label], np.int32),
    source=source,
    length=np.array([h.length for h in headers], np.int32),
    width=headers[0].width,
    slides=found,
    left_out=listed - frozenset(table.slide.tolist()),
    made=made,
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
      f' models were trained: {_some(shared)}; take them out of its CSV'
    )
  cases = sorted(set(first.manifest.case) & set(second.manifest.case))
  if cases:
    print(
      f'warning: both cohorts have cases named {_some(cases)}; if they are the'
      ' same patients, the second cohort is not external'
    )


def _classes(labels: np.ndarray) -> tuple[str, ...]:
  """Orders class names: as the paper does, by number, or by name."""
  names = sorted(set(labels.tolist()))
  known = (*PAPER_CLASSES, METASTATIC)
  if set(names) <= set(known):
    return tuple(sorted(names, key=known.index))
  if all(name.isdecimal() for name in names):
    return tuple(sorted(names, key=int))
  return tuple(names)


def _headers(
  source: packed.Folder | packed.Packed,
  slide_ids: np.ndarray,
  features_dir: str,
) -> tuple[list[Header], dict[str, str]]:
  """Reads the headers of all feature files, and how they all were made.

  All faults make one error.
  """
  missing = [slide for slide in slide_ids if slide not in source]
  if missing:
    raise CohortError(
      f'{features_dir}: no features of {len(missing)} of {len(slide_ids)}'
      f' labelled slides: {_some(missing)}; run experiments.extract, or take'
      ' them out of the CSV'
    )
  headers, faults = [], []
  for slide in slide_ids:
    try:
      headers.append(source.header(slide))
      if not headers[-1].length or not headers[-1].width:
        path = pathlib.Path(features_dir) / f'{slide}.h5'
        faults.append(f'{path}: no features; extract the slide again')
    except FeatureError as e:
      faults.append(str(e))
  if faults:
    raise CohortError('\n'.join(faults))
  made = {'dimensions': [h.width for h in headers]}
  for name in ('encoder', 'mpp', 'patch_size'):
    values = [h.attributes.get(name) for h in headers]
    made[name] = [None if v is None else str(v) for v in values]
  same = {}
  for name, values in made.items():
    # Not every tool says how its features were made.
    known = [v for v in values if v is not None]
    usual = max(known, key=known.count, default=None)
    odd = [
      slide
      for slide, v in zip(slide_ids, values, strict=True)
      if v is not None and v != usual
    ]
    if odd:
      found = ', '.join(sorted({str(v) for v in known}))
      raise CohortError(
        f'{features_dir}: features of different {name} are mixed: {found};'
        f' other than the rest are {_some(odd)}'
      )
    if usual is not None:
      same[name] = str(usual)
  return headers, same


def _check_alike(features_dir: str, made: dict[str, str], like: Cohort) -> None:
  """Refuses features that were made in another way than those of `like`."""
  differ = [
    f'{name} {made[name]} here, {like.made[name]} there'
    for name in sorted(made.keys() & like.made.keys())
    if made[name] != like.made[name]
  ]
  if differ:
    raise CohortError(
      f'{features_dir}: these features and those of the models differ: '
      + '; '.join(differ)
    )


def _shuffled(table: Manifest, seed: int) -> Manifest:
  """Deals the labels anew: whole cases swap the label of their first slide."""
  cases, first, of = np.unique(
    table.case, return_index=True, return_inverse=True
  )
  order = np.random.default_rng(seed).permutation(len(cases))
  return dataclasses.replace(table, label=table.label[first][order][of])


def _some(names: list[str]) -> str:
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more
