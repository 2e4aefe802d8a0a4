"""Calibration, closed intervals and the external cohort of a summary."""

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
from experiments.run.results import Folder, ResultsError
from kmil_jax import calibration, intervals, metrics


def sure(seed, n, right=0.5, classes=3):
  """Slides whose predictions are too sure, right in a share of them."""
  rng = np.random.default_rng(seed)
  label = np.arange(n) % classes
  said = np.where(rng.random(n) < right, label, (label + 1) % classes)
  prob = np.full((n, classes), 0.02 / (classes - 1))
  prob[np.arange(n), said] = 0.98
  name = np.array([f's{seed}_{i}' for i in range(n)])
  return Predictions(case=name, slide=name, label=label, prob=prob)


def test_calibration_is_fitted_on_validation_alone(tmp_path):
  parts = {}
  for fold, right in ((0, 0.6), (1, 0.8)):
    parts[fold] = {'val': sure(fold, 40, right), 'test': sure(9 + fold, 30)}
  # Of fold 1's validation, fold 0 tests 10 patients.
  parts[0]['test'].case[:10] = parts[1]['val'].case[:10]
  pooled = predictions.pool([p['val'] for p in parts.values()])
  used = {0: np.r_[:40, 50:80], 1: np.r_[:80]}
  for fold in parts:
    predictions.write(fold_folder(tmp_path, fold), fold, parts[fold], CLASSES)
  summary = summaries.summarise(Folder(tmp_path), 'kmil', 'origin', 2, CLASSES)
  got = summary['calibration']

  after, label, prob = [], [], []
  for fold, p in parts.items():
    seen = used[fold]
    t = calibration.temperature(pooled.label[seen], pooled.prob[seen])
    assert t > 1.5
    assert got['temperature'][fold] == pytest.approx(t, abs=1e-6)
    saved = tmp_path / f'fold_{fold}' / 'temperature.json'
    assert strict(saved.read_text()) == {
      'temperature': t,
      'reason': '',
      'at_bound': False,
      'val_patients': len(seen),
      'val_slides': len(seen),
      'val_folds': [0, 1],
    }
    after.append(calibration.scale(p['test'].prob, t))
    label.append(p['test'].label)
    prob.append(p['test'].prob)
  label, prob, after = map(np.concatenate, (label, prob, after))
  for name in ('nll', 'brier', 'ece'):
    error = getattr(calibration, name)
    mended = got['after_temperature'][name]
    assert got[name] == pytest.approx(error(label, prob), abs=1e-6)
    assert mended == pytest.approx(error(label, after), abs=1e-6)
    assert mended < got[name]
  assert got['at_bound'] == []
  for bins, p in (('bins', prob), ('bins_after_temperature', after)):
    want = calibration.reliability(label, p)
    assert [b['slides'] for b in got[bins]] == want.count.tolist()
    assert len(got[bins]) == 15 and want.count.sum() == 60
    empty = [b['confidence'] is None for b in got[bins]]
    assert empty == (want.count == 0).tolist()


@pytest.mark.parametrize(
  'slides,reason,at_bound',
  [
    (58, 'fewer than 30 validation patients', []),
    (60, 'how sure the model may be', [0]),
  ],
)
def test_what_fixes_no_temperature_leaves_1_and_says_why(
  tmp_path, slides, reason, at_bound
):
  """All slides are right, two to a patient."""
  val = part(0, slides)
  val = dataclasses.replace(val, prob=np.eye(3)[val.label] * 0.7 + 0.1)
  predictions.write(
    fold_folder(tmp_path, 0), 0, {'val': val, 'test': part(1, 9)}, CLASSES
  )
  summary = summaries.summarise(Folder(tmp_path), 'kmil', 'origin', 3, CLASSES)
  found = summary['calibration']
  assert (found['at_bound'], found['temperature']) == (at_bound, [1])
  assert reason in found['temperature_reason'][0]
  assert found['nll'] == found['after_temperature']['nll']
  saved = strict((tmp_path / 'fold_0' / 'temperature.json').read_text())
  assert saved['temperature'] == 1 and reason in saved['reason']
  assert saved['val_patients'] == slides // 2
  table = summaries.text(summary)
  assert '1.00*' in table and f'* not fitted: {saved["reason"]}' in table


