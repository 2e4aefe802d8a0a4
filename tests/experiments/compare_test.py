"""Runs are compared slide by slide, or refused."""

import csv
import io
import json

from drawn_results import strict
import numpy as np
import paper_folders
import pytest

from experiments import compare
from experiments.evaluation import comparison
from experiments.run.results import ResultsError
from kmil_jax import delong, intervals, metrics

CLASSES = paper_folders.CLASSES['a']
COLUMNS = (
  'a b metric value_a value_b difference ci_low ci_high p p_holm p_delong'
  ' p_delong_holm'
)


def make(folder, seed, skill=0.5, task='a'):
  """A results folder of 120 slides and a model of some skill."""
  model = folder.name
  paper_folders.write(folder, model, task, seed=seed, skill=skill, slides=40)
  return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  strong = make(root / 'strong', 2, 2.0)
  path = strong / 'fold_0/predictions.csv'
  header, *lines = path.read_text().splitlines()
  path.write_text('\n'.join([header, *reversed(lines)]) + '\n')
  return [make(root / 'weak', 1), strong, make(root / 'again', 4)]


def rows_of(*paths):
  return comparison.compare(comparison.read_all(paths))


def test_pairs_are_compared_on_the_same_slides(folders):
  runs = comparison.read_all(folders)
  rows = comparison.compare(runs)
  pairs = [('weak', 'strong'), ('weak', 'again'), ('strong', 'again')]
  names = [*metrics.NAMES, *(f'auroc {c}' for c in CLASSES)]
  assert [(r['a'], r['b'], r['metric']) for r in rows] == [
    (*pair, name) for pair in pairs for name in names
  ]
  tests = {run.name: run.test() for run in runs}
  for row in rows:
    assert list(row) == COLUMNS.split()
    a, b = tests[row['a']], tests[row['b']]
    # Folders list slides in different orders; joined, they agree.
    np.testing.assert_array_equal(a.slide, b.slide)
    np.testing.assert_array_equal(a.label, b.label)
    value, other = (metrics.evaluate(p.label, p.prob) for p in (a, b))
    if row['metric'] in metrics.NAMES:
      value, other = value[row['metric']], other[row['metric']]
      differ = 'strong' in (row['a'], row['b'])
      assert (row['ci_low'] * row['ci_high'] > 0) == differ
      assert row['p_holm'] < 0.05 if differ else row['p_holm'] > 0.1
    else:
      c = CLASSES.index(row['metric'].removeprefix('auroc '))
      value, other = value['class_auroc'][c], other['class_auroc'][c]
      both = np.stack([a.prob[:, c], b.prob[:, c]])
      _, cov = delong.covariance(a.label == c, both, a.case)
      p = delong.p_value(other - value, np.array([-1, 1]) @ cov @ [-1, 1])
      assert row['p_delong'] == pytest.approx(p, rel=1e-4)
    assert row['value_a'] == pytest.approx(value, abs=1e-5)
    assert row['difference'] == pytest.approx(other - value, abs=1e-5)
    assert row['ci_low'] <= row['difference'] <= row['ci_high']
    assert (row['p_delong'] is None) == (not row['metric'].startswith('auroc'))
  # Each metric is corrected for the three pairs, not for other metrics.
  for metric in names:
    tests = [row for row in rows if row['metric'] == metric]
    for name in ('p', 'p_delong'):
      p = np.array([row[name] for row in tests], float)
      adjusted = np.array([row[f'{name}_holm'] for row in tests], float)
      np.testing.assert_allclose(adjusted, intervals.holm(p), rtol=1e-4)
  chosen = comparison.compare(runs, [(0, 2)])
  assert [(r['a'], r['b'], r['metric']) for r in chosen] == [
    ('weak', 'again', name) for name in names
  ]
  assert all(row['p_holm'] == row['p'] for row in chosen)


def test_macro_p_agrees_with_resamples(folders):
  rows = rows_of(folders[0], folders[2])
  (row,) = (row for row in rows if row['metric'] == 'auroc')
  assert row['p_delong'] == pytest.approx(row['p'], abs=0.05)
  half = (row['ci_high'] - row['ci_low']) / 2
  z = row['difference'] / (half / 1.96)
  assert abs(z) < 3 and 0.01 < row['p'] < 1


