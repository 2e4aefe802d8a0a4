"""One table, four layouts."""

import math

from experiments.evaluation.tables import (
  HERE,
  INTERVAL,
  Published,
  Row,
  Table,
)

TABLE = Table(
  name='table_2',
  title='Table 2',
  labels=('network',),
  columns={'AUROC': '.3f', 'p': 'p', 'note': ''},
  rows=[
    Row(
      ('a|b',),
      {
        HERE: (0.91234567, 1e-5, 'good'),
        INTERVAL: ((0.8, 1.0), (math.nan, math.nan), None),
      },
    ),
    Row(('c',), {HERE: (math.nan, 0.04, 'x')}),
  ],
  notes=('A note.',),
  published=Published('Zheng, Table 2', {('c',): {'AUROC': 0.9}}),
)


def test_a_table_is_printed_and_written():
  assert TABLE.terminal().splitlines() == [
    'Table 2',
    'network  from                     AUROC       p  note',
    'a|b      here                     0.912  <.0001  good',
    '         95 % interval   0.800 to 1.000     n/a  n/a',
    'c        here                       n/a  0.0400  x',
    '         Zheng, Table 2           0.900     n/a  n/a',
    '- A note.',
  ]
  title, _, header, rule, row, *_, note = TABLE.markdown().splitlines()
  assert (title, note) == ('**Table 2**', '- A note.')
  assert header == '| network | from | AUROC | p | note |'
  assert rule == '| :-- | :-- | --: | --: | :-- |'
  assert row == '| a\\|b | here | 0.912 | <.0001 | good |'
  # All digits, and both ends of an interval.
  assert TABLE.csv() == [
    ['network', 'from', 'AUROC', 'p', 'note'],
    ['a|b', 'here', '0.912346', '1e-05', 'good'],
    ['a|b', '95 % interval, low', '0.8', '', ''],
    ['a|b', '95 % interval, high', '1', '', ''],
    ['c', 'here', '', '0.04', 'x'],
    ['c', 'Zheng, Table 2', '0.9', '', ''],
  ]


def test_rows_of_one_line_need_no_name():
  table = Table('t', 'T', ('k',), {'n': 'd'}, [Row(('a',), {'': (3,)})])
  assert table.cells() == [['k', 'n'], ['a', '3']]
  assert table.csv() == [['k', 'n'], ['a', 3]]
