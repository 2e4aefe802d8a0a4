"""Tables of the study of hard negatives: what stands where, and margins."""

import numpy as np
import pytest

from experiments import (
  hard_negatives_paper as paper,
  hard_negatives_tables as tables,
)
from experiments.hard_negatives_settings import Outcome, Setting


def test_printed_deviations_of_table_4():
  strong = dict(zip(paper.METRICS, paper.TABLE_4[70][1], strict=True))
  assert strong['sensitivity'] == (0.8083, 0.07)
  assert strong['specificity'] == (0.9448, 0.01)


def outcome(prob, label):
  n = len(label)
  group = np.array([f'p{i % 7}' for i in range(n)])
  return Outcome(np.arange(n).astype(str), group, label, prob)


def drawn(seed, gain=0.0):
  rng = np.random.default_rng(7)
  label = (np.arange(70) % 3 == 0).astype(int)
  noise = np.random.default_rng(seed).normal(0, 0.1, 70)
  return outcome(
    (rng.random(70) * 0.6 + gain * label + noise).clip(0, 1), label
  )


def take(found, rows):
  return Outcome(
    found.id[rows], found.group[rows], found.label[rows], found.prob[rows]
  )


@pytest.mark.parametrize('number,count', [(2, 4), (3, 6), (4, 10), (5, 10)])
def test_every_row_of_the_paper_has_its_settings(number, count):
  rows = tables.rows(number, [5, 6], metric='l2', alpha=7, leaking=False)
  assert len(rows) == count
  for row in rows:
    assert [s.seed for s in row.settings] == [5, 6]
    assert len({(s.choice, s.alpha, s.share, s.of) for s in row.settings}) == 1
  strong = [r.settings[0] for r in rows if r.settings[0].choice == 'l2']
  if number == 3:
    assert [s.alpha for s in strong] == list(paper.ALPHAS)
  else:
    assert {s.alpha for s in strong} == {7}
  if number > 3:
    of = 'all' if number == 4 else 'positives'
    assert {s.of for s in strong if s.share < 100} == {of}
    assert [s.share for s in strong] == list(paper.SHARES)
    # The weak model that mines is of the row above.
    weak = [r.settings[0] for r in rows if r.settings[0].choice == 'weak']
    assert [s.weak() for s in strong] == weak


def test_the_leaking_protocol_never_searches():
  for number in (2, 3, 4, 5):
    rows = tables.rows(number, [0], metric='l2', alpha=7, leaking=True)
    choices = {row.settings[0].choice for row in rows}
    assert choices == {'weak', 'random'}


def test_the_papers_deltas_follow_from_its_rows():
  """Relative changes in per cent, as printed."""
  change = lambda rows, m: 100 * (rows[1][m][0] / rows[0][m][0] - 1)
  found = [change(paper.TABLE_2['l2'], m) for m in range(5)]
  np.testing.assert_allclose(found, [2.88, 2.17, 5.83, 6.39, 4.72], atol=0.02)
  found = [change(paper.TABLE_2['cosine'], m) for m in range(5)]
  np.testing.assert_allclose(found, [2.74, 1.85, 5.79, -6.97, 9.06], atol=0.02)
  auroc = {
    3: (paper.TABLE_3, [1.89, 2.55, 2.88, 3.59, 4.05]),
    4: (paper.TABLE_4, [29.89, 7.35, 6.53, 4.25, 2.88]),
    5: (paper.TABLE_5, [1.72, -0.06, 3.86, 3.69, 2.88]),
  }
  for table, want in auroc.values():
    found = [change(rows, 0) for rows in table.values()]
    np.testing.assert_allclose(found, want, atol=0.03)


def test_a_table_prints_mean_deviation_and_the_paper():
  row = tables.rows(2, [0, 1], metric='l2', alpha=7, leaking=False)[0]
  values = [tables.scores(drawn(s), np.zeros(70, bool)) for s in (0, 1)]
  text = tables.markdown('Title', [(row, values)])
  each = [value['auroc'] for value in values]
  assert f'{np.mean(each):.4f} ({np.std(each, ddof=1):.3f})' in text
  assert f'| {paper.SOURCE} | 0.9465 (0.00) | 0.9299 (0.02) |' in text
  # Nobody knows which of these are hard: no column of n/a.
  assert 'hard' not in text and 'nan' not in text
  alone = tables.markdown('Title', [(row, values[:1])])
  assert f'| {each[0]:.4f} |' in alone


def test_scores_know_both_thresholds_and_hard_tiles():
  label = np.array([1, 1, 0, 0, 0])
  found = outcome(np.array([0.9, 0.3, 0.6, 0.2, 0.05]), label)
  values = tables.scores(found, np.array([0, 0, 1, 0, 0], bool))
  assert values['sensitivity'] == 0.5 and values['sensitivity_low'] == 1
  assert values['specificity'] == pytest.approx(2 / 3)
  assert values['specificity_low'] == pytest.approx(1 / 3)
  assert values['f1_micro'] == pytest.approx(3 / 5)
  assert values['specificity_at'] == pytest.approx(2 / 3)
  # Of two positives, one ranks above the hard tile.
  assert values['auroc_hard'] == 0.5


def test_margins_are_paired_by_seed():
  a, b = ([drawn(s, gain) for s in range(3)] for gain in (0.1, 0.3))
  hard = np.arange(70) % 5 == 1
  lines = tables.margin(a, b, hard)
  assert [line.split(':')[0] for line in lines] == [
    'AUROC',
    'AUROC, hard',
    'spec. at sens. 0.9',
  ]
  change = [
    tables.scores(y, hard)['auroc'] - tables.scores(x, hard)['auroc']
    for x, y in zip(a, b, strict=True)
  ]
  assert f'AUROC: {np.mean(change):+.4f} (seeds: {change[0]:+.3f}' in lines[0]
  ends = lines[0].split('trainings, ')[1].split(' to ')
  assert 0 < float(ends[0]) < np.mean(change) < float(ends[1])
  same = tables.margin(a, a, hard)
  assert same[0].startswith('AUROC: +0.0000') and same[0].endswith('n/a')
  # Among positives and hard tiles alone, the others count for nothing.
  rows = hard | (a[0].label == 1)
  few = [[take(found, rows) for found in each] for each in (a, b)]
  alone = tables.margin(*few, hard[rows])
  assert lines[1].split(': ')[1] == alone[0].split(': ')[1]


def test_settings_have_folders_of_their_own():
  settings = [
    Setting(seed, choice, alpha, share, of).canonical()
    for seed in (0, 1)
    for choice in ('weak', 'l2', 'cosine', 'random')
    for alpha in (5, 20)
    for share in (10, 100)
    for of in ('all', 'positives')
  ]
  assert len({s.path() for s in settings}) == len(set(settings)) == 2 * 7 * 3
