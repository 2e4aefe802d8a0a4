"""The summary of a results folder: metrics, calibration, what is undefined."""

import dataclasses

from drawn_results import (
  CLASSES,
  fold_folder,
  part,
  rows_of,
  strict,
  write,
  write_external,
)
import numpy as np
import pytest

from experiments.evaluation import predictions, summary as summaries
from experiments.evaluation.predictions import Predictions
from experiments.run.results import Folder
from kmil_jax import calibration, delong, intervals, metrics


def summarise(path):
  """Returns the summary of the folds in a folder, as its file holds it."""
  summary = summaries.summarise(Folder(path), 'kmil', 'a', 4, CLASSES)
  assert strict((path / 'summary.json').read_text()) == summary
  return summary


def about(value):
  return pytest.approx(value, abs=1e-6)


def assert_metrics(found, whole, each, name):
  """Holds metrics of a summary against those of the predictions."""
  values = metrics.evaluate(whole.label, whole.prob)
  bounds = intervals.of_metrics(whole.label, whole.prob, whole.case)
  by_fold = [metrics.evaluate(p.label, p.prob) for p in each]
  assert tuple(found) == metrics.NAMES
  for metric, got in found.items():
    of_folds = [fold[metric] for fold in by_fold]
    low, high = bounds[metric]
    assert got.pop('per_fold') == about(of_folds)
    assert got == about(
      {
        'mean': np.mean(of_folds),
        'std': np.std(of_folds, ddof=1),
        name: values[metric],
        'ci_low': low,
        'ci_high': high,
      }
    )


def test_a_summary_keeps_its_contract(tmp_path):
  parts = {fold: write(tmp_path, fold) for fold in (0, 2)}
  summary = summarise(tmp_path)
  assert summary['model'] == 'kmil' and summary['task'] == 'a'
  assert summary['classes'] == list(CLASSES) and summary['k'] == 4
  assert summary['folds'] == [0, 2]
  tests = [p['test'] for p in parts.values()]
  test = predictions.pool(tests)
  assert len(test) == 16
  assert_metrics(summary['metrics'], test, tests, 'pooled')
  bounds = intervals.of_metrics(test.label, test.prob, test.case)
  table = np.zeros((3, 3), int)
  np.add.at(table, (test.label, test.prob.argmax(1)), 1)
  assert summary['confusion'] == table.tolist()
  assert list(summary['per_class']) == list(CLASSES)
  value, covariance = delong.covariance(
    test.label == np.arange(3)[:, None], test.prob.T, test.case
  )
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
    assert got == about(want)
    ends = delong.interval(value[c], covariance[c, c])
    assert tuple(closed.values()) == about(ends)
  # The mean over classes; of two classes, the second.
  ends = delong.interval(value.mean(), covariance.mean())
  assert tuple(summary['auroc_delong'].values()) == about(ends)
  assert summaries.summary_weight(2).tolist() == [0, 1]

  long = {
    'auc': 'auroc',
    'acc': 'accuracy',
    'balanced_acc': 'balanced_accuracy',
  }
  header, *lines = rows_of(tmp_path / 'summary.csv')
  assert header[:5] == ['folds', 'test_auc', 'val_auc', 'test_acc', 'val_acc']
  assert len(header) == 11 and [line[0] for line in lines] == ['0', '2']
  for line, of_fold in zip(lines, parts.values(), strict=True):
    for column, text in zip(header[1:], line[1:], strict=True):
      name, _, short = column.partition('_')
      p = of_fold[name]
      value = metrics.evaluate(p.label, p.prob)[long.get(short, short)]
      assert float(text) == about(value), column


def test_a_class_missing_in_a_fold_is_undefined_not_nan(tmp_path):
  write(tmp_path, 0)
  write(tmp_path, 1, test_labels=(0, 1))
  summary = summarise(tmp_path)
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
  summary = summarise(tmp_path)
  for name in ('auroc', 'f1_macro', 'balanced_accuracy'):
    found = summary['metrics'][name]
    assert found.pop('per_fold') == [None]
    assert set(found.values()) == {None}
  unknown = {'low': None, 'high': None}
  breast = summary['per_class']['breast']
  assert (breast.pop('slides'), breast.pop('auroc_delong')) == (0, unknown)
  assert set(breast.values()) == {None}
  assert summary['auroc_delong'] == unknown
  assert summary['per_class']['lymphoma']['auroc'] is not None
  table = summaries.text(summary)
  assert 'n/a' in table and 'nan' not in table.lower()
  assert summary['metrics']['accuracy']['std'] is None  # One fold only.
  assert summary['metrics']['accuracy']['mean'] is not None


