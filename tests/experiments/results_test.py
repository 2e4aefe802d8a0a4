"""The results folder: its contract, and whose it is."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import results
from experiments.results import Predictions, ResultsError
from kmil_jax import metrics

CLASSES = ('non-tumor', 'lymphoma', 'breast')
FLAGS = {'seed': 1, 'lr': 2e-4, 'labels': ['a:b'], 'heat_maps': 12}
DECIDES = ('seed', 'lr', 'labels')
INPUTS = {'labels_sha256': 'abc'}


def strict(text):
  """Parses JSON proper: no NaN, no infinities."""

  def refuse(name):
    raise AssertionError(f'{name} is not JSON')

  return json.loads(text, parse_constant=refuse)


def part(seed, n, labels=(0, 1, 2)):
  rng = np.random.default_rng(seed)
  label = np.array(labels)[np.arange(n) % len(labels)]
  prob = rng.dirichlet(np.ones(len(CLASSES)), n).astype(np.float32)
  case = np.array([f'case {seed} {i // 2}' for i in range(n)])
  slide = np.array([f'0{seed},"{i}é' for i in range(n)])
  return Predictions(case=case, slide=slide, label=label, prob=prob)


def write(folder, fold, test_labels=(0, 1, 2)):
  parts = {
    'val': part(100 + fold, 6),
    'test': part(fold, 8, test_labels),
  }
  path = folder / f'fold_{fold}' / 'predictions.csv'
  results.write_predictions(path, fold, parts, CLASSES)
  return parts


def rows_of(path):
  with path.open(newline='', encoding='utf-8') as f:
    return list(csv.reader(f))


def test_a_folder_is_opened_again_with_the_same_settings(tmp_path):
  folder = tmp_path / 'x_s1'
  results.open_folder(folder, FLAGS, DECIDES, INPUTS)
  config = strict((folder / 'config.json').read_text())
  assert config['flags'] == FLAGS and config['inputs'] == INPUTS
  (made_by,) = config['made_by']
  assert made_by['versions'].keys() >= {'python', 'jax', 'flax', 'optax'}
  assert 'commit' in made_by
  # A tuple is written as a list, and where to draw decides nothing.
  results.open_folder(
    folder, FLAGS | {'labels': ('a:b',), 'heat_maps': 0}, DECIDES, INPUTS
  )
  # What began the folder stays on record.
  assert strict((folder / 'config.json').read_text()) == config


def test_another_version_that_goes_on_is_added(tmp_path, monkeypatch):
  folder = tmp_path / 'x_s1'
  results.open_folder(folder, FLAGS, DECIDES, INPUTS)
  monkeypatch.setattr(results, '_commit', lambda: 'another')
  results.open_folder(folder, FLAGS, DECIDES, INPUTS)
  made_by = strict((folder / 'config.json').read_text())['made_by']
  assert [m['commit'] == 'another' for m in made_by] == [False, True]


def test_changed_settings_are_refused_with_their_list(tmp_path):
  folder = tmp_path / 'x_s1'
  results.open_folder(folder, FLAGS, DECIDES, INPUTS)
  before = (folder / 'config.json').read_bytes()
  with pytest.raises(ResultsError) as e:
    results.open_folder(
      folder,
      FLAGS | {'seed': 2, 'heat_maps': 0, 'new': 5},
      (*DECIDES, 'new'),
      {'labels_sha256': 'xyz'},
    )
  assert str(e.value).splitlines() == [
    f'{folder} holds results of other settings:',
    '  labels_sha256: abc before, xyz now',
    '  new: None before, 5 now',
    '  seed: 1 before, 2 now',
    'choose another --exp_code, or remove the folder',
  ]
  assert (folder / 'config.json').read_bytes() == before


def test_predictions_are_read_as_written(tmp_path):
  want = write(tmp_path, 3)
  path = tmp_path / 'fold_3' / 'predictions.csv'
  got = results.read_predictions(path, CLASSES)
  for name in ('val', 'test'):
    assert len(got[name]) == len(want[name])
    for field in ('case', 'slide', 'label'):
      np.testing.assert_array_equal(
        getattr(got[name], field), getattr(want[name], field)
      )
    np.testing.assert_array_equal(got[name].prob, want[name].prob)  # Exactly.
  header, first, *_ = rows_of(path)
  assert header == (
    ['case_id', 'slide_id', 'fold', 'split', 'label', 'pred']
    + [f'prob_{c}' for c in CLASSES]
  )
  p = want['val']
  assert first[:6] == [
    p.case[0],
    p.slide[0],
    '3',
    'val',
    CLASSES[0],
    CLASSES[p.prob[0].argmax()],
  ]
  assert [x.name for x in path.parent.iterdir()] == ['predictions.csv']


def test_a_summary_keeps_its_contract(tmp_path):
  parts = {fold: write(tmp_path, fold) for fold in (0, 2)}
  summary = results.summarise(tmp_path, 'kmil', 'a', 4, CLASSES)
  assert strict((tmp_path / 'summary.json').read_text()) == summary
  assert summary['model'] == 'kmil' and summary['task'] == 'a'
  assert summary['classes'] == list(CLASSES) and summary['k'] == 4
  assert summary['folds'] == [0, 2]

  test = results.pool([p['test'] for p in parts.values()])
  assert len(test) == 16
  pooled = metrics.evaluate(test.label, test.prob)
  intervals = metrics.bootstrap(test.label, test.prob, test.case)
  assert set(summary['metrics']) == {
    'accuracy',
    'f1_macro',
    'f1_weighted',
    'auroc',
  }
  for name, got in summary['metrics'].items():
    each = [
      metrics.evaluate(p['test'].label, p['test'].prob)[name]
      for p in parts.values()
    ]
    want = {
      'mean': np.mean(each),
      'std': np.std(each, ddof=1),
      'pooled': pooled[name],
      'ci_low': intervals[name][0],
      'ci_high': intervals[name][1],
      'per_fold': each,
    }
    assert list(got) == list(want)
    for key, value in want.items():
      assert got[key] == pytest.approx(value, abs=1e-6), (name, key)
    assert got['ci_low'] <= got['pooled'] <= got['ci_high']

  table = metrics.confusion(test.label, test.prob.argmax(1), 3)
  assert summary['confusion'] == table.tolist()
  assert list(summary['per_class']) == list(CLASSES)
  for c, got in enumerate(summary['per_class'].values()):
    want = {
      'precision': table[c, c] / max(table[:, c].sum(), 1),
      'recall': table[c, c] / table[c].sum(),
      'auroc': metrics.auroc(test.label == c, test.prob[:, c]),
    }
    assert got == pytest.approx(want, abs=1e-6)

  header, *lines = rows_of(tmp_path / 'summary.csv')
  assert header[:5] == ['folds', 'test_auc', 'val_auc', 'test_acc', 'val_acc']
  assert [line[0] for line in lines] == ['0', '2']
  for line, p in zip(lines, parts.values(), strict=True):
    scores = {
      f'{name}_{short}': metrics.evaluate(p[name].label, p[name].prob)[long]
      for name in ('test', 'val')
      for short, long in (
        ('auc', 'auroc'),
        ('acc', 'accuracy'),
        ('f1_macro', 'f1_macro'),
        ('f1_weighted', 'f1_weighted'),
      )
    }
    for column, text in zip(header[1:], line[1:], strict=True):
      assert float(text) == pytest.approx(scores[column], abs=1e-6), column

  header, *lines = rows_of(tmp_path / 'predictions.csv')
  assert len(lines) == 2 * (6 + 8) and header[0] == 'case_id'
  assert [line[2] for line in lines] == ['0'] * 14 + ['2'] * 14


def test_a_class_missing_in_a_fold_is_undefined_not_nan(tmp_path):
  write(tmp_path, 0)
  write(tmp_path, 1, test_labels=(0, 1))
  summary = results.summarise(tmp_path, 'abmil', 'origin', 2, CLASSES)
  assert strict((tmp_path / 'summary.json').read_text()) == summary
  auroc = summary['metrics']['auroc']
  assert auroc['per_fold'][0] is not None and auroc['per_fold'][1] is None
  assert auroc['mean'] == auroc['per_fold'][0] and auroc['std'] is None
  assert auroc['pooled'] is not None and auroc['ci_low'] is not None
  header, *lines = rows_of(tmp_path / 'summary.csv')
  assert lines[1][header.index('test_auc')] == ''
  assert lines[1][header.index('val_auc')] != ''


def test_a_class_missing_everywhere_is_undefined_too(tmp_path):
  write(tmp_path, 0, test_labels=(0, 1))
  summary = results.summarise(tmp_path, 'abmil', 'origin', 1, CLASSES)
  assert strict((tmp_path / 'summary.json').read_text()) == summary
  auroc = summary['metrics']['auroc']
  assert set(map(str, (auroc[k] for k in auroc if k != 'per_fold'))) == {'None'}
  assert summary['per_class']['breast']['auroc'] is None
  assert summary['per_class']['lymphoma']['auroc'] is not None
  table = results.table(summary)
  assert 'n/a' in table and 'nan' not in table.lower()
  assert summary['metrics']['accuracy']['std'] is None  # One fold only.
  assert summary['metrics']['accuracy']['mean'] is not None


def test_the_closing_table_shows_every_number(tmp_path):
  for fold in range(3):
    write(tmp_path, fold)
  summary = results.summarise(tmp_path, 'kmil', 'origin', 3, CLASSES)
  table = results.table(summary)
  for name, m in summary['metrics'].items():
    line = next(x for x in table.splitlines() if x.startswith(name))
    for key in ('pooled', 'ci_low', 'ci_high', 'mean', 'std'):
      assert f'{m[key]:.3f}' in line
  for name, row in zip(CLASSES, summary['confusion'], strict=True):
    line = next(x for x in table.splitlines() if x.startswith(name))
    assert [int(x) for x in line.split()[-3:]] == row


def test_summaries_do_not_depend_on_the_locale(tmp_path):
  write(tmp_path, 0)
  want = results.summarise(tmp_path, 'kmil', 'origin', 1, CLASSES)
  rows = rows_of(tmp_path / 'predictions.csv')
  program = (
    'import pathlib, sys\n'
    'from experiments import results\n'
    'results.summarise(pathlib.Path(sys.argv[1]), "kmil", "origin", 1,'
    f' {CLASSES!r})\n'
  )
  env = os.environ | {
    'LC_ALL': 'C',
    'PYTHONUTF8': '0',
    'PYTHONCOERCECLOCALE': '0',
  }
  subprocess.run(
    [sys.executable, '-c', program, tmp_path], env=env, check=True, timeout=60
  )
  assert strict((tmp_path / 'summary.json').read_text()) == want
  assert rows_of(tmp_path / 'predictions.csv') == rows


def test_a_file_is_there_in_full_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / 'new' / 'a.txt'
  results.write_text(path, 'old')
  with monkeypatch.context() as m:
    m.setattr(os, 'replace', None)
    m.setattr(type(path), 'replace', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      results.write_text(path, 'new')
  assert path.read_text() == 'old'
  results.write_text(path, 'new')
  assert path.read_text() == 'new'
