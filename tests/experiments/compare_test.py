"""Runs are compared slide by slide, or refused."""

import csv
import functools
import io
import json

from drawn_results import CLASSES, strict
import numpy as np
import pytest
import script_process

from experiments import comparison, files, tables
from experiments.evaluation import predictions, summary as summaries
from experiments.evaluation.predictions import Predictions
from experiments.run.results import Folder, ResultsError
from kmil_jax import delong, intervals, metrics

FOLDS, SLIDES = 3, 120


def make(root, name, skill, seed, *, classes=CLASSES, edit=None, reverse=False):
  """A results folder of a model of some skill; `edit` alters its slides."""
  shared = np.random.default_rng(0)
  count = len(classes)
  case = np.arange(SLIDES) // 2
  fold = case % FOLDS
  label = (case // FOLDS) % count
  base = shared.normal(size=(SLIDES, count))
  own = np.random.default_rng(seed).normal(size=(SLIDES, count))
  logits = base + own + skill * np.eye(count)[label]
  prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  table = {
    'case': np.array([f'p{i}' for i in case]),
    'slide': np.array([f's{i:03}' for i in range(SLIDES)]),
    'label': label,
    'train': [(fold != f) & (fold != (f + 1) % FOLDS) for f in range(FOLDS)],
  }
  if edit:
    edit(table)
  folder = root / name
  for f in range(FOLDS):
    parts = {}
    for part, group in (('val', (f + 1) % FOLDS), ('test', f)):
      rows = np.flatnonzero(fold == group)[:: -1 if reverse else 1]
      parts[part] = Predictions(
        table['case'][rows],
        table['slide'][rows],
        table['label'][rows],
        prob[rows],
      )
    predictions.write(Folder(folder / f'fold_{f}'), f, parts, classes)
    train = [[s, '', ''] for s in table['slide'][table['train'][f]]]
    files.write_csv(
      folder / 'splits' / f'splits_{f}.csv', [['train', 'val', 'test'], *train]
    )
  summaries.summarise(Folder(folder), name, 'origin', FOLDS, classes)
  return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  return [
    make(root, 'weak', 0.5, 1),
    make(root, 'strong', 2.0, 2, reverse=True),
    make(root, 'again', 0.5, 3),
  ]


def test_pairs_are_compared_on_the_same_slides(folders):
  runs = comparison.read(folders)
  rows = comparison.compare(runs)
  pairs = [('weak', 'strong'), ('weak', 'again'), ('strong', 'again')]
  names = [*metrics.NAMES, *(f'auroc {c}' for c in CLASSES)]
  assert [(r['a'], r['b'], r['metric']) for r in rows] == [
    (*pair, name) for pair in pairs for name in names
  ]
  tests = {run.name: run.test() for run in runs}
  for row in rows:
    assert tuple(row) == comparison.COLUMNS
    a, b = tests[row['a']], tests[row['b']]
    # Folders list slides in different orders; joined, they agree.
    np.testing.assert_array_equal(a.slide, b.slide)
    np.testing.assert_array_equal(a.label, b.label)
    if row['metric'] in metrics.NAMES:
      value = metrics.evaluate(a.label, a.prob)[row['metric']]
      change = metrics.evaluate(b.label, b.prob)[row['metric']] - value
    else:
      c = CLASSES.index(row['metric'].removeprefix('auroc '))
      mine = a.label == c
      value = metrics.auroc(mine, a.prob[:, c])
      change = metrics.auroc(mine, b.prob[:, c]) - value
      both = np.stack([a.prob[:, c], b.prob[:, c]])
      _, cov = delong.covariance(mine, both, a.case)
      closed = delong.p_value(change, np.array([-1, 1]) @ cov @ [-1, 1])
      assert row['p_delong'] == pytest.approx(closed, rel=1e-4)
    assert row['value_a'] == pytest.approx(value, abs=1e-5)
    assert row['difference'] == pytest.approx(change, abs=1e-5)
    assert row['ci_low'] <= row['difference'] <= row['ci_high']
    assert (row['p_delong'] is None) == (not row['metric'].startswith('auroc'))
    if row['metric'] in metrics.NAMES:
      differ = 'strong' in (row['a'], row['b'])
      assert (row['ci_low'] * row['ci_high'] > 0) == differ
      assert row['p_holm'] < 0.05 if differ else row['p_holm'] > 0.1
  # Each metric is corrected for the three pairs, not for other metrics.
  for metric in names:
    tests = [row for row in rows if row['metric'] == metric]
    for name in ('p', 'p_delong'):
      p = [row[name] for row in tests]
      adjusted = [row[f'{name}_holm'] for row in tests]
      if None in p:
        assert p == adjusted == [None] * 3
      else:
        want = intervals.holm(np.array(p))
        assert adjusted == pytest.approx(want, rel=1e-4)
  chosen = comparison.compare(runs, [(0, 2)])
  assert [(r['a'], r['b'], r['metric']) for r in chosen] == [
    ('weak', 'again', name) for name in names
  ]
  assert all(row['p_holm'] == row['p'] for row in chosen)


def test_macro_p_agrees_with_resamples(folders):
  rows = comparison.compare(comparison.read([folders[0], folders[2]]))
  (row,) = (row for row in rows if row['metric'] == 'auroc')
  assert row['p_delong'] == pytest.approx(row['p'], abs=0.05)
  half = (row['ci_high'] - row['ci_low']) / 2
  z = row['difference'] / (half / 1.96)
  assert abs(z) < 3 and 0.01 < row['p'] < 1


def test_two_classes_have_one_auroc(tmp_path):
  two = CLASSES[:2]
  paths = [
    make(tmp_path, name, skill, seed, classes=two)
    for name, skill, seed in (('a', 0.5, 1), ('b', 2.0, 2))
  ]
  rows = comparison.compare(comparison.read(paths))
  assert [row['metric'] for row in rows] == list(metrics.NAMES)
  assert rows[-1]['p_delong'] < 1e-3 and rows[0]['p_delong'] is None
  assert rows[-1]['p_delong'] > 0


def test_a_model_is_no_better_than_itself(tmp_path):
  paths = [make(tmp_path, name, 1.0, 1) for name in 'ab']
  for row in comparison.compare(comparison.read(paths)):
    assert row['difference'] == 0
    assert row['ci_low'] is row['ci_high'] is None
    assert row['p'] == row['p_holm'] == 1
    assert row['p_delong'] in (None, 1)


def set_slide(table):
  table['slide'] = np.where(table['slide'] == 's007', 'new', table['slide'])


def set_label(table):
  table['label'] = np.where(table['slide'] == 's007', 2, table['label'])


def set_case(table):
  table['case'] = np.where(table['slide'] == 's007', 'px', table['case'])


def set_train(table):
  table['train'][1] &= table['slide'] != 's000'


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (set_slide, "fold 0, test part, slide 'new': in the second only"),
    (set_slide, "fold 0, test part, slide 's007': in the first only"),
    (set_label, "slide 's007': class 1 or 2"),
    (set_case, "slide 's007': case 'p3' or 'px'"),
    (set_train, 'fold 1: only one of them trains on s000'),
  ],
)
def test_runs_of_other_slides_are_refused(tmp_path, folders, edit, message):
  other = make(tmp_path, 'other', 1.0, 1, edit=edit)
  with pytest.raises(ResultsError) as e:
    comparison.read([folders[0], other])
  assert message in str(e.value)
  assert str(folders[0]) in str(e.value) and str(other) in str(e.value)


