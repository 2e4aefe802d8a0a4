"""Predictions are read as written, and joined slide by slide."""

import dataclasses

from drawn_results import (
  CLASSES,
  fold_folder,
  part,
  rows_of,
  write,
  write_external,
)
import numpy as np
import pytest

from experiments.evaluation import predictions
from experiments.run.results import Folder, ResultsError


def equal(one, other):
  for field in dataclasses.fields(one):
    np.testing.assert_array_equal(
      getattr(one, field.name), getattr(other, field.name)
    )


def test_predictions_are_read_as_written(tmp_path):
  want = write(tmp_path, 3)
  folder = fold_folder(tmp_path, 3)
  for part_name in ('val', 'test'):
    equal(predictions.read(folder, part_name, CLASSES), want[part_name])
  header, first, *_ = rows_of(folder.at('validation_predictions.csv'))
  assert header == (
    ['case_id', 'slide_id', 'fold', 'split', 'label', 'pred']
    + [f'prob_{c}' for c in CLASSES]
  )
  p = want['val']
  pred = CLASSES[p.prob[0].argmax()]
  assert first[:6] == [p.case[0], p.slide[0], '3', 'val', CLASSES[0], pred]
  assert {path.name for path in folder.path.iterdir()} == {
    'predictions.csv',
    'validation_predictions.csv',
  }


def test_files_of_the_first_edition_hold_both_parts(tmp_path):
  want = write(tmp_path, 0)
  folder = fold_folder(tmp_path, 0)
  test, val = map(folder.at, ('predictions.csv', 'validation_predictions.csv'))
  rows = rows_of(val) + rows_of(test)[1:]
  val.unlink()
  folder.write('predictions.csv', rows)
  (got,) = predictions.read_folds(Folder(tmp_path), CLASSES).values()
  for part_name in ('val', 'test'):
    equal(got[part_name], want[part_name])
  folder.write('predictions.csv', [row for row in rows if row[3] != 'val'])
  with pytest.raises(ResultsError, match="no rows of the split 'val'"):
    predictions.read_folds(Folder(tmp_path), CLASSES)


def test_a_part_without_slides_is_empty(tmp_path):
  folder = Folder(tmp_path)
  parts = {'val': part(1, 0), 'test': part(0, 1)}
  predictions.write(folder, 0, parts, CLASSES)
  got = [predictions.read(folder, name, CLASSES) for name in ('val', 'test')]
  assert len(got[0]) == 0 and got[0].prob.shape == (0, 3)
  assert predictions.pool(got).prob.shape == (1, 3)


def test_files_of_other_classes_are_refused(tmp_path):
  write(tmp_path, 0)
  folder = fold_folder(tmp_path, 0)
  path = folder.at('predictions.csv')
  read = lambda classes: predictions.read(folder, 'test', classes)
  with pytest.raises(ResultsError, match=r'predictions.csv: .* x, y'):
    read(('x', 'y'))
  text = path.read_text(encoding='utf-8')
  path.write_text(text.replace(',test,lymphoma', ',test,lymfoma', 1), 'utf-8')
  with pytest.raises(ResultsError, match=r"csv, line 3: label 'lymfoma'"):
    read(CLASSES)
  lines = text.splitlines(keepends=True)
  path.write_text(''.join([*lines, lines[-1]]), 'utf-8')
  with pytest.raises(ResultsError, match=r"line 10: slide .* 'test' twice"):
    read(CLASSES)


def test_folds_are_read_in_their_order(tmp_path):
  for fold in (10, 2, 0):
    write(tmp_path, fold)
  write_external(tmp_path, 2, part(50, 4))
  folder = Folder(tmp_path)
  assert list(predictions.read_folds(folder, CLASSES)) == [0, 2, 10]
  external = predictions.read_external(folder, CLASSES)
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
