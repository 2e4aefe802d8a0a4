"""The summary of a results folder: its contract, and what is undefined."""

import os
import subprocess
import sys

from drawn_results import CLASSES, rows_of, strict, write
import numpy as np
import pytest

from experiments.evaluation import predictions, summary as summaries
from experiments.run.results import Folder
from kmil_jax import delong, intervals, metrics


def test_a_summary_keeps_its_contract(tmp_path):
  parts = {fold: write(tmp_path, fold) for fold in (0, 2)}
  summary = summaries.summarise(Folder(tmp_path), 'kmil', 'a', 4, CLASSES)
  assert strict((tmp_path / 'summary.json').read_text()) == summary
  assert summary['model'] == 'kmil' and summary['task'] == 'a'
  assert summary['classes'] == list(CLASSES) and summary['k'] == 4
  assert summary['folds'] == [0, 2]

  test = predictions.pool([p['test'] for p in parts.values()])
  assert len(test) == 16
  pooled = metrics.evaluate(test.label, test.prob)
  bounds = intervals.of_metrics(test.label, test.prob, test.case)
  assert set(summary['metrics']) == {
    'accuracy',
    'balanced_accuracy',
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
      'ci_low': bounds[name][0],
      'ci_high': bounds[name][1],
      'per_fold': each,
    }
    assert list(got) == list(want)
    for key, value in want.items():
      assert got[key] == pytest.approx(value, abs=1e-6), (name, key)
    assert got['ci_low'] <= got['pooled'] <= got['ci_high']

  table = np.zeros((3, 3), int)
  np.add.at(table, (test.label, test.prob.argmax(1)), 1)
  assert summary['confusion'] == table.tolist()
  assert list(summary['per_class']) == list(CLASSES)
  for c, got in enumerate(summary['per_class'].values()):
    want = {
      'precision': table[c, c] / table[:, c].sum(),
      'recall': table[c, c] / table[c].sum(),
      'auroc': metrics.auroc(test.label == c, test.prob[:, c]),
      'slides': table[c].sum(),
    }
    for name in ('precision', 'recall', 'auroc'):
      ends = bounds[f'class_{name}'][:, c]
      want[f'{name}_ci_low'], want[f'{name}_ci_high'] = ends
    closed = got.pop('auroc_delong')
    assert got == pytest.approx(want, abs=1e-6)
    value, covariance = delong.covariance(
      test.label == c, test.prob[None, :, c], test.case
    )
    want = delong.interval(value[0], covariance[0, 0])
    assert (closed['low'], closed['high']) == pytest.approx(want, abs=1e-6)

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
        ('balanced_acc', 'balanced_accuracy'),
      )
    }
    assert len(scores) == len(line) - 1
    for column, text in zip(header[1:], line[1:], strict=True):
      assert float(text) == pytest.approx(scores[column], abs=1e-6), column

  for name, part, count in (
    ('predictions.csv', 'test', 8),
    ('validation_predictions.csv', 'val', 6),
  ):
    header, *lines = rows_of(tmp_path / name)
    assert header[0] == 'case_id' and {line[3] for line in lines} == {part}
    assert [line[2] for line in lines] == ['0'] * count + ['2'] * count


def test_a_class_missing_in_a_fold_is_undefined_not_nan(tmp_path):
  write(tmp_path, 0)
  write(tmp_path, 1, test_labels=(0, 1))
  summary = summaries.summarise(Folder(tmp_path), 'abmil', 'origin', 2, CLASSES)
  assert strict((tmp_path / 'summary.json').read_text()) == summary
  for name in ('auroc', 'f1_macro', 'balanced_accuracy'):
    found = summary['metrics'][name]
    assert found['per_fold'][0] is not None and found['per_fold'][1] is None
    assert found['mean'] == found['per_fold'][0] and found['std'] is None
    assert found['pooled'] is not None and found['ci_low'] is not None
  assert None not in summary['metrics']['accuracy']['per_fold']
  header, *lines = rows_of(tmp_path / 'summary.csv')
  assert lines[1][header.index('test_auc')] == ''
  assert lines[1][header.index('val_auc')] != ''


def test_a_class_missing_everywhere_is_undefined_too(tmp_path):
  write(tmp_path, 0, test_labels=(0, 1))
  summary = summaries.summarise(Folder(tmp_path), 'abmil', 'origin', 1, CLASSES)
  assert strict((tmp_path / 'summary.json').read_text()) == summary
  for name in ('auroc', 'f1_macro', 'balanced_accuracy'):
    found = summary['metrics'][name]
    assert found.pop('per_fold') == [None]
    assert set(found.values()) == {None}
  breast = summary['per_class']['breast']
  assert breast.pop('slides') == 0
  assert breast.pop('auroc_delong') == {'low': None, 'high': None}
  assert set(breast.values()) == {None}
  assert summary['auroc_delong'] == {'low': None, 'high': None}
  assert summary['per_class']['lymphoma']['auroc'] is not None
  table = summaries.text(summary)
  assert 'n/a' in table and 'nan' not in table.lower()
  assert summary['metrics']['accuracy']['std'] is None  # One fold only.
  assert summary['metrics']['accuracy']['mean'] is not None


def test_the_closing_table_shows_every_number(tmp_path):
  for fold in range(3):
    write(tmp_path, fold)
  summary = summaries.summarise(Folder(tmp_path), 'kmil', 'origin', 3, CLASSES)
  table = summaries.text(summary)
  for name, m in summary['metrics'].items():
    line = next(x for x in table.splitlines() if x.startswith(name))
    for key in ('pooled', 'ci_low', 'ci_high', 'mean', 'std'):
      assert f'{m[key]:.3f}' in line
  for name, row in zip(CLASSES, summary['confusion'], strict=True):
    line = next(x for x in table.splitlines() if x.startswith(name))
    assert [int(x) for x in line.split()[-3:]] == row


def test_summaries_do_not_depend_on_the_locale(tmp_path):
  write(tmp_path, 0)
  want = summaries.summarise(Folder(tmp_path), 'kmil', 'origin', 1, CLASSES)
  rows = rows_of(tmp_path / 'predictions.csv')
  program = (
    'import sys\n'
    'from experiments.evaluation import summary\n'
    'from experiments.run.results import Folder\n'
    'summary.summarise(Folder(sys.argv[1]), "kmil", "origin", 1,'
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
