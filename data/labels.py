"""The table of slides: which case each belongs to and what its label is."""

import collections
from collections.abc import Callable, Iterable, Sequence
import dataclasses
import decimal
import os
import pathlib
import re
import unicodedata

import numpy as np

from data import features, files, slides

COLUMNS = ('case_id', 'slide_id', 'label')
# File systems take 255; what is put before and after an id takes the rest.
_LONGEST_ID = 180
_EXTENSIONS = slides.EXTENSIONS.union(features.READ)
_CONTROL = re.compile(r'[\x00-\x1f\x7f]')
_NUMBER = re.compile(r'\+?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d{1,3})?')
_SHORTENED = re.compile(r'\d+([.,]\d+)?E\+\d+')  # As spreadsheets do it.
# Of TCGA, TARGET, HCMI, CPTAC, GTEx and CAMELYON17, with _ for all that
# separates words: a patient, and what may follow of samples and slides.
_PATIENT = re.compile(
  r'^((tcga|target)_[^_]+_[^_]+|hcm_[^_]+_\d+_[^_]+|c3[ln]_\d+|gtex_[^_]+'
  r'|patient_\d+(?=_node))_.*'
)
# What spreadsheets, programs and people write where nothing is known, less all
# marks but the # of a spreadsheet's errors, and + of a grade.
_UNKNOWN = frozenset(
  ' na nan nil null none unk unknown notknown notavailable notapplicable'
  ' notreported unspecified undefined nodata nd missing pending tbd #na #div0'
  ' #name #num #ref #value'.split(' ')
)


class ManifestError(ValueError):
  """A table that cannot be used; names the file and the rows."""


@dataclasses.dataclass(frozen=True)
class Manifest:
  """Slides in the order of their ids, so that the file's order is immaterial.

  All columns are strings: ids keep leading zeros and dots.
  """

  case: np.ndarray  # [n] str
  slide: np.ndarray  # [n] str, unique, ascending
  label: np.ndarray  # [n] str

  def subset(self, rows: np.ndarray) -> 'Manifest':
    """Returns the slides at `rows`, a bool or index array."""
    return Manifest(self.case[rows], self.slide[rows], self.label[rows])


def read(path: str | pathlib.Path) -> Manifest:
  """Reads a CSV with the columns case_id, slide_id and label.

  Further columns are ignored; all rows' faults are reported at once.

  Raises:
    ManifestError: if a column is missing or there twice, a cell empty or beyond
      the header's, a slide repeated or its id no file name.
  """
  table, faults = scan(path)
  if faults:
    raise ManifestError(f'{path}: ' + '; '.join(faults))
  return table


def scan(
  path: str | pathlib.Path, columns: Sequence[str] = COLUMNS
) -> tuple[Manifest, list[str]]:
  """Reads what can be used of a CSV, and lists what cannot; see `read`.

  Args:
    path: of the file.
    columns: those of `COLUMNS` that must be there and filled.

  Returns:
    The sound rows, of a repeated slide the first, and all faults.

  Raises:
    ManifestError: if the file cannot be read or a column is missing.
  """
  rows = files.read_csv(path, columns, ManifestError)
  faults, sound = [], {}
  for line, row in rows:
    wrong = [
      f'{"a control character in" if row[c] else "empty"} {c}'
      for c in columns
      if not row[c] or _CONTROL.search(row[c])  # NumPy drops NUL, merging ids.
    ]
    # A comma in a label that is not quoted: it would lose its end.
    if any(cell.strip() for cell in row.get(None, ())):
      wrong.append('more cells than the header has: quote what holds a comma')
    faults += [f'row {line}: {fault}' for fault in wrong]
    if not wrong and not _wrong_name(row['slide_id']):
      sound.setdefault(row['slide_id'], [row.get(c, '') for c in COLUMNS])
  count = collections.Counter(row['slide_id'] for _, row in rows)
  faults += [f'slide {s}: {k} rows' for s, k in count.items() if k > 1 and s]
  faults += [f'slide {s[:80]}: {why}' for s in count if (why := _wrong_name(s))]
  if not rows:
    faults.append('no rows')
  cells = np.array([sound[slide] for slide in sorted(sound)], str)
  return Manifest(*cells.reshape(-1, len(COLUMNS)).T), faults


def column(
  path: str | pathlib.Path, name: str, manifest: Manifest
) -> np.ndarray:
  """Reads a further column of the file that `manifest` was read from.

  Returns:
    The cells of the manifest's slides, str [n].

  Raises:
    ManifestError: if there is no such column, or naming slides without a cell.
  """
  rows = files.read_csv(path, ('slide_id', name), ManifestError)
  cells = {row['slide_id']: row[name] for _, row in rows}
  slides = manifest.slide.tolist()
  if empty := [slide for slide in slides if not cells[slide]]:
    raise ManifestError(
      f'{path}: column {name}: {len(empty)} empty cells, of'
      f' {files.first_of(empty)}'
    )
  return np.array([cells[slide] for slide in slides], str)


def _wrong_name(slide: str) -> str:
  """Returns why an id cannot name files; '' if it can."""
  if '/' in slide or '\\' in slide or slide in ('.', '..'):
    return 'an id is a file name, without folders'
  if len(slide.encode('utf-8', 'surrogatepass')) > _LONGEST_ID:
    return f'an id has at most {_LONGEST_ID} bytes, as it names files'
  return ''


