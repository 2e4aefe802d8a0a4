"""Compares two records of a command, number by number."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import fnmatch
import math
import re

_DECIMAL = re.compile(r'^[+-]?\d[\d,]*\.?\d*(?:[eE][+-]?\d+)?$')
_NUMBERS = re.compile(r'[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')
_UNDEFINED = ('', 'n/a', 'None', '# to #')
# A rounded number with fewer decimals is compared as it is: it is as likely to
# be a short number written in full, of which the last digit counts.
_ROUNDED = range(3, 7)
# What the flags of config.json are is compared where both sides have them.
_OPTIONAL = re.compile(r'/config\.json/values/(flags|decides)/[^/]+$')
_LINE = re.compile(r'(.*metrics\.jsonl)/lines/(\d+)/(\w+)$')


@dataclasses.dataclass(frozen=True)
class Width:
  """How far two numbers may be apart, and why.

  Attributes:
    absolute: apart from the share below.
    relative: share of the larger one.
    loose: patterns of paths, with the least and the largest value there. A
      number there may be any other between them, and nothing but a number; with
      'n/a' as a third, it may also be undefined. The first that fits holds.
    reason: why this is not the usual width.
  """

  absolute: float = 1e-6
  relative: float = 1e-6
  loose: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)
  reason: str = ''


@dataclasses.dataclass(frozen=True)
class Difference:
  """A place where two records differ.

  Attributes:
    path: in the record, its parts joined by slashes.
    first: what is there in the first.
    second: what is there in the second.
    structural: that something is missing, or is of another length; no rounding
      does that.
  """

  path: str
  first: object
  second: object
  structural: bool = False

  def __str__(self):
    size = ''
    numbers = number(self.first), number(self.second)
    if None not in numbers:
      size = f' (apart by {abs(numbers[0] - numbers[1]):.3g})'
    return f'{self.path}: {self.first!r}, then {self.second!r}{size}'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Differences of two records, and what differs and is no difference."""

  differences: list[Difference]
  notes: list[str]


def flat(record, path: str = '') -> Iterator[tuple[str, object]]:
  """Yields the path and value of every leaf, and the length of every list.

  A cell's path ends with the name of its column and, in tables that have a
  column `from`, with what stands to the left of it and there.
  """
  if isinstance(record, dict):
    yield f'{path}/', 'keys'
    for key, value in record.items():
      if key == 'rows' and (names := record.get('columns')):
        value = [_named(names, row) for row in value]
      yield from flat(value, f'{path}/{key}' if path else str(key))
  elif isinstance(record, list):
    yield f'{path}/length', len(record)
    for i, value in enumerate(record):
      yield from flat(value, f'{path}/{i}')
  else:
    yield path, record


def _named(names: list[str], row):
  """Returns a row as a dict by column; as it is where its length differs."""
  if not isinstance(row, list) or len(row) != len(names):
    return row
  keys = row[: names.index('from') + 1] if 'from' in names else []
  end = f' ({", ".join(keys)})'.replace('/', '|') if keys else ''
  cells = zip(names, row, strict=True)
  return {f'{name or "first"}{end}': cell for name, cell in cells}


def number(value) -> float | None:
  """Returns a number, or the text of one, as a float; None for others."""
  if isinstance(value, bool) or value is None:
    return None
  if isinstance(value, int | float):
    return float(value)
  if isinstance(value, str) and _DECIMAL.match(value):
    return float(value.replace(',', ''))
  return None


def _decimals(value) -> int:
  """Returns how many decimals a text has; 0 for what is no text."""
  if not isinstance(value, str) or 'e' in value.lower():
    return 0
  return len(value.partition('.')[2])


def _whole(value) -> bool:
  """Whether a value is a count, or its text, which no rounding moves."""
  if isinstance(value, str):
    return not set(value.lower()) & set('.e')
  return isinstance(value, int)


def alike(first, second, width: Width) -> bool:
  """Whether two leaves are the same within a width; `?` is any."""
  if first == second or first == '?':
    return True
  numbers = number(first), number(second)
  if None in numbers or isinstance(first, str) != isinstance(second, str):
    return False
  if _whole(first) and _whole(second):
    return False
  if math.isnan(numbers[0]) and math.isnan(numbers[1]):
    return True
  allowed = width.absolute + width.relative * max(map(abs, numbers))
  decimals = max(_decimals(first), _decimals(second))
  if decimals in _ROUNDED:  # Two halves: both were rounded.
    allowed += 10.0**-decimals
  return abs(numbers[0] - numbers[1]) <= allowed * (1 + 1e-9)


