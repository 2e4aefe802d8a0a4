"""A table: rows of values, for a terminal, Markdown, CSV and HTML.

A row may have several lines, as the value here, its interval and the paper's:

  Table(
    name='table_2',
    title='Table 2. Networks',
    labels=('network',),
    columns={'accuracy': '.3f', 'AUROC': '.3f'},
    rows=[
      Row(('resnet18',), {HERE: (0.91, 0.95), INTERVAL: ((0.8, 0.97), None)}),
    ],
    published=papers.read('tang')['table_2'],
  )
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

# Names of lines.
HERE = 'here'
MEAN = 'here, mean of folds'
STD = 'std over folds'
INTERVAL = '95 % interval'


@dataclasses.dataclass(frozen=True)
class Published:
  """What a paper has: values by the labels of a row, in its columns' order."""

  source: str  # as 'Zheng et al. 2024, Table 2, p. 9'
  values: Mapping[tuple[Any, ...], Mapping[str, Any]]
  notes: Sequence[str] = ()

  def line(
    self, labels: Sequence[Any], columns: Iterable[str]
  ) -> dict[str, list[Any]]:
    """Returns the line of a row by its name, or nothing if it has none."""
    values = self.values.get(tuple(labels))
    return {self.source: [values.get(c) for c in columns]} if values else {}


@dataclasses.dataclass(frozen=True)
class Row:
  """What is known of a row.

  Attributes:
    labels: one per label column of the table.
    lines: by name, a value per column of the table: a number, a text, a pair of
      the ends of an interval, or None where it is undefined. A row of one line
      may name it ''.
  """

  labels: Sequence[str]
  lines: Mapping[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of values, beside those of a paper if there is one.

  Attributes:
    name: of its files.
    title: stands above it.
    labels: names of the columns that name a row.
    columns: format of the values of each column, by its name; '' for text, 'p'
      for p values.
    rows: in order.
    notes: stand below it.
    published: the paper's values, a further line of each row that has some:
      after the mean of the folds if there is one, else the last.
  """

  name: str
  title: str
  labels: Sequence[str]
  columns: Mapping[str, str]
  rows: Sequence[Row]
  notes: Sequence[str] = ()
  published: Published | None = None

  def cells(self) -> list[list[str]]:
    """Returns the header and the lines of all rows as text."""
    held = self._lines()
    has_names = any(name for row in held for name in row.lines)
    table = [[*self.labels, *['from'] * has_names, *self.columns]]
    for row in held:
      labels = list(map(str, row.labels))
      for name, values in row.lines.items():
        pairs = zip(values, self.columns.values(), strict=True)
        texts = [_text(value, form) for value, form in pairs]
        table.append([*labels, *[name] * has_names, *texts])
        labels = [''] * len(labels)
    return table

  def remarks(self) -> list[str]:
    """Returns its own notes, and those on the paper's values."""
    return [*self.notes, *(self.published.notes if self.published else ())]

  def terminal(self) -> str:
    """Returns title, aligned columns and notes."""
    table = self.cells()
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for line in table:
      cells = [
        cell.ljust(width) if self.is_left(i) else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))
      ]
      lines.append('  '.join(cells).rstrip())
    return '\n'.join([self.title, *lines, *(f'- {n}' for n in self.remarks())])

  def markdown(self) -> str:
    """Returns title, table and notes."""
    table = self.cells()
    sides = map(self.is_left, range(len(table[0])))
    rule = [':--' if is_left else '--:' for is_left in sides]
    lines = [
      '| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |'
      for line in [table[0], rule, *table[1:]]
    ]
    notes = [f'- {note}' for note in self.remarks()]
    return '\n'.join([f'**{self.title}**', '', *lines, '', *notes]) + '\n'

  def csv(self) -> list[list[Any]]:
    """Returns rows of a CSV file with all digits; undefined cells are empty.

    An interval is two lines, of its low and its high ends.
    """
    held = self._lines()
    has_names = any(name for row in held for name in row.lines)
    rows = [[*self.labels, *['from'] * has_names, *self.columns]]
    for row in held:
      for name, values in row.lines.items():
        ends = (', low', ', high')
        if not any(isinstance(value, tuple) for value in values):
          ends = ('',)
        for i, end in enumerate(ends):
          cells = [v[i] if isinstance(v, tuple) else v for v in values]
          line = [name + end] if has_names else []
          rows.append([*row.labels, *line, *map(_digits, cells)])
    return rows

  def _lines(self) -> list[Row]:
    """Rows with the paper's lines."""
    if self.published is None:
      return list(self.rows)
    rows = []
    for row in self.rows:
      line = self.published.line(row.labels, self.columns)
      first = {MEAN: row.lines[MEAN]} if MEAN in row.lines else row.lines
      lines = {**first, **line, **row.lines}
      rows.append(Row(row.labels, lines))
    return rows

  def is_left(self, column: int) -> bool:
    """Whether a column of `cells` is aligned to the left, as text is."""
    left = len(self.cells()[0]) - len(self.columns)
    return column < left or list(self.columns.values())[column - left] == ''


def _text(value: Any, form: str) -> str:
  ends = value if isinstance(value, tuple) else (value,)
  if any(map(_is_undefined, ends)):
    return 'n/a'
  if isinstance(value, tuple):
    return ' to '.join(_text(end, form) for end in value)
  if form == 'p':
    return '<.0001' if value < 1e-4 else f'{value:.4f}'
  return format(value, form)


def _digits(value: Any) -> Any:
  if _is_undefined(value):
    return ''
  return f'{value:.6g}' if isinstance(value, float) else value


def _is_undefined(value: Any) -> bool:
  return value is None or (isinstance(value, float) and math.isnan(value))