def test_a_fold_of_one_slide_and_one_without_validation(tmp_path):
  """What there is to say is said; the rest is None."""
  for fold, val, test in ((0, 1, 1), (1, 0, 6)):
    parts = {'val': part(fold, val), 'test': part(fold + 2, test)}
    predictions.write(fold_folder(tmp_path, fold), fold, parts, CLASSES)
  summary = summarise(tmp_path)
  assert summary['metrics']['accuracy']['per_fold'][0] in (0, 1)
  assert summary['metrics']['auroc']['per_fold'][0] is None
  assert summary['metrics']['auroc']['pooled'] is not None
  found = summary['calibration']
  assert found['temperature'] == [1, 1]
  assert found['nll'] == found['after_temperature']['nll'] is not None
  saved = strict((tmp_path / 'fold_1/temperature.json').read_text())
  assert saved['temperature'] == 1 and saved['val_slides'] == 1
  header, *lines = rows_of(tmp_path / 'summary.csv')
  assert [line[header.index('val_acc')] == '' for line in lines] == [
    False,
    True,
  ]


def test_the_external_cohort_has_its_block(tmp_path):
  external = {}
  for fold in (0, 1, 3):
    write(tmp_path, fold)
    prob = part(60 + fold, 20).prob
    external[fold] = dataclasses.replace(part(50, 20), prob=prob)
    write_external(tmp_path, fold, external[fold])
  summary = summarise(tmp_path)
  got, mean = summary['external'], predictions.mean(external)
  table = summaries.text(summary)
  assert 'external cohort, 20 slides of 10 cases' in table
  assert f'{got["metrics"]["auroc"]["ensemble"]:.3f}' in table
  assert max(map(len, table.splitlines())) <= 80
  assert (got['slides'], got['cases']) == (20, 10)
  assert got['folds'] == [0, 1, 3]
  assert_metrics(got['metrics'], mean, external.values(), 'ensemble')
  assert got['by_case'] == summaries.of_cases([mean])
  lines = rows_of(tmp_path / 'external_predictions_cases.csv')
  want = predictions.case_rows({'mean': mean}, CLASSES)
  assert lines == [[str(cell) for cell in line] for line in want]
  header, *lines = rows_of(tmp_path / 'external_predictions.csv')
  assert header == predictions.rows({}, 'external', CLASSES)[0]
  names = [name for name in ('0', '1', '3', 'mean') for _ in range(20)]
  assert [line[2:4] for line in lines] == [[n, 'external'] for n in names]
  for line in lines[-20:]:
    (i,) = np.flatnonzero(mean.slide == line[1])
    np.testing.assert_array_equal(np.float64(line[6:]), mean.prob[i])


def test_a_slide_of_several_tests_is_one_slide_of_its_patient():
  """Repeated splits test a patient in several folds."""
  p = part(0, 6)
  alone = dataclasses.replace(p, case=p.slide)
  cases = summaries.of_cases([alone, alone])
  assert (cases['count'], cases['most_slides']) == (6, 1)
  assert summaries.cases_tables(cases) == []
  assert summaries.of_cases([p, p])['most_slides'] == 0  # All have two classes.


def too_sure(seed, n, right=0.5, classes=3):
  """Slides whose predictions are too sure, right in a share of them."""
  rng = np.random.default_rng(seed)
  label = np.arange(n) % classes
  pred = np.where(rng.random(n) < right, label, (label + 1) % classes)
  prob = np.full((n, classes), 0.02 / (classes - 1))
  prob[np.arange(n), pred] = 0.98
  name = np.array([f's{seed}_{i}' for i in range(n)])
  return Predictions(case=name, slide=name, label=label, prob=prob)


