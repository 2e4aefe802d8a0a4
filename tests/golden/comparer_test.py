"""The comparer finds what is not alike, and excuses no more than it should."""

import copy

from golden_comparer import Width, compare
import pytest

FILE = 'results/mine_s2023/predictions.csv'
METRICS = 'results/mine_s2023/fold_0/metrics.jsonl'
KEEP = 'results/mine_s2023/fold_0/keep/keep.h5'


@pytest.fixture
def record():
  return {
    'exit': 0,
    'names': {'--lr': True},
    'printed': [['0.667', '3']],
    'files': {
      FILE: {
        'kind': 'csv',
        'columns': ['slide_id', 'fold', 'pred', 'prob_a'],
        'rows': [['x', '0', 'a', '0.51234567'], ['y', '1', 'b', '0.4']],
      },
      METRICS: {
        'kind': 'jsonl',
        'lines': [
          {'stage': 'chooser', 'train_loss': 0.7, 'best_epoch': 0},
          {'stage': 'model', 'train_loss': 0.6, 'best_epoch': 0},
          {'stage': 'model', 'train_loss': 0.5, 'best_epoch': 1},
        ],
      },
      KEEP: {'kind': 'h5', 'sets': {'x': {'shape': [2], 'values': [1, 0]}}},
    },
  }


def changed(first, second, **options):
  width = options.pop('width', Width())
  return [d.path for d in compare(first, second, width, **options).differences]


def test_the_same_is_the_same(record):
  assert changed(record, copy.deepcopy(record)) == []


def set_row(column, value):
  return lambda record: record['files'][FILE]['rows'][0].__setitem__(
    column, value
  )


@pytest.mark.parametrize(
  'change,path',
  [
    (lambda r: r.update(exit=1), 'exit'),
    (lambda r: r['names'].update({'--lr': False}), 'names/--lr'),
    (lambda r: r['printed'][0].__setitem__(0, '0.669'), 'printed/0/0'),
    (lambda r: r['printed'][0].__setitem__(1, '4'), 'printed/0/1'),
    (lambda r: r['files'].pop(FILE), f'files/{FILE}'),
    (lambda r: r['files'].update(new={'kind': 'png'}), 'files/new'),
    (lambda r: r['files'][FILE]['rows'].pop(), f'files/{FILE}/rows/length'),
    (set_row(0, 'z'), f'files/{FILE}/rows/0/slide_id'),
    (set_row(1, '1'), f'files/{FILE}/rows/0/fold'),
    (set_row(2, 'b'), f'files/{FILE}/rows/0/pred'),
    (set_row(3, '0.51235'), f'files/{FILE}/rows/0/prob_a'),
    (set_row(3, 'n/a'), f'files/{FILE}/rows/0/prob_a'),
    (
      lambda r: r['files'][METRICS]['lines'][1].update(train_loss=0.60001),
      f'files/{METRICS}/lines/1/train_loss',
    ),
    (
      lambda r: r['files'][METRICS]['lines'][1].pop('train_loss'),
      f'files/{METRICS}/lines/1/train_loss',
    ),
  ],
)
def test_a_change_is_found(record, change, path):
  other = copy.deepcopy(record)
  change(other)
  assert changed(record, other) == [path]
  assert changed(record, other, choices=True) == [path]


def test_rounding_is_none(record):
  other = copy.deepcopy(record)
  set_row(3, '0.51234600')(other)
  other['printed'][0][0] = '0.668'
  assert changed(record, other) == []


def test_a_wide_width_is_no_licence(record):
  other = copy.deepcopy(record)
  set_row(3, '0.53')(other)
  assert changed(record, other, width=Width(0.02, 0.02)) == []
  set_row(3, '0.56')(other)
  set_row(1, '1')(other)
  assert len(changed(record, other, width=Width(0.02, 0.02))) == 2


def drop_column(record):
  for row in [record['files'][FILE]['columns'], *record['files'][FILE]['rows']]:
    row.pop()


def swap(one, other):
  def change(record):
    for row in record['files'][FILE]['rows']:
      row[one], row[other] = row[other], row[one]

  return change


