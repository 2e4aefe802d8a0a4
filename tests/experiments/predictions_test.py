"""Predictions are read as written, and joined slide by slide."""

import dataclasses

from drawn_results import CLASSES, part, rows_of, write, write_external
import numpy as np
import pytest

from experiments import predictions
from experiments.provenance import ResultsError


def test_predictions_are_read_as_written(tmp_path):
  want = write(tmp_path, 3)
  path = tmp_path / 'fold_3' / 'predictions.csv'
  got = predictions.read(path, CLASSES)
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


def test_a_part_without_slides_is_empty(tmp_path):
  path = tmp_path / 'predictions.csv'
  predictions.write(path, 0, {'test': part(0, 1)}, CLASSES)
  got = predictions.read(path, CLASSES)
  assert len(got['test']) == 1
  assert len(got['val']) == 0 and got['val'].prob.shape == (0, 3)
  assert predictions.pool(list(got.values())).prob.shape == (1, 3)


def test_files_of_other_classes_are_refused(tmp_path):
  write(tmp_path, 0)
  path = tmp_path / 'fold_0' / 'predictions.csv'
  with pytest.raises(ResultsError, match=r'predictions.csv: columns .*x, y'):
    predictions.read(path, ('x', 'y'))
  text = path.read_text(encoding='utf-8')
  path.write_text(text.replace(',val,lymphoma', ',val,lymfoma', 1), 'utf-8')
  with pytest.raises(ResultsError, match=r"csv, line 3: label 'lymfoma'"):
    predictions.read(path, CLASSES)
  lines = text.splitlines(keepends=True)
  path.write_text(''.join([*lines, lines[-1]]), 'utf-8')
  with pytest.raises(ResultsError, match=r"line 16: slide .* 'test' twice"):
    predictions.read(path, CLASSES)


def test_folds_are_read_in_their_order(tmp_path):
  for fold in (10, 2, 0):
    write(tmp_path, fold)
  write_external(tmp_path, 2, part(50, 4))
  assert list(predictions.read_folds(tmp_path, CLASSES)) == [0, 2, 10]
  external = predictions.read_external(tmp_path, CLASSES)
  assert list(external) == [2]
  np.testing.assert_array_equal(external[2].prob, part(50, 4).prob)


def test_the_mean_of_models_is_taken_slide_by_slide():
  one = part(0, 7)
  order = np.array([3, 0, 6, 1, 5, 2, 4])
  other = predictions.Predictions(
    one.case[order],
    one.slide[order],
    one.label[order],
    part(1, 7).prob[order],
  )
  got = predictions.mean({0: other, 4: one})
  want = (one.prob.astype(float) + part(1, 7).prob) / 2
  for i, slide in enumerate(one.slide):
    (row,) = np.flatnonzero(got.slide == slide)
    np.testing.assert_allclose(got.prob[row], want[i], rtol=1e-12)
    assert got.case[row] == one.case[i] and got.label[row] == one.label[i]


def test_models_of_other_slides_have_no_mean():
  one = part(0, 5)
  shorter = predictions.Predictions(
    *(getattr(one, f.name)[1:] for f in dataclasses.fields(one))
  )
  with pytest.raises(ResultsError, match=r'folds 0 and 3 differ') as e:
    predictions.mean({0: one, 3: shorter})
  assert f'slide {str(one.slide[0])!r}: in the first only' in str(e.value)


def test_differences_name_slides():
  one = part(0, 5)
  case, label, slide = one.case.copy(), one.label.copy(), one.slide.copy()
  assert predictions.differences(one, predictions.by_slide(one)) == []
  case[1], label[2], slide[4] = 'new', 0, 'z'
  other = predictions.Predictions(case, slide, label, one.prob)
  names = [repr(str(s)) for s in one.slide]
  lines = [
    f"slide {names[1]}: case 'case 0 0' or 'new'",
    f'slide {names[2]}: class 2 or 0',
    f'slide {names[4]}: in the first only',
    "slide 'z': in the second only",
  ]
  assert predictions.differences(one, other, limit=9) == lines
  assert predictions.differences(one, other) == lines[:3]
