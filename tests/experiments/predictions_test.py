"""Predictions are read as written, and joined slide by slide."""

import dataclasses
import shutil

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

from experiments.evaluation import predictions, seeds
from experiments.run.results import Folder, ResultsError


def equal(one, other):
  for field in dataclasses.fields(one):
    np.testing.assert_array_equal(
      getattr(one, field.name), getattr(other, field.name)
    )


def test_predictions_are_read_as_written_fold_by_fold(tmp_path):
  want = {fold: write(tmp_path, fold) for fold in (10, 2, 0)}
  shutil.copytree(tmp_path / 'fold_2', tmp_path / 'fold_2 (copy)')
  write_external(tmp_path, 2, part(50, 4))
  folder = Folder(tmp_path)
  got = predictions.read_folds(folder, CLASSES)
  assert list(got) == [0, 2, 10]
  for fold, parts in got.items():
    for name in ('val', 'test'):
      equal(parts[name], want[fold][name])
  external = predictions.read_external(folder, CLASSES)
  assert list(external) == [2]
  equal(external[2], part(50, 4))
  p, path = want[2]['val'], tmp_path / 'fold_2/validation_predictions.csv'
  header, first, *_ = rows_of(path)
  columns = ['case_id', 'slide_id', 'fold', 'split', 'label', 'pred']
  assert header == columns + [f'prob_{c}' for c in CLASSES]
  pred = CLASSES[p.prob[0].argmax()]
  assert first[:6] == [p.case[0], p.slide[0], '2', 'val', CLASSES[0], pred]


def test_files_of_the_first_edition_hold_both_parts(tmp_path):
  want = write(tmp_path, 0)
  folder = fold_folder(tmp_path, 0)
  test, val = map(folder.at, ('predictions.csv', 'validation_predictions.csv'))
  rows = rows_of(val) + rows_of(test)[1:]
  val.unlink()
  folder.write('predictions.csv', rows)
  (got,) = predictions.read_folds(Folder(tmp_path), CLASSES).values()
  for name in ('val', 'test'):
    equal(got[name], want[name])
  folder.write('predictions.csv', [row for row in rows if row[3] != 'val'])
  with pytest.raises(ResultsError, match="no rows of the split 'val'"):
    predictions.read_folds(Folder(tmp_path), CLASSES)


