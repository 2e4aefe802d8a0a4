"""Splits: whole cases, every class, each slide tested once; CLAM's files."""

import dataclasses
import os
import re
import subprocess
import sys

from hypothesis import given, strategies as st
import numpy as np
import pytest
from samples import one_folder, write_manifest

from data import labels as label_files, splits
from data.labels import Manifest
from data.splits import PARTS
from kmil_jax import splits as dealing


def make(table, k, seed):
  return [
    splits.Split(*parts)
    for parts in dealing.make(table.case, table.label, k, seed)
  ]


def read(*args):
  """Splits of files without a fault."""
  made, faults = splits.read(*args)
  assert faults == []
  return made


def slides_of(table, split):
  return [table.slide[getattr(split, part)].tolist() for part in PARTS]


@st.composite
def cohorts(draw):
  """A manifest whose classes have k cases at least, of 1 to 3 slides, and k."""
  k = draw(st.integers(3, 6))
  sizes = draw(st.lists(st.integers(k, 2 * k + 1), min_size=1, max_size=4))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  label = np.repeat([f'class{c}' for c in range(len(sizes))], sizes)
  case = np.array([f'{i:03}' for i in rng.permutation(len(label))])
  slides = rng.integers(1, 4, len(label))
  case, label = np.repeat(case, slides), np.repeat(label, slides)
  order = rng.permutation(len(case))
  slide = np.array([f's{i:04}' for i in range(len(case))])
  return Manifest(case[order], slide, label[order]), k


def twenty_cases(classes=2):
  case = np.array([f'c{i:02}' for i in range(20)])
  slide = np.array([f's{i:02}' for i in range(20)])
  return Manifest(case, slide, np.array([str(i % classes) for i in range(20)]))


@given(cohort=cohorts(), seed=st.integers(0, 10**6))
def test_cases_are_whole_classes_even_and_each_slide_is_tested_once(
  cohort, seed
):
  table, k = cohort
  made = make(table, k, seed)
  assert len(made) == k
  for i, split in enumerate(made):
    parts = [set(table.case[getattr(split, part)]) for part in PARTS]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert np.all(split.train.astype(int) + split.val + split.test == 1)
    np.testing.assert_array_equal(split.val, made[(i + 1) % k].test)
  assert np.all(sum(split.test.astype(int) for split in made) == 1)

  def tested(rows):
    return [len(set(table.case[split.test & rows])) for split in made]

  every = [tested(table.label == label) for label in set(table.label)]
  for counts in [tested(table.label != ''), *every]:
    assert max(counts) - min(counts) <= 1 and min(counts) >= 1


@one_folder
@given(cohort=cohorts(), seed=st.integers(0, 10**6), data=st.data())
def test_splits_are_a_function_of_table_and_seed_and_go_through_files(
  tmp_path, cohort, seed, data
):
  table, k = cohort
  made = make(table, k, seed)
  rows = np.array(data.draw(st.permutations(range(len(table.slide)))))
  path = write_manifest(tmp_path / 'labels.csv', table.subset(rows))
  again = make(label_files.read(path), k, seed)
  splits.write(tmp_path, table, made)
  for one, *others in zip(made, again, read(tmp_path, table, k), strict=True):
    for other in others:
      assert slides_of(table, one) == slides_of(table, other)
  assert splits.fingerprint(table, again) == splits.fingerprint(table, made)


def test_another_seed_makes_other_splits():
  table = twenty_cases()
  made = [make(table, 5, seed) for seed in range(3)]
  assert len({splits.fingerprint(table, m) for m in made}) == 3


def test_a_case_of_several_classes_stays_whole_and_counts_for_the_last():
  """Of three cases of class b, one has a slide of class a, too."""
  case = np.array(['0', '1', '2', '3', '4', '5', '5'])
  slide = np.array([f's{i}' for i in range(7)])
  label = np.array(['a', 'a', 'a', 'b', 'b', 'a', 'b'])
  for split in make(Manifest(case, slide, label), 3, seed=0):
    tested = case[split.test]
    assert len(set(tested) & {'3', '4', '5'}) == 1
    assert len(set(tested) & {'0', '1', '2'}) == 1
    assert (tested == '5').sum() in (0, 2)


