"""Lays out numbers beside the paper's, as Markdown and as CSV."""

from collections.abc import Mapping, Sequence
import dataclasses

# What a line of an entry holds, in the order they are shown.
_LINES = {
  'here': 'here',
  'mean': 'here, mean of folds',
  'std': 'std over folds',
  'ensemble': 'here, mean probability',
  'interval': '95 % interval',
  'change': 'here, minus nothing dropped',
  'change_interval': '95 % interval of that',
  'paper': '',  # The table's source.
}
_PAIRS = ('interval', 'change_interval')


@dataclasses.dataclass(frozen=True)
class Entry:
  """What is known of one row of the paper: values by line and column.

  Of the lines 'here', 'mean', 'std', 'ensemble', 'change' and 'paper' each is a
  list of a value, or None, per column; those of 'interval' and
  'change_interval' are pairs.
  """

  labels: tuple[str, ...]
  lines: Mapping[str, Sequence]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table, printed as Markdown or CSV."""

  name: str  # of its files
  title: str
  label_columns: tuple[str, ...]
  columns: tuple[str, ...]
  entries: tuple[Entry, ...]
  decimals: tuple[int, ...]  # of each column
  notes: tuple[str, ...]
  source: str = 'Zheng et al. 2024'  # of the lines 'paper'

  def markdown(self) -> str:
    """Returns title, table and notes; what is undefined or unknown is n/a."""
    rows = [
      [*self.label_columns, 'from', *self.columns],
      [':--'] * (len(self.label_columns) + 1) + ['--:'] * len(self.columns),
    ]
    for entry in self.entries:
      labels = entry.labels
      for name in _LINES:
        if name in entry.lines:
          values = zip(entry.lines[name], self.decimals, strict=True)
          cells = [_text(value, digits) for value, digits in values]
          rows.append([*labels, self._from(name), *cells])
          labels = ('',) * len(labels)  # Once is enough to read.
    lines = [
      '| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |'
      for row in rows
    ]
    return '\n'.join(
      [f'**{self.title}**', '', *lines, '', *(f'- {n}' for n in self.notes)]
    )

  def rows(self) -> list[list[str]]:
    """Returns the rows of a CSV file; what is n/a is empty.

    An interval makes two rows, of its ends.
    """
    rows = [[*self.label_columns, 'from', *self.columns]]
    for entry in self.entries:
      for name in _LINES:
        if name in _PAIRS and name in entry.lines:
          for end, pick in (('low', 0), ('high', 1)):
            cells = [_digits(pair[pick]) for pair in entry.lines[name]]
            rows.append([*entry.labels, f'{_LINES[name]}, {end}', *cells])
        elif name in entry.lines:
          cells = [_digits(value) for value in entry.lines[name]]
          rows.append([*entry.labels, self._from(name), *cells])
    return rows

  def _from(self, line: str) -> str:
    return _LINES[line] or self.source


def _text(value: float | tuple | None, digits: int) -> str:
  if isinstance(value, tuple) and None not in value:
    return ' to '.join(_text(end, digits) for end in value)
  known = value is not None and not isinstance(value, tuple)
  return f'{value:.{digits}f}' if known else 'n/a'


def _digits(value: float | None) -> str:
  return '' if value is None else f'{value:.6g}'
