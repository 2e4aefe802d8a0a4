"""Splits: whole cases, every class, each slide tested once."""

import csv
import dataclasses
import os
import re
import subprocess
import sys

import hypothesis
from hypothesis import given, strategies as st
import numpy as np
import pytest

from data import labels as label_files, splits
from data.labels import Manifest
from data.splits import PARTS, SplitError
from kmil_jax import splits as dealing

one_file = hypothesis.settings(
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)


def write_table(path, table):
  with path.open('w', newline='', encoding='utf-8') as f:
    rows = zip(table.case, table.slide, table.label, strict=True)
    csv.writer(f).writerows([label_files.COLUMNS, *rows])


def make(table, k, seed):
  return [
    splits.Split(*parts)
    for parts in dealing.make(table.case, table.label, k, seed)
  ]


def read(*args):
  made, faults = splits.read(*args)
  if faults:
    raise SplitError('\n'.join(faults))
  return made


@st.composite
def cohorts(draw, min_k=3):
  """A manifest whose classes have k cases at least, of 1 to 3 slides, and k."""
  k = draw(st.integers(min_k, 6))
  sizes = draw(st.lists(st.integers(k, 2 * k + 1), min_size=1, max_size=4))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  label = np.repeat([f'class{c}' for c in range(len(sizes))], sizes)
  case = np.array([f'{i:03}' for i in rng.permutation(len(label))])
  slides = rng.integers(1, 4, len(label))
  case, label = np.repeat(case, slides), np.repeat(label, slides)
  order = rng.permutation(len(case))
  slide = np.array([f's{i:04}' for i in range(len(case))])
  return Manifest(case[order], slide, label[order]), k


def same(a, b):
  return all(
    np.array_equal(getattr(x, part), getattr(y, part))
    for x, y in zip(a, b, strict=True)
    for part in PARTS
  )


def test_a_case_of_several_classes_counts_for_the_last():
  """Of three cases of class b, one has a slide of class a, too."""
  case = np.array(['0', '1', '2', '3', '4', '5', '5'])
  slide = np.array([f's{i}' for i in range(7)])
  label = np.array(['a', 'a', 'a', 'b', 'b', 'a', 'b'])
  for split in make(Manifest(case, slide, label), 3, seed=0):
    tested = case[split.test]
    assert len(set(tested) & {'3', '4', '5'}) == 1
    assert len(set(tested) & {'0', '1', '2'}) == 1


@given(cohort=cohorts(), seed=st.integers(0, 10**6))
def test_cases_are_whole_and_each_slide_is_tested_once(cohort, seed):
  table, k = cohort
  made = make(table, k, seed)
  assert len(made) == k
  for split in made:
    parts = [set(table.case[getattr(split, part)]) for part in PARTS]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert np.array_equal(
      sum(getattr(split, p).astype(int) for p in PARTS),
      np.ones(len(table.slide)),
    )
  for i, split in enumerate(made):
    np.testing.assert_array_equal(split.val, made[(i + 1) % k].test)
  for part in ('test', 'val'):
    held = sum(getattr(split, part).astype(int) for split in made)
    np.testing.assert_array_equal(held, 1)


@given(cohort=cohorts(), seed=st.integers(0, 10**6))
def test_every_class_is_dealt_evenly(cohort, seed):
  table, k = cohort
  made = make(table, k, seed)
  totals = []
  for split in made:
    totals.append(len(set(table.case[split.test])))
  assert max(totals) - min(totals) <= 1
  for label in set(table.label):
    counts = [
      len(set(table.case[split.test & (table.label == label)]))
      for split in made
    ]
    assert max(counts) - min(counts) <= 1 and min(counts) >= 1


@one_file
@given(cohort=cohorts(), seed=st.integers(0, 10**6), data=st.data())
def test_splits_are_a_function_of_table_and_seed(tmp_path, cohort, seed, data):
  table, k = cohort
  rows = data.draw(st.permutations(range(len(table.slide))))
  path = tmp_path / 'labels.csv'
  write_table(path, table.subset(np.array(rows)))
  again = make(label_files.read(path), k, seed)
  made = make(table, k, seed)
  assert same(again, made)
  assert splits.fingerprint(table, again) == splits.fingerprint(table, made)


def twenty_cases(classes=2):
  case = np.array([f'c{i:02}' for i in range(20)])
  slide = np.array([f's{i:02}' for i in range(20)])
  return Manifest(case, slide, np.array([str(i % classes) for i in range(20)]))