def test_too_few_cases_say_what_to_do():
  table = twenty_cases(classes=4)  # 5 cases each.
  with pytest.raises(dealing.SplitError) as e:
    make(table, 6, 0)
  assert str(e.value) == (
    'cases of class 0: 5; cases of class 1: 5; cases of class 2: 5; cases of'
    ' class 3: 5, fewer than 6 folds. Choose at most 5 folds, or a'
    ' single one, which tests nothing; or merge classes.'
  )
  with pytest.raises(dealing.SplitError, match=r'2 folds: .* need at least 3'):
    make(table, 2, 0)


def write_files(folder, *contents):
  for i, content in enumerate(contents):
    (folder / f'splits_{i}.csv').write_text(content)


def test_slides_that_no_file_names_are_in_no_part(tmp_path):
  write_files(
    tmp_path,
    'val,test,train,note\n s02 ,s10,s00,x\n,,s01,\n',
    ',train,val,test\n0,s00,s02,s04\n1,s01,,s05\n',
  )
  table = twenty_cases()
  first, second = read(tmp_path, table, 2)
  assert slides_of(table, first) == [['s00', 's01'], ['s02'], ['s10']]
  assert slides_of(table, second) == [['s00', 's01'], ['s02'], ['s04', 's05']]


def test_slides_tested_in_two_folds_are_known(tmp_path):
  table = twenty_cases()
  made = make(table, 3, 0)
  assert splits.tested_again(table, made) == []
  splits.write(tmp_path, table, [made[0], made[0], made[2]])
  again = splits.tested_again(table, read(tmp_path, table, 3))
  assert again == table.slide[made[0].test].tolist()


def test_all_faults_of_all_files_come_at_once(tmp_path):
  write_files(
    tmp_path,
    'train\ns00\n',
    'train,val,test\ns00,s02,nobody\n',
    'train,val,test\ns00,s01,s00\ns03,s04,noone\n,noone2,\n',
    '',
  )
  first, second, third, fourth, fifth = (
    tmp_path / f'splits_{i}.csv' for i in range(5)
  )
  _, faults = splits.read(tmp_path, twenty_cases(), 5)
  assert faults == [
    f'{first}: no column val, test (found: train). Write the header'
    ' train,val,test.',
    f'{second}: slide nobody (test) is not among the labelled slides',
    f'{third}: slide s00 is named twice',
    f'{third}: slide noone2 (val) is not among the labelled slides',
    f'{third}: slide noone (test) is not among the labelled slides',
    f'{fourth}: no column train, val, test (found: ). Write the header'
    ' train,val,test.',
    f'{fifth}: no such file. --k=5 needs splits_0.csv to splits_4.csv. There'
    ' are 4: --k=4?',
    f'{second}: its test part is empty',
    f'{second}: no training slide of class 1',
    f'{third}: case c00 is in both train and test: slides of one case belong in'
    ' one part',
  ]


def test_clams_companion_files_and_quirks_are_passed_over(tmp_path):
  """Floats where pandas filled a column of whole numbers; bool tables."""
  slide = np.array([str(i) for i in range(100, 113)] + ['112.0', '0113'])
  table = Manifest(slide, slide, np.array(['a', 'b', 'b'] * 5))
  for i, (val, test) in enumerate([('108.0', '109.0'), ('112.0', '0113')]):
    (tmp_path / f'splits_{i}.csv').write_text(
      f',train,val,test\n0,100,{val},{test}\n1,101,110,\n2,102,,\n'
    )
    (tmp_path / f'splits_{i}_bool.csv').write_text(',train,val,test\nx,1,0,0\n')
  train = ['100', '101', '102']
  first, second = read(tmp_path, table, 2)
  assert slides_of(table, first) == [train, ['108', '110'], ['109']]
  assert slides_of(table, second) == [train, ['110', '112.0'], ['0113']]