def test_calibration_is_fitted_on_validation_alone(tmp_path):
  parts = {
    fold: {'val': too_sure(fold, 40, right), 'test': too_sure(9 + fold, 30)}
    for fold, right in ((0, 0.6), (1, 0.8))
  }
  # Of fold 1's validation, fold 0 tests 10 patients.
  parts[0]['test'].case[:10] = parts[1]['val'].case[:10]
  used = {0: np.r_[:40, 50:80], 1: np.r_[:80]}
  for fold in parts:
    predictions.write(fold_folder(tmp_path, fold), fold, parts[fold], CLASSES)
  got = summarise(tmp_path)['calibration']
  pooled = predictions.pool([p['val'] for p in parts.values()])
  test = predictions.pool([p['test'] for p in parts.values()])
  after = []
  for fold, p in parts.items():
    seen = used[fold]
    t = calibration.temperature(pooled.label[seen], pooled.prob[seen])
    assert t > 1.5 and got['temperature'][fold] == about(t)
    saved = tmp_path / f'fold_{fold}/temperature.json'
    assert strict(saved.read_text()) == {
      'temperature': t,
      'reason': '',
      'val_patients': len(seen),
      'val_slides': len(seen),
      'val_folds': [0, 1],
    }
    after.append(calibration.scale(p['test'].prob, t))
  after = np.concatenate(after)
  for name in ('nll', 'brier', 'ece'):
    error = getattr(calibration, name)
    scaled = got['after_temperature'][name]
    assert got[name] == about(error(test.label, test.prob))
    assert scaled == about(error(test.label, after)) and scaled < got[name]


@pytest.mark.parametrize(
  'slides,reason',
  [
    (58, 'fewer than 30 validation patients'),
    (60, 'how sure the model may be'),
  ],
)
def test_what_fixes_no_temperature_leaves_1_and_says_why(
  tmp_path, slides, reason
):
  """All slides are right, two to a patient."""
  val = part(0, slides)
  val = dataclasses.replace(val, prob=np.eye(3)[val.label] * 0.7 + 0.1)
  parts = {'val': val, 'test': part(1, 9)}
  predictions.write(fold_folder(tmp_path, 0), 0, parts, CLASSES)
  summary = summarise(tmp_path)
  found = summary['calibration']
  assert found['temperature'] == [1]
  assert reason in found['temperature_reason'][0]
  assert found['nll'] == found['after_temperature']['nll']
  saved = strict((tmp_path / 'fold_0/temperature.json').read_text())
  assert saved['temperature'] == 1 and reason in saved['reason']
  assert saved['val_patients'] == slides // 2
  table = summaries.text(summary)
  assert '1.00*' in table and f'* 1, not fitted: {saved["reason"]}' in table


def test_small_validation_parts_make_nothing_worse():
  """Of ten folds, a dozen slides each, most of them right, and not sure enough.

  A temperature of each fold's own runs to the bound where all are right.
  """
  rng = np.random.default_rng(3)

  def drawn(name, n=12):
    logit = 4 * rng.normal(size=n)
    chance = 1 / (1 + np.exp(-np.stack([-logit, logit], 1)))
    label = (rng.random(n) < chance[:, 1]).astype(int)
    case = np.array([f'{name} {i}' for i in range(n)])
    return Predictions(case, case, label, calibration.scale(chance, 1.5))

  parts = [drawn(f'part {i}') for i in range(10)]
  folds = predictions.Folds(
    {i: {'val': parts[(i + 1) % 10], 'test': parts[i]} for i in range(10)}
  )
  test = predictions.pool(parts)
  raw = calibration.nll(test.label, test.prob)
  own = {
    i: summaries.Temperature(
      calibration.temperature(p['val'].label, p['val'].prob),
      *('', 12, 12, (i,)),
    )
    for i, p in folds.items()
  }
  assert sum(calibration.at_bound(t.temperature) for t in own.values()) >= 3
  assert calibration.nll(test.label, summaries.scaled(folds, own)) > 2 * raw
  found = summaries.temperatures(folds)
  assert {(t.reason, t.val_patients) for t in found.values()} == {('', 108)}
  for i, t in found.items():  # Without the fold that validates on its patients.
    assert t.val_folds == tuple(sorted(set(range(10)) - {(i - 1) % 10}))
  assert calibration.nll(test.label, summaries.scaled(folds, found)) < raw