def test_another_seed_makes_other_splits():
  table = twenty_cases()
  made = [make(table, 5, seed) for seed in range(3)]
  prints = {splits.fingerprint(table, m) for m in made}
  assert len(prints) == 3 and not same(made[0], made[1])


def test_a_case_of_several_classes_stays_whole():
  table = twenty_cases()
  case = np.repeat(table.case[::2], 2)  # Both labels in every case.
  table = Manifest(case, table.slide, table.label)
  made = make(table, 5, 0)
  for split in made:
    assert len(set(case[split.test])) == 2
    assert set(table.label[split.test]) == {'0', '1'}


def test_too_few_cases_say_what_to_do():
  table = twenty_cases(classes=4)  # 5 cases each.
  with pytest.raises(dealing.SplitError) as e:
    make(table, 6, 0)
  assert str(e.value) == (
    'class 0 has 5 cases; class 1 has 5 cases; class 2 has 5 cases;'
    ' class 3 has 5 cases: fewer than 6 folds. Choose fewer folds, or merge'
    ' classes.'
  )
  with pytest.raises(dealing.SplitError, match=r'2 folds: .* need at least 3'):
    make(table, 2, 0)


@one_file
@given(cohort=cohorts(), seed=st.integers(0, 10**6))
def test_clams_files_round_trip(tmp_path, cohort, seed):
  table, k = cohort
  made = make(table, k, seed)
  splits.write(tmp_path, table, made)
  assert same(read(tmp_path, table, k), made)


def folder(tmp_path, content, k=3):
  """Splits of 20 cases in k files, of which the second is replaced."""
  table = twenty_cases()
  splits.write(tmp_path / 'splits', table, make(table, k, 0))
  path = tmp_path / 'splits' / 'splits_1.csv'
  if content is None:
    path.unlink()
  else:
    path.write_text(content)
  return tmp_path / 'splits', table, path


def test_slides_that_no_file_names_are_in_no_part(tmp_path):
  content = ',train,val,test\n0,s00,s02,s04\n1,s01,,s05\n'
  where, table, _ = folder(tmp_path, content)
  # Its test part must not overlap those of the other folds.
  for i in (0, 2):
    (where / f'splits_{i}.csv').write_text(
      f'val,test,train,note\n s02 ,s{10 + i},s00,x\n,,s01,\n'
    )
  split = read(where, table, 3)[1]
  assert table.slide[split.train].tolist() == ['s00', 's01']
  assert table.slide[split.val].tolist() == ['s02']
  assert table.slide[split.test].tolist() == ['s04', 's05']


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    (None, 'no such file'),
    ('', 'a header train,val,test is needed'),
    ('train,val\ns00,s01\n', 'a header train,val,test is needed'),
    ('train,val,test\ns00,s02,nobody\n', 'slide nobody (test)'),
    ('train,val,test\ns00,s02,s02\n', 'slide s02 is named twice'),
    ('train,val,test\ns00,s02,s04\ns00,,\n', 'slide s00 is named twice'),
    ('train,val,test\ns00,,s04\ns01,,\n', 'its val part is empty'),
    ('train,val,test\ns00,s02,s04\n', 'no training slide of class 1'),
  ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, content, said):
  where, table, path = folder(tmp_path, content)
  with pytest.raises(SplitError) as e:
    read(where, table, 3)
  assert str(path) in str(e.value) and said in str(e.value)


def test_a_case_that_straddles_parts_is_refused_with_the_file(tmp_path):
  content = 'train,val,test\ns00,s02,s04\ns01,s03,s05\n'
  where, table, path = folder(tmp_path, content)
  case = table.case.copy()
  case[3] = case[1]
  table = Manifest(case, table.slide, table.label)
  for i in (0, 2):  # Sound, so that the second file is the one at fault.
    (where / f'splits_{i}.csv').write_text(
      f'train,val,test\ns00,s02,s{10 + i}\ns01,s04,\n'
    )
  with pytest.raises(SplitError) as e:
    read(where, table, 3)
  assert str(path) in str(e.value)
  assert 'case c01 is in both train and val' in str(e.value)


def test_slides_tested_in_two_folds_are_known(tmp_path):
  table = twenty_cases()
  made = make(table, 3, 0)
  assert splits.tested_again(table, made) == []
  splits.write(tmp_path, table, [made[0], made[0], made[2]])
  found = read(tmp_path, table, 3)  # As CLAM's repeated random splits.
  again = splits.tested_again(table, found)
  assert again == table.slide[made[0].test].tolist()