def test_other_classes_folds_and_folders_are_refused(tmp_path, folders):
  weak = folders[0]
  other = make(tmp_path, 'other', 1.0, 1, classes=('x', 'y', 'z'))
  with pytest.raises(ResultsError, match=r'classes: .*breast or x, y, z'):
    comparison.read([weak, other])
  fewer = make(tmp_path, 'fewer', 1.0, 1)
  (fewer / 'fold_2' / 'predictions.csv').unlink()
  with pytest.raises(ResultsError, match=r'folds: \[0, 1, 2\] or \[0, 1\]'):
    comparison.read([weak, fewer])
  with pytest.raises(ResultsError, match='weak is given twice'):
    comparison.read([weak, folders[1], f'{weak}/../weak'])
  with pytest.raises(
    ResultsError, match=r'nothing/summary\.json: no such file'
  ):
    comparison.read([weak, tmp_path / 'nothing'])


run = functools.partial(script_process.run, 'experiments.compare')


def test_the_script_prints_every_format(folders):
  pair = folders[:2]
  rows = comparison.compare(comparison.read(pair))
  assert strict(run('--format=json', *pair).stdout) == json.loads(
    json.dumps(rows)
  )
  printed = list(csv.DictReader(io.StringIO(run('--format=csv', *pair).stdout)))
  assert printed == [
    {k: '' if v is None else str(v) for k, v in row.items()} for row in rows
  ]
  text = run(*pair).stdout
  assert text.startswith('120 test slides of 60 cases, folds 0, 1, 2')
  assert tables.comparison(rows) in text
  assert max(map(len, text.splitlines())) <= 100
  for row, line in zip(rows, text.splitlines()[-len(rows) :], strict=True):
    assert line.startswith(row['metric'])
    for key in ('difference', 'ci_low', 'ci_high'):
      assert f'{row[key]:+.3f}' in line
  markdown = run('--format=markdown', *pair).stdout.splitlines()
  *table, blank, holm = markdown
  assert len(table) == len(rows) + 2 and not blank
  assert {line.count('|') for line in table} == {12}
  assert holm in text and 'within each metric for all pairs of runs' in holm


def test_the_script_ends_plainly(folders):
  done = run(folders[0], folders[0].parent / 'nothing')
  assert done.returncode == 1 and done.stdout == ''
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
  done = run(folders[0])
  assert done.returncode == 1 and 'two results folders or more' in done.stderr
