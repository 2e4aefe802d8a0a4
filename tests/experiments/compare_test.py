"""Runs are compared slide by slide, or refused."""

import csv
import dataclasses
import io
import json

import numpy as np
import paper_folders
import pytest

from experiments import compare
from experiments.evaluation import comparison, summary
from experiments.run.results import Folder, ResultsError
from kmil_jax import delong, intervals, metrics

CLASSES = paper_folders.CLASSES['a']
NAMES = [*metrics.NAMES, *(f'auroc {c}' for c in CLASSES)]


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
  assert [(r['a'], r['b'], r['metric']) for r in rows] == [
    (*pair, name) for pair in pairs for name in NAMES
  ]
  tests = {run.name: run.test() for run in runs}
  for row in rows:
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
  for metric in NAMES:
    of_metric = [row for row in rows if row['metric'] == metric]
    for name in ('p', 'p_delong'):
      p = np.array([row[name] for row in of_metric], float)
      adjusted = np.array([row[f'{name}_holm'] for row in of_metric], float)
      np.testing.assert_allclose(adjusted, intervals.holm(p), rtol=1e-4)
  chosen = comparison.compare(runs, [(0, 2)])
  assert [(r['a'], r['b'], r['metric']) for r in chosen] == [
    ('weak', 'again', name) for name in NAMES
  ]
  assert all(row['p_holm'] == row['p'] for row in chosen)
  # The closed form agrees with resamples, of the mean over classes too.
  (auroc,) = (row for row in chosen if row['metric'] == 'auroc')
  assert auroc['p_delong'] == pytest.approx(auroc['p'], abs=0.05)
  assert 0.01 < auroc['p'] < 1


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


SLIDE = 'test0 3,test0_007,0,test,'


@pytest.mark.parametrize(
  'name,old,new,message',
  [
    ('fold_0/predictions.csv', 'test0_007', 'new', "'new': in the second only"),
    ('fold_0/predictions.csv', 'test0_007', 'x', "test0_007': in the first"),
    (
      'fold_0/predictions.csv',
      f'{SLIDE}non-tumor',
      f'{SLIDE}metastatic',
      'class 0 or 2',
    ),
    ('fold_0/predictions.csv', 'test0 3', 'px', "case 'test0 3' or 'px'"),
    ('splits/splits_1.csv', 'test', 'test\ns000,,', 'only one of them trains'),
    ('fold_2/predictions.csv', None, None, 'folds: [0, 1, 2] or [0, 1]'),
  ],
)
def test_runs_of_other_slides_are_refused(
  tmp_path, folders, name, old, new, message
):
  path = make(tmp_path / 'other', 1) / name
  text = path.read_text()
  if old is None:
    path.unlink()
  else:
    assert old in text
    path.write_text(text.replace(old, new, 1))
  with pytest.raises(ResultsError) as e:
    rows_of(folders[0], tmp_path / 'other')
  for words in (message, str(folders[0]), str(tmp_path / 'other')):
    assert words in str(e.value)


def test_what_cannot_be_compared_ends_the_script_plainly(
  tmp_path, folders, capsys
):
  weak, other = folders[0], make(tmp_path / 'other', 1, task='b')
  for args, message in (
    ([weak, weak.parent / 'no'], r'no/summary\.json: no such file'),
    ([weak, other], r'classes: .*metastatic or non-tumor'),
    ([weak, weak.parent / 'again/../weak'], 'weak is given twice'),
  ):
    with pytest.raises(SystemExit, match=rf'error: [\s\S]*{message}'):
      compare.main(['compare', *map(str, args)])
  assert capsys.readouterr().out == ''


def test_patients_with_slides_of_several_classes_are_left_out(folders):
  (run,) = comparison.read_all(folders[:1])
  run = dataclasses.replace(run, patients='mean')
  p = run.folds[0]['test']
  assert run.mixed() == 0 and p.case[0] in run.test().case
  i = int(np.flatnonzero(p.label != p.label[0])[0])
  p.case[i] = p.case[0]
  assert run.mixed() == 1 and p.case[0] not in run.test().case
  # Repeated splits test a patient in several folds.
  other = run.folds[1]['test']
  other.case[np.unique(other.label, return_index=True)[1]] = p.case[0]
  assert run.mixed() == 1
  for parts in run.folds.values():
    parts['test'].case[:] = 'one'
  with pytest.raises(ResultsError, match='every patient has slides of several'):
    run.test()


def test_options_are_those_that_a_run_was_made_with(tmp_path):
  runs = []
  for name, options in ('setting', {}), ('one', {'seeds': 1}):
    folder = Folder(tmp_path / name)
    config = {'flags': options, 'inputs': {}, 'made_by': []}
    folder.write('config.json', config)
    runs.append(comparison.Run(name, folder, {}, {}))
  assert comparison.other_options(runs) == []
  folder.write('config.json', config | {'flags': {'seeds': 3}})
  lines = comparison.other_options(runs)
  assert lines == ['--seeds differs: setting 1, one 3']
  options = {'flags': {'seed': 7, 'seeds': 3}}
  parts = [Folder(tmp_path / f'seed_{seed}') for seed in (7, 8)]
  for part in parts:
    part.write('config.json', config | options)
  runs = [comparison.Run(part.path.name, part, {}, {}) for part in parts]
  lines = comparison.other_options(runs)
  assert lines == ['--seed differs: seed_7 7, seed_8 8']


def test_the_script_prints_every_format(folders, capsys, monkeypatch):
  def run(*args):
    compare.main(['compare', *args, *map(str, folders[:2])])
    return capsys.readouterr().out

  rows = rows_of(*folders[:2])
  assert json.loads(run('--format=json')) == json.loads(json.dumps(rows))
  printed = list(csv.DictReader(io.StringIO(run('--format=csv'))))
  assert printed == [
    {k: '' if v is None else str(v) for k, v in row.items()} for row in rows
  ]
  (table,) = comparison.tables(rows)
  assert table.terminal() in (shown := run())
  assert 'fewer than' not in shown
  monkeypatch.setattr(summary, 'FEW_CASES', 1000)
  assert 'classes with fewer than 1000 patients: ' in run()
  assert table.markdown() in run('--format=markdown')
  # Of patients, as the summaries of the runs have them.
  cases = [summary.of_cases([r.test()]) for r in comparison.read_all(folders)]
  for how in ('mean', 'max'):
    text = run(f'--patients={how}')
    assert '60 test patients, folds' in text and f'(patients, {how})' in text
    for row in json.loads(run('--format=json', f'--patients={how}'))[:5]:
      for one, value in zip(
        cases[:2], (row['value_a'], row['value_b']), strict=True
      ):
        assert value == one[how][row['metric']]['pooled']
  first, change = rows[0], table.cells()[1]
  ends = f'{first["ci_low"]:+.3f} to {first["ci_high"]:+.3f}'
  assert change[3:5] == [f'{first["difference"]:+.3f}', ends]