def test_all_faults_of_all_files_come_at_once(tmp_path):
  where, table, path = folder(tmp_path, 'train,val,test\ns00,s02,nobody\n')
  first, last = where / 'splits_0.csv', where / 'splits_2.csv'
  first.write_text('train\ns00\n')
  last.write_text('train,val,test\ns00,s01,s00\ns03,s04,noone\n,noone2,\n')
  with pytest.raises(SplitError) as e:
    read(where, table, 4)
  assert str(e.value).splitlines() == [
    f'{first}: no column val, test; found train; a header train,val,test is'
    ' needed',
    f'{path}: slide nobody (test) is not among the labelled slides',
    f'{last}: slide s00 is named twice',
    f'{last}: slide noone2 (val) is not among the labelled slides',
    f'{last}: slide noone (test) is not among the labelled slides',
    f'{where / "splits_3.csv"}: no such file; --k=4 needs splits_0.csv to'
    ' splits_3.csv; there are 3: --k=3?',
    f'{path}: its test part is empty',
    f'{path}: no training slide of class 1',
    f'{last}: case c00 is in both train and test: slides of one case belong in'
    ' one part',
  ]


def test_clams_companion_files_and_quirks_are_passed_over(tmp_path):
  """Floats where pandas filled a column of whole numbers; bool tables."""
  slide = np.array([str(i) for i in range(100, 112)] + ['112.0', '0113'])
  table = Manifest(slide, slide, np.array(['a', 'b'] * 7))
  for i, (val, test) in enumerate([('108.0', '109.0'), ('112.0', '0113')]):
    (tmp_path / f'splits_{i}.csv').write_text(
      f',train,val,test\n0,100,{val},{test}\n1,101,110,\n2,102,,\n'
    )
    (tmp_path / f'splits_{i}_bool.csv').write_text(',train,val,test\nx,1,0,0\n')
    (tmp_path / f'splits_{i}_descriptor.csv').write_text(',train,val\na,1,1\n')
  found = read(tmp_path, table, 2)
  parts = [
    [table.slide[getattr(split, part)].tolist() for part in PARTS]
    for split in found
  ]
  train = ['100', '101', '102']
  assert parts == [
    [train, ['108', '110'], ['109']],
    [train, ['110', '112.0'], ['0113']],
  ]


def test_files_do_not_depend_on_the_locale(tmp_path):
  program = (
    'import numpy as np, sys\n'
    'from data import splits\n'
    'from data.labels import Manifest\n'
    'from kmil_jax import splits as dealing\n'
    "s = np.array([chr(233) + '%02d' % i for i in range(9)])\n"
    "t = Manifest(s, s, np.full(9, 'a'))\n"
    'm = [splits.Split(*p) for p in dealing.make(s, t.label, 3, 0)]\n'
    'splits.write(sys.argv[1], t, m)\n'
    'r, _ = splits.read(sys.argv[1], t, 3)\n'
    'assert splits.fingerprint(t, r) == splits.fingerprint(t, m)\n'
  )
  env = os.environ | {
    'LC_ALL': 'C',
    'PYTHONUTF8': '0',
    'PYTHONCOERCECLOCALE': '0',
  }
  subprocess.run(
    [sys.executable, '-c', program, tmp_path], env=env, check=True, timeout=60
  )


def test_slides_that_a_relabelling_left_out_may_be_named(tmp_path):
  ids = np.array([f's{i}' for i in range(12)])
  whole = Manifest(case=ids, slide=ids, label=np.array(['x', 'y', 'z'] * 4))
  splits.write(tmp_path, whole, make(whole, 3, 0))
  part = whole.subset(whole.label != 'z')
  left_out = frozenset(whole.slide[whole.label == 'z'].tolist())
  found = read(tmp_path, part, 3, left_out)
  assert sum(split.test.sum() for split in found) == 8
  # pandas writes ids that are numbers with a point; that of one left out, too.
  numbers = dataclasses.replace(part, slide=np.char.lstrip(part.slide, 's'))
  bare = frozenset(slide.lstrip('s') for slide in left_out)
  for path in tmp_path.iterdir():
    path.write_text(re.sub(r's(\d+)', r'\1.0', path.read_text()))
  again = read(tmp_path, numbers, 3, bare)
  for one, other in zip(found, again, strict=True):
    np.testing.assert_array_equal(one.test, other.test)
  with pytest.raises(splits.SplitError, match='not among the labelled'):
    read(tmp_path, part, 3)