def test_two_classes_have_one_auroc(tmp_path):
  weak = make(tmp_path / 'weak', 1, task='b')
  rows = rows_of(weak, make(tmp_path / 'strong', 2, 2.0, task='b'))
  assert [row['metric'] for row in rows] == list(metrics.NAMES)
  assert 0 < rows[-1]['p_delong'] < 1e-3 and rows[0]['p_delong'] is None


def test_a_model_is_no_better_than_itself(tmp_path):
  for row in rows_of(make(tmp_path / 'a', 1), make(tmp_path / 'b', 1)):
    assert row['difference'] == 0
    assert row['ci_low'] is row['ci_high'] is None
    assert row['p'] == row['p_holm'] == 1
    assert row['p_delong'] in (None, 1)


SLIDE = 'test0 3,test0_007,0,test,non-tumor'
ELSEWHERE = "fold 0, test part, slide 'new': in the second only"
MISSING = "fold 0, test part, slide 'test0_007': in the first only"


@pytest.mark.parametrize(
  ('name', 'old', 'new', 'message'),
  [
    ('fold_0/predictions.csv', 'test0_007', 'new', ELSEWHERE),
    ('fold_0/predictions.csv', 'test0_007', 'new', MISSING),
    (
      'fold_0/predictions.csv',
      SLIDE,
      f'{SLIDE[:-9]}metastatic',
      'class 0 or 2',
    ),
    (
      'fold_0/predictions.csv',
      SLIDE,
      f'px{SLIDE[7:]}',
      "case 'test0 3' or 'px'",
    ),
    (
      'splits/splits_1.csv',
      'test',
      'test\r\ns000,,',
      'only one of them trains',
    ),
  ],
)
def test_runs_of_other_slides_are_refused(
  tmp_path, folders, name, old, new, message
):
  other = make(tmp_path / 'other', 1)
  text = (other / name).read_text()
  assert old in text
  (other / name).write_text(text.replace(old, new, 1))
  with pytest.raises(ResultsError) as e:
    rows_of(folders[0], other)
  assert message in str(e.value)
  assert str(folders[0]) in str(e.value) and str(other) in str(e.value)


def test_other_classes_folds_and_folders_are_refused(tmp_path, folders):
  weak, other = folders[0], make(tmp_path / 'other', 1, task='b')
  with pytest.raises(ResultsError, match=r'classes: .*metastatic or non-tumor'):
    rows_of(weak, other)
  fewer = make(tmp_path / 'fewer', 1)
  (fewer / 'fold_2' / 'predictions.csv').unlink()
  with pytest.raises(ResultsError, match=r'folds: \[0, 1, 2\] or \[0, 1\]'):
    rows_of(weak, fewer)
  with pytest.raises(ResultsError, match='weak is given twice'):
    rows_of(weak, folders[1], weak.parent / 'again' / '..' / 'weak')


def test_the_script_prints_every_format(folders, capsys):
  def run(*args):
    compare.main(['compare', *args, *map(str, folders[:2])])
    return capsys.readouterr().out

  rows = rows_of(*folders[:2])
  assert strict(run('--format=json')) == json.loads(json.dumps(rows))
  printed = list(csv.DictReader(io.StringIO(run('--format=csv'))))
  assert printed == [
    {k: '' if v is None else str(v) for k, v in row.items()} for row in rows
  ]
  (table,) = comparison.tables(rows)
  text = run()
  assert text.startswith('120 test slides of 60 cases, folds 0, 1, 2')
  assert table.terminal() in text
  assert table.markdown() in run('--format=markdown')
  for row, line in zip(rows, table.cells()[1:], strict=True):
    change = [f'{row[key]:+.3f}' for key in ('difference', 'ci_low', 'ci_high')]
    assert line[0] == row['metric']
    assert line[3:5] == [change[0], f'{change[1]} to {change[2]}']


def test_the_script_ends_plainly(folders, capsys):
  for args, message in (
    ([folders[0]], 'Name two results folders'),
    ([folders[0], folders[0].parent / 'no'], r'no/summary\.json: no such file'),
  ):
    with pytest.raises(SystemExit, match=f'error: .*{message}'):
      compare.main(['compare', *map(str, args)])
    assert capsys.readouterr().out == ''