# Writes and reads the splits of slides whose ids are not ASCII.
_FOREIGN = """
import sys
import numpy as np
from data import splits
from data.labels import Manifest
ids = np.array([f'{chr(233)}{i}' for i in range(9)])
table = Manifest(ids, ids, np.full(9, 'a'))
parts = np.arange(9) < 3, np.arange(9) // 3 == 1, np.arange(9) > 5
made = [splits.Split(*parts)]
splits.write(sys.argv[1], table, made)
(again,), faults = splits.read(sys.argv[1], table, 1)
assert faults == [] and (again.test == made[0].test).all(), faults
"""


def test_files_do_not_depend_on_the_locale(tmp_path):
  ascii = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
  command = [sys.executable, '-c', _FOREIGN, tmp_path]
  subprocess.run(command, env=os.environ | ascii, check=True, timeout=60)
  assert 'é8'.encode() in (tmp_path / 'splits_0.csv').read_bytes()


def test_slides_that_a_relabelling_left_out_may_be_named(tmp_path):
  ids = np.array([f's{i}' for i in range(12)])
  whole = Manifest(case=ids, slide=ids, label=np.array(['x', 'y', 'z'] * 4))
  splits.write(tmp_path, whole, make(whole, 3, 0))
  part = whole.subset(whole.label != 'z')
  left_out = frozenset(whole.slide[whole.label == 'z'].tolist())
  found = read(tmp_path, part, 3, left_out)
  assert sum(split.test.sum() for split in found) == 8
  _, faults = splits.read(tmp_path, part, 3)
  assert faults and all('not among the labelled' in f for f in faults)
  # pandas writes ids that are numbers with a point; that of one left out, too.
  numbers = dataclasses.replace(part, slide=np.char.lstrip(part.slide, 's'))
  bare = frozenset(slide.lstrip('s') for slide in left_out)
  for path in tmp_path.iterdir():
    path.write_text(re.sub(r's(\d+)', r'\1.0', path.read_text()))
  again = read(tmp_path, numbers, 3, bare)
  for one, other in zip(found, again, strict=True):
    np.testing.assert_array_equal(one.test, other.test)


@pytest.mark.parametrize(
  'change, pair',
  [
    (lambda s: s.lstrip('0'), '7 in this file, 007 in the CSV'),
    (lambda s: f'{s}.svs', '007.svs in this file, 007 in the CSV'),
    (lambda s: f'{s}\u200b', r"'007\u200b' in this file, 007 in the CSV"),
  ],
)
def test_ids_that_were_spelled_apart_are_named_with_those_meant(
  tmp_path, change, pair
):
  ids = np.array([f'{i:03}' for i in range(12)])
  table = Manifest(ids, ids, np.array(['x', 'y'] * 6))
  other = dataclasses.replace(table, slide=np.array([*map(change, ids)]))
  splits.write(tmp_path, other, make(table, 3, 0))
  _, faults = splits.read(tmp_path, table, 3)
  named = [f for f in faults if 'not among the labelled slides. Some ids' in f]
  assert named and sum(pair in fault for fault in named) == 3


@pytest.mark.parametrize(
  'name', ['splits_{}.csv', 'splits_0{}.csv', 'split_{}.csv', 'SPLITS_{}.CSV']
)
def test_files_that_are_numbered_otherwise_are_named(tmp_path, name):
  table = twenty_cases()
  splits.write(tmp_path, table, make(table, 3, 0))
  for i in (2, 1, 0):
    (tmp_path / f'splits_{i}.csv').rename(tmp_path / name.format(i + 1))
  fault = splits.read(tmp_path, table, 3)[1][0]
  names = ', '.join(name.format(i) for i in (1, 2, 3))
  assert f'There are {names}. Rename them so that numbers begin at 0' in fault


def test_a_link_to_no_file_and_a_folder_without_files_are_told(tmp_path):
  table = twenty_cases()
  splits.write(tmp_path, table, make(table, 3, 0))
  link = tmp_path / 'splits_1.csv'
  link.unlink()
  link.symlink_to('gone.csv')
  (fault,) = splits.read(tmp_path, table, 3)[1]
  assert fault.startswith(f'{link}: cannot be read') and '--k' not in fault
  _, faults = splits.read(tmp_path / 'none', table, 3)
  assert len(faults) == 3 and all('Give another' in fault for fault in faults)