def of_a_kind(first, second, least, most, undefined=None) -> bool:
  """Whether leaves differ in numbers alone, or one may be undefined and is."""
  shapes = set()
  for value in (first, second):
    text = str(int(value) if isinstance(value, bool) else value)
    shape = _NUMBERS.sub('#', text)
    if undefined and shape in _UNDEFINED:
      shape = '#'
    shapes.add((isinstance(value, str), shape))
  numbers = map(float, _NUMBERS.findall(text))
  return len(shapes) == 1 and all(least <= x <= most for x in numbers)


def compare(first, second, width: Width, choices: bool = False) -> Outcome:
  """Compares two records.

  Args:
    first: of the older commit.
    second: of the newer one.
    width: how far numbers may be apart.
    choices: a choice that the order of a sum decides, as of an epoch, excuses
      what follows from it where all losses before it agree.
  """
  old, new = dict(flat(first)), dict(flat(second))
  differences, notes = [], []
  for path in [*old, *(p for p in new if p not in old)]:
    if path in old and path in new:
      shape = path.endswith('/length') or path == 'exit'
      bounds = None if shape else _bounds(path, width.loose)
      pair = old[path], new[path]
      if not (alike(*pair, width) or (bounds and of_a_kind(*pair, *bounds))):
        differences.append(Difference(path, old[path], new[path], shape))
      continue
    if _parent_missing(path, old, new):
      continue
    pair = old.get(path, 'nothing'), new.get(path, 'nothing')
    if _OPTIONAL.search(path):
      notes.append(f'flag of one side only: {path.rsplit("/", 1)[1]}')
    else:
      differences.append(Difference(path.rstrip('/'), *pair, structural=True))
  if choices and (chosen := _choices(differences)):
    before = [
      d for d in differences if d.structural or _precedes(d, chosen, old)
    ]
    if not before:
      notes += [f'another choice: {d}' for d in chosen[:3]]
      differences = []
  return Outcome(differences, notes)


def _bounds(path: str, loose: Mapping[str, Sequence]) -> Sequence | None:
  """Returns the range of the first pattern that a path is like."""
  fitting = (loose[one] for one in loose if fnmatch.fnmatch(path, one))
  return next(fitting, None)


def _parent_missing(path, old, new) -> bool:
  """Whether something above a path differs already, or its length does."""
  if path.endswith('/'):
    path = path[:-1]
  parts = path.split('/')
  for i in range(len(parts) - 1, 0, -1):
    above = '/'.join(parts[:i])
    for mark in (f'{above}/', f'{above}/length'):
      if (mark in old) != (mark in new):
        return True
      if mark.endswith('length') and mark in old and old[mark] != new[mark]:
        return path != mark
  return False


def _choices(differences: list[Difference]) -> list[Difference]:
  """Returns those differences that are of a choice."""
  return [
    d
    for d in differences
    if d.path.endswith('/best_epoch')
    or '/keep.h5/' in d.path
    or '/mined.csv/rows/' in d.path
  ]


def _precedes(difference, chosen: list[Difference], record: dict) -> bool:
  """Whether a difference is of a loss before every choice that could move it.

  That is, in a file of metrics, what stands before the first other best epoch;
  where other instances were kept, what the chooser lost; where other tiles were
  mined, what the weak model lost.
  """
  line = _LINE.match(difference.path)
  if not line or 'loss' not in line[3]:
    return False
  epochs = [_LINE.match(d.path) for d in chosen]
  places = [int(m[2]) for m in epochs if m and m[1] == line[1]]
  if places:
    return int(line[2]) <= min(places)
  folder = line[1].rsplit('/', 1)[0]
  if any(f'{folder}/keep/' in d.path for d in chosen):
    return record.get(f'{line[1]}/lines/{line[2]}/stage') == 'chooser'
  mined = any('/mined.csv/' in d.path for d in chosen)
  return not mined or '/weak/' in line[1]