def relabel(manifest: Manifest, mapping: dict[str, str]) -> Manifest:
  """Renames labels and drops the slides whose label is not in `mapping`.

  Raises:
    ManifestError: if `mapping` names a label that no slide has.
  """
  unknown = sorted(set(mapping) - set(manifest.label))
  if unknown:
    raise ManifestError(
      f'no slide has the label {", ".join(unknown)}. Labels are'
      f' {", ".join(sorted(set(manifest.label)))}.'
    )
  kept = manifest.subset(np.isin(manifest.label, list(mapping)))
  label = np.array([mapping[x] for x in kept.label])
  return dataclasses.replace(kept, label=label)


def shuffled(table: Manifest, seed: int) -> Manifest:
  """Assigns labels anew: whole cases swap the label of their first slide."""
  cases, first, of = np.unique(
    table.case, return_index=True, return_inverse=True
  )
  order = np.random.default_rng(seed).permutation(len(cases))
  return dataclasses.replace(table, label=table.label[first][order][of])


def mixed_cases(table: Manifest) -> list[str]:
  """Returns the cases whose slides have several labels, with the labels."""
  labels: dict[str, set[str]] = {}
  for case, label in zip(table.case, table.label, strict=True):
    labels.setdefault(str(case), set()).add(str(label))
  return [
    f'{case} ({", ".join(sorted(of_case))})'
    for case, of_case in sorted(labels.items())
    if len(of_case) > 1
  ]


def normalised(name: str) -> str:
  """Returns what names have in common that people or programs spell apart.

  That is all but upper and lower case, zeros before a number and after its
  point, an exponent, spaces and hyphens but between digits, signs that cannot
  be seen, and the extension of a slide or of its features.
  """
  return re.sub(r'(?<!\d)_|_(?!\d)', '', _plain(name))


def same_patient(case: str) -> str:
  """Returns what the case ids of a patient have in common; see `normalised`."""
  words = _plain(case).replace('.', '_')  # R writes TCGA.AA.0000.
  return normalised(_PATIENT.sub(r'\1', words))


def _plain(name: str) -> str:
  """Returns a name, with _ for all that separates words; see `normalised`."""
  name = unicodedata.normalize('NFKC', name).casefold()
  if not name.isascii():  # Which takes a while.
    name = ''.join(c for c in name if unicodedata.category(c) != 'Cf')
  stem, end = os.path.splitext(name.strip())
  name = stem if end in _EXTENSIONS else stem + end
  if _NUMBER.fullmatch(name):
    name = f'{decimal.Decimal(name.replace(",", ".")):f}'
  name = re.sub(r'(?<=\w)[\s_\-\u2010-\u2015]+(?=\w)', '_', name)
  return re.sub(r'(?<![\d.])0+(?=\d)|(?<=\d)[.,]0+$', '', name)


def alike(names: Iterable[str], key: Callable[[str], str] = normalised) -> str:
  """Returns the different names that have one key; '' if none have."""
  groups = collections.defaultdict(list)
  for name in sorted(set(names)):
    groups[key(name)].append(_shown(name))
  pairs = [' and '.join(g[:3]) for g in groups.values() if len(g) > 1]
  return files.first_of(pairs)


def check(table: Manifest) -> tuple[list[str], list[str]]:
  """Returns what cannot be meant by labels, and what hardly can by all cells.

  Returns:
    Problems and warnings, each naming ids or labels.
  """
  problems, warnings = [], leaks(table.case.tolist())
  if names := alike(table.label.tolist()):
    problems.append(
      f'labels {names} differ only in how they are spelled. Spell each class in'
      ' one way, in the table or by --labels=old:new.'
    )
  if names := alike(table.slide.tolist()):
    warnings.append(
      f'slides {names} differ only in how they are spelled. If they are the'
      ' same, take one out'
    )
  for column, cells in (('label', table.label), ('case_id', table.case)):
    warnings += [
      f'{files.counted(n, "slide")} with the {column} {name}, which is taken'
      ' as it stands. If it means that nothing is known, take them out of the'
      ' table; if it is a number that a spreadsheet shortened, export the table'
      ' as text'
      for name, n in sorted(collections.Counter(cells.tolist()).items())
      if re.sub(r'[^\w+#]|_', '', normalised(name)) in _UNKNOWN
      or _SHORTENED.fullmatch(name)
    ]
  return problems, warnings


def leaks(cases: Iterable[str]) -> list[str]:
  """Returns a line on the cases that may be of one patient, if there are."""
  if not (names := alike(cases, same_patient)):
    return []
  return [
    f'cases {names} look like one patient: they differ only in how they are'
    ' spelled, or in the sample or slide that follows the patient. If so, give'
    ' each patient one id: in several parts of a split they make results too'
    ' good'
  ]


def leaks_between(sets: Iterable[Iterable[str]]) -> list[str]:
  """Returns a line on cases of different sets, see `leaks`."""
  each = [{same_patient(case): case for case in cases} for cases in sets]
  return leaks(case for cases in each for case in cases.values())


def hints(missing: Sequence[str], there: Sequence[str], places: str) -> str:
  """Says which ids may be meant by those that are missing.

  Args:
    missing: ids that were looked for in vain.
    there: ids that nobody looked for.
    places: text of a pair, such as '{} in the CSV, {} on disk'.
  """
  by_key = {normalised(name): name for name in reversed(there)}
  pairs = [
    places.format(*map(_shown, (name, by_key[normalised(name)])))
    for name in missing
    if normalised(name) in by_key
  ]
  if not pairs:
    return ''
  return (
    ' Some ids differ only in leading zeros, which spreadsheets drop, in case,'
    ' in an extension or in how accents and spaces are stored:'
    f' {files.first_of(pairs)}.'
  )


def _shown(name: str) -> str:
  """Returns a name so that what cannot be seen in it can."""
  return name if name.isprintable() else ascii(name)