@pytest.mark.parametrize(
  'old,new,message',
  [
    ('prob_breast', 'prob_x', 'predictions.csv: .* breast'),
    (',test,lymphoma', ',test,lymfoma', "csv, line 3: label 'lymfoma'"),
    ('i1é', 'i0é', "line 3: slide .* 'test' twice"),
    *(
      ('0.9', value, 'line 2: a probability is no number')
      for value in ('', 'nan', 'inf', '-0.1', '1.5', 'x', '0x1')
    ),
  ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, old, new, message):
  p = part(0, 3)
  p.slide[:] = ['i0é', 'i1é', 'i2é']
  p.prob[:] = [0.9, 0.05, 0.05]
  folder = Folder(tmp_path)
  predictions.write(folder, 0, {'test': p}, CLASSES)
  path = folder.at('predictions.csv')
  text = path.read_text('utf-8').replace('0.8999999761581421', '0.9')
  assert old in text
  path.write_text(text.replace(old, new, 1), 'utf-8')
  with pytest.raises(ResultsError, match=message):
    predictions.read(folder, 'test', CLASSES)


def test_the_mean_of_models_is_taken_slide_by_slide():
  one, prob = part(0, 7), part(1, 7).prob
  order = np.array([3, 0, 6, 1, 5, 2, 4])
  other = predictions.Predictions(
    one.case[order], one.slide[order], one.label[order], prob[order]
  )
  got = predictions.mean({0: other, 4: one})
  for i, slide in enumerate(one.slide):
    (row,) = np.flatnonzero(got.slide == slide)
    want = (one.prob[i].astype(float) + prob[i]) / 2
    np.testing.assert_allclose(got.prob[row], want, rtol=1e-12)
    assert got.case[row] == one.case[i] and got.label[row] == one.label[i]
  with pytest.raises(ResultsError, match=r'folds 0 and 3 differ') as e:
    predictions.mean({0: one, 3: part(0, 6)})
  assert f'slide {str(one.slide[6])!r}: in the first only' in str(e.value)


def test_slides_of_a_patient_are_joined():
  """Whatever the order of classes; a patient of two classes has no label."""
  p = predictions.Predictions(
    case=np.array(['b', 'a', 'b', 'c', 'c']),
    slide=np.array(['b1', 'a1', 'b2', 'c1', 'c2']),
    label=np.array([2, 1, 2, 0, 1]),
    prob=np.array(
      [[0.6, 0.3, 0.1], [0.2, 0.8, 0], [0.1, 0, 0.9], [1, 0, 0], [0, 1, 0]]
    ),
  )
  joined = {how: predictions.of_cases(p, how) for how in predictions.JOINED}
  for one in joined.values():
    assert one.case.tolist() == ['a', 'b', 'c']
    assert one.label.tolist() == [1, 2, -1]
    np.testing.assert_allclose(one.prob[0], p.prob[1])
    assert one.slide.tolist()[:2] == ['a1', 'b2']
  np.testing.assert_allclose(joined['mean'].prob[1], [0.35, 0.15, 0.5])
  highest = np.array([0.6, 0.3, 0.9])
  np.testing.assert_allclose(joined['max'].prob[1], highest / highest.sum())
  turned = dataclasses.replace(p, prob=p.prob[:, ::-1], label=2 - p.label)
  for how, one in joined.items():
    again = predictions.of_cases(turned, how)
    np.testing.assert_allclose(again.prob, one.prob[:, ::-1])
  header, *rows = predictions.case_rows({4: p}, CLASSES[:3])
  row = dict(zip(header, rows[1], strict=True))
  want = {'case_id': 'b', 'fold': 4, 'slides': 2, 'top_slide': 'b2'}
  assert row | want == row
  assert row['label'] == CLASSES[2]
  assert dict(zip(header, rows[2], strict=True))['label'] == ''


def test_a_fold_whose_test_rows_are_gone_is_not_one_without_a_test(tmp_path):
  want = write(tmp_path, 0)['val']
  folder, test = (
    Folder(tmp_path),
    fold_folder(tmp_path, 0).at('predictions.csv'),
  )
  header = rows_of(test)[0]
  Folder(test.parent).write(test.name, [header])
  names = ['', 'train', 'val', 'test']
  folder.write('splits/splits_0.csv', [names, [0, 'x', 'y', 'z']])
  with pytest.raises(ResultsError, match="no rows of the split 'test'"):
    predictions.read_folds(folder, CLASSES)
  folder.write('splits/splits_0.csv', [names, [0, 'x', 'y', '']])
  (parts,) = predictions.read_folds(folder, CLASSES).values()
  assert not len(parts['test'])
  for one in (parts['val'], predictions.evaluated(parts)):
    equal(one, want)


def test_seeds_of_one_training_call_their_slides_validation(tmp_path):
  parts = {}
  for seed in (1, 2):
    parts[seed] = Folder(tmp_path / f'seed_{seed}')
    write(parts[seed].path, 0)
    test = fold_folder(parts[seed].path, 0).at('predictions.csv')
    Folder(test.parent).write(test.name, [rows_of(test)[0]])
    names = ['', 'train', 'val', 'test']
    parts[seed].write('splits/splits_0.csv', [names, [0, 'x', 'y', '']])
  assert seeds.write(Folder(tmp_path), parts, CLASSES)
  rows = Folder(tmp_path).read('predictions_seeds.csv')
  assert {(row['seed'], row['split']) for row in rows} == {
    ('1', 'val'),
    ('2', 'val'),
  }