@pytest.mark.parametrize(
  ('change', 'paths'),
  [
    (set_row(3, '0.9'), []),
    (set_row(3, '1'), []),
    (set_row(3, '1.01'), ['rows/0/prob_a']),
    (set_row(3, '-0.1'), ['rows/0/prob_a']),
    (set_row(3, ''), ['rows/0/prob_a']),
    (set_row(3, 'n/a'), ['rows/0/prob_a']),
    (set_row(3, 'nan'), ['rows/0/prob_a']),
    (set_row(3, 0.5), ['rows/0/prob_a']),
    (set_row(1, '1'), ['rows/0/fold']),
    (
      swap(2, 3),
      ['rows/0/pred', 'rows/0/prob_a', 'rows/1/pred', 'rows/1/prob_a'],
    ),
    (swap(1, 2), ['rows/0/fold', 'rows/0/pred', 'rows/1/fold', 'rows/1/pred']),
    (drop_column, ['columns/length', 'rows/0/prob_a', 'rows/1/prob_a']),
    (
      lambda r: r['files'][FILE]['columns'].reverse(),
      [f'columns/{i}' for i in range(4)],
    ),
  ],
)
def test_of_what_is_loose_only_the_number_is(record, change, paths):
  other = copy.deepcopy(record)
  change(other)
  loose = Width(loose={'*/prob_*': [0, 1]})
  found = changed(record, other, width=loose)
  assert found[: len(paths)] == [f'files/{FILE}/{path}' for path in paths]
  assert bool(paths) == bool(found)


def test_rows_of_papers_are_held_and_an_interval_may_be_undefined():
  one = {
    'columns': ['model', 'from', 'AUROC'],
    'rows': [
      ['kmil', 'here', '0.5'],
      ['kmil', '95 % interval, low', ''],
      ['kmil', 'Zheng, p. 4', '0.9'],
    ],
  }
  loose = {'*(*, here)': [0, 1], '*(*, 95 % *)': [0, 1, 'n/a']}
  for place, cell, held in (
    (0, '0.6', False),
    (0, '', True),
    (1, '0.4', False),
    (1, 'n/a', False),
    (1, 'none', True),
    (2, '0.8', True),
  ):
    other = copy.deepcopy(one)
    other['rows'][place][2] = cell
    assert bool(changed(one, other, width=Width(loose=loose))) == held


def test_ranges_of_a_text_are_numbers_apart():
  one, wide = {'cells': ['0.1 to 0.9', True]}, Width(loose={'cells/*': [0, 1]})
  assert changed(one, {'cells': ['0.2 to 0.3', False]}, width=wide) == []
  for text in ('0.2 to 1.3', '0.2', 'n/a', '0.2 or 0.3'):
    assert changed(one, {'cells': [text, True]}, width=wide) == ['cells/0']


def test_another_choice_excuses_only_what_follows(record):
  other = copy.deepcopy(record)
  other['files'][METRICS]['lines'][2].update(best_epoch=0)
  set_row(3, '0.7')(other)
  assert changed(record, other, choices=True) == []
  assert len(changed(record, other)) == 2
  other['files'][METRICS]['lines'][1].update(train_loss=0.61)
  assert len(changed(record, other, choices=True)) == 3
  other = copy.deepcopy(record)
  other['files'][KEEP]['sets']['x']['values'] = [0, 1]
  other['files'][METRICS]['lines'][1].update(train_loss=0.61)
  assert changed(record, other, choices=True) == []
  other['files'][METRICS]['lines'][0].update(train_loss=0.71)
  assert len(changed(record, other, choices=True)) == 4


def test_a_flag_that_came_or_went_is_a_note():
  path = 'results/mine_s2023/config.json'
  one = {'files': {path: {'values': {'flags': {'lr': 0.1, 'k': 3}}}}}
  two = {'files': {path: {'values': {'flags': {'lr': 0.1, 'new': 3}}}}}
  outcome = compare(one, two, Width())
  assert outcome.differences == [] and len(outcome.notes) == 2
  two['files'][path]['values']['flags']['lr'] = 0.2
  assert len(compare(one, two, Width()).differences) == 1