def test_small_validation_parts_make_nothing_worse():
  """Of ten folds, a dozen slides each, most of them right, and not sure enough.

  A temperature of each fold's own runs to the bound where all are right.
  """
  rng = np.random.default_rng(3)

  def drawn(name, n=12):
    logit = 4 * rng.normal(size=n)
    chance = 1 / (1 + np.exp(-np.stack([-logit, logit], 1)))
    label = (rng.random(n) < chance[:, 1]).astype(int)
    prob = calibration.scale(chance, 1.5)
    case = np.array([f'{name} {i}' for i in range(n)])
    return Predictions(case=case, slide=case, label=label, prob=prob)

  part_of = [drawn(f'part {i}') for i in range(10)]
  folds = {
    i: {'val': part_of[(i + 1) % 10], 'test': part_of[i]} for i in range(10)
  }
  test = predictions.pool(part_of)
  raw = calibration.nll(test.label, test.prob)
  own = {
    i: summaries.Temperature(
      calibration.temperature(p['val'].label, p['val'].prob),
      *('', False, 12, 12, (i,)),
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


def test_a_fold_of_one_slide_and_one_without_validation(tmp_path):
  """What there is to say is said; the rest is None."""
  predictions.write(
    fold_folder(tmp_path, 0),
    0,
    {'val': part(0, 1), 'test': part(1, 1)},
    CLASSES,
  )
  predictions.write(
    fold_folder(tmp_path, 1),
    1,
    {'val': part(3, 0), 'test': part(2, 6)},
    CLASSES,
  )
  summary = summaries.summarise(Folder(tmp_path), 'kmil', 'origin', 2, CLASSES)
  assert strict((tmp_path / 'summary.json').read_text()) == summary
  assert summary['metrics']['accuracy']['per_fold'][0] in (0, 1)
  assert summary['metrics']['auroc']['per_fold'][0] is None
  assert summary['metrics']['auroc']['pooled'] is not None
  found = summary['calibration']
  assert found['temperature'] == [1, 1]
  assert found['nll'] == found['after_temperature']['nll'] is not None
  saved = strict((tmp_path / 'fold_1' / 'temperature.json').read_text())
  assert saved['temperature'] == 1 and saved['val_slides'] == 1
  table = summaries.text(summary)
  assert 'n/a' in table and 'nan' not in table.lower()
  header, *lines = rows_of(tmp_path / 'summary.csv')
  column = header.index('val_acc')
  assert lines[0][column] != '' and lines[1][column] == ''


def test_the_closed_interval_is_about_that_of_resamples():
  rng = np.random.default_rng(0)
  for classes in (2, 3):
    n = 300
    case = rng.integers(0, 120, n)
    label = rng.integers(0, classes, 120)[case]
    prob = rng.dirichlet(np.ones(classes), n) + 0.3 * np.eye(classes)[label]
    prob /= prob.sum(1, keepdims=True)
    p = Predictions(case.astype(str), np.arange(n).astype(str), label, prob)
    got = summaries.of_folds(
      p, [p], [f'c{i}' for i in range(classes)], 'pooled'
    )
    auroc, closed = got['metrics']['auroc'], got['auroc_delong']
    middle = (closed['low'] + closed['high']) / 2
    assert middle == pytest.approx(auroc['pooled'], abs=1e-5)
    assert closed['low'] == pytest.approx(auroc['ci_low'], abs=0.01)
    assert closed['high'] == pytest.approx(auroc['ci_high'], abs=0.01)
    for row in got['per_class'].values():
      assert row['auroc_delong']['low'] == pytest.approx(
        row['auroc_ci_low'], abs=0.01
      )


def test_the_external_cohort_has_its_block(tmp_path):
  external = {}
  for fold in (0, 1, 3):
    write(tmp_path, fold)
    p = part(50, 20)
    prob = part(60 + fold, 20).prob
    external[fold] = dataclasses.replace(p, prob=prob)
    write_external(tmp_path, fold, external[fold])
  summary = summaries.summarise(Folder(tmp_path), 'kmil', 'origin', 4, CLASSES)
  assert strict((tmp_path / 'summary.json').read_text()) == summary
  got = summary['external']
  assert got == summaries.of_external(external, CLASSES)
  assert (got['slides'], got['cases']) == (20, 10)
  assert got['folds'] == [0, 1, 3]

  mean = predictions.mean(external)
  bounds = intervals.of_metrics(mean.label, mean.prob, mean.case)
  each = [metrics.evaluate(p.label, p.prob) for p in external.values()]
  ensemble = metrics.evaluate(mean.label, mean.prob)
  for name, m in got['metrics'].items():
    values = [scores_of_fold[name] for scores_of_fold in each]
    assert m['per_fold'] == pytest.approx(values, abs=1e-6)
    assert m['mean'] == pytest.approx(np.mean(values), abs=1e-6)
    assert m['std'] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert m['ensemble'] == pytest.approx(ensemble[name], abs=1e-6)
    low, high = bounds[name]
    assert (m['ci_low'], m['ci_high']) == pytest.approx((low, high), abs=1e-6)

  header, *lines = rows_of(tmp_path / 'external_predictions.csv')
  assert header == predictions.rows({}, 'external', CLASSES)[0]
  assert [line[2] for line in lines] == [
    name for name in ('0', '1', '3', 'mean') for _ in range(20)
  ]
  assert {line[3] for line in lines} == {'external'}
  for line in lines[-20:]:
    (i,) = np.flatnonzero(mean.slide == line[1])
    np.testing.assert_array_equal(np.float64(line[6:]), mean.prob[i])
  table = summaries.text(summary)
  assert 'external cohort, 20 slides of 10 cases' in table
  assert f'{got["metrics"]["auroc"]["ensemble"]:.3f}' in table
  assert max(map(len, table.splitlines())) <= 80


def test_folds_of_other_external_slides_are_refused(tmp_path):
  for fold, n in ((0, 6), (1, 5)):
    write(tmp_path, fold)
    write_external(tmp_path, fold, part(50, n))
  with pytest.raises(ResultsError, match='folds 0 and 1 differ'):
    summaries.summarise(Folder(tmp_path), 'kmil', 'origin', 2, CLASSES)


def test_an_external_cohort_without_a_class(tmp_path):
  write(tmp_path, 0)
  write_external(tmp_path, 0, part(50, 6, labels=(0, 1)))
  summary = summaries.summarise(Folder(tmp_path), 'kmil', 'origin', 1, CLASSES)
  got = summary['external']
  undefined = {k for k, m in got['metrics'].items() if m['ensemble'] is None}
  assert undefined == {'auroc', 'f1_macro', 'balanced_accuracy'}
  table = summaries.text({**summary, 'external': got})
  assert 'n/a' in table and 'nan' not in table.lower()
  assert got['per_class']['lymphoma']['auroc'] is not None
