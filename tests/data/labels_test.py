"""The table of slides: ids stay as they are, faults come all at once."""

import re

from hypothesis import given, strategies as st
import numpy as np
import pytest
from samples import one_folder, write_manifest, write_rows

from data import files, labels as label_files, packed
from data.labels import COLUMNS, Manifest, ManifestError

HEADER = 'case_id,slide_id,label\n'
cell = (
  st.text(st.characters(exclude_categories=('Cs', 'Cc')), min_size=1)
  .map(files.clean)
  .filter(bool)
)
slide_id = cell.filter(
  lambda s: not set(s) & set('/\\') and s not in '..' and len(s) <= 45
)
hostile = st.one_of(
  st.sampled_from(
    ['../x', '..', '.', '/etc/passwd', 'a\0b', 'x' * 300, '\\\\x\\y', 'é' * 120]
  ),
  st.text(st.characters(exclude_categories=('Cs',)), max_size=12),
)


def write(tmp_path, text):
  path = tmp_path / 'labels.csv'
  path.write_text(text, encoding='utf-8')
  return path


@st.composite
def tables(draw):
  slides = sorted(draw(st.lists(slide_id, min_size=1, max_size=8, unique=True)))
  columns = [
    draw(st.lists(cell, min_size=len(slides), max_size=len(slides)))
    for _ in range(2)
  ]
  return Manifest(np.array(columns[0]), np.array(slides), np.array(columns[1]))


@one_folder
@given(table=tables(), data=st.data())
def test_what_is_written_is_read_whatever_the_order_of_rows(
  tmp_path, table, data
):
  rows = np.array(data.draw(st.permutations(range(len(table.slide)))))
  path = write_manifest(tmp_path / 'labels.csv', table.subset(rows))
  found = label_files.read(path)
  for name in ('case', 'slide', 'label'):
    np.testing.assert_array_equal(getattr(found, name), getattr(table, name))


def test_what_is_sound_can_be_used_beside_the_faults(tmp_path):
  path = write(tmp_path, HEADER + 'c,b,x\nc,a,x\nc,b,y\n,d,x\nc,../e,x\n')
  table, faults = label_files.scan(path)
  assert table.slide.tolist() == ['a', 'b'] and len(faults) == 3
  assert table.label.tolist() == ['x', 'x']
  empty, faults = label_files.scan(write(tmp_path, HEADER))
  assert empty.slide.tolist() == [] and faults == ['no rows']


def test_ids_stay_strings_and_other_columns_are_passed_over(tmp_path):
  """The byte order mark of a spreadsheet is no part of the header."""
  text = '\ufefflabel,slide_id,x,case_id\n 1 ,TCGA.01.z,x,1e3\n01,007,y,0012\n'
  table = label_files.read(write(tmp_path, text))
  assert table.slide.tolist() == ['007', 'TCGA.01.z']
  assert table.case.tolist() == ['0012', '1e3']
  assert table.label.tolist() == ['01', '1']


def test_every_fault_is_reported_at_once_with_its_row(tmp_path):
  rows = [
    'c,good,l',
    ',b,l',
    'c,,l',
    'c,d,',
    'short',
    'c,dup,l',
    'c,dup,l',
    'c,a/b,l',
    'c,..,l',
    f'c,{"x" * 181},l',
    '"c\x07",f,l',
    'c,g,carcinoma, squamous',
    'c,h,l,,',
  ]
  path = write(tmp_path, HEADER + '\n'.join(rows) + '\n')
  with pytest.raises(ManifestError) as e:
    label_files.read(path)
  message = str(e.value)
  for part in (
    str(path),
    'row 3: empty case_id',
    'row 4: empty slide_id',
    'row 5: empty label',
    'row 6: empty slide_id',
    'row 6: empty label',
    'slide dup: 2 rows',
    'slide a/b: an id is a file name',
    'slide ..: an id is a file name',
    f'slide {"x" * 80}: an id has at most 180 bytes',
    'row 12: a control character in case_id',
    'row 13: more cells than the header has',
  ):
    assert part in message
  for row in (2, 7, 14):
    assert f'row {row}:' not in message


@one_folder
@given(
  garbage=st.binary(max_size=200), rows=st.lists(st.tuples(*[hostile] * 3))
)
def test_any_bytes_are_read_or_refused_and_name_no_file_elsewhere(
  tmp_path, garbage, rows
):
  path = write_rows(tmp_path / 'labels.csv', [COLUMNS, *rows])
  for content in (path.read_bytes(), HEADER.encode() + garbage, garbage):
    path.write_bytes(content)
    try:
      table, faults = label_files.scan(path)
    except ManifestError as e:
      assert str(path) in str(e)
      continue
    assert faults or len(table.slide) > 0
    assert len(set(table.slide)) == len(table.slide)
    assert all(map(len, table.case)) and all(map(len, table.label))
    folder = packed.Folder(tmp_path)
    for slide in table.slide:
      assert folder.file(slide).parent == tmp_path
      assert len(folder.file(slide).name.encode()) <= 255 - 40
      assert slide not in folder


def test_relabel_renames_merges_and_drops():
  table = Manifest(
    np.array(['c', 'd', 'e', 'f']),
    np.array(['1', '2', '3', '4']),
    np.array(['x', 'y', 'z', 'x']),
  )
  new = label_files.relabel(table, {'x': 'merged label', 'z': 'merged label'})
  assert new.slide.tolist() == ['1', '3', '4']
  assert new.case.tolist() == ['c', 'e', 'f']
  assert new.label.tolist() == ['merged label'] * 3
  with pytest.raises(ManifestError, match=r'label u, w\. Labels are x, y, z'):
    label_files.relabel(table, {'x': 'a', 'w': 'b', 'u': 'c'})


APART = (str.upper, str.title, lambda s: s.replace('_', '\u2011'))
APART += (lambda s: s.replace('_', '\xa0'), lambda s: f'{s}\u200b')
APART += (lambda s: re.sub(r'\d+', r'00\g<0>', s), lambda s: f'{s}.svs')
# An exponent has no fraction.
APART += (lambda s: f'{s}.0' if re.search(r'(?<!e-)\d$', s.lower()) else s,)
APART += (lambda s: re.sub(r'(?<=[ab])(?=\d)', '-', s),)
APART += (lambda s: f'+{s}0e-1' if s.isdecimal() else s,)


@given(
  name=st.text('abä_7', min_size=1).filter(lambda s: s == s.strip('_')),
  ways=st.lists(st.sampled_from(APART), max_size=4, unique=True),
)
def test_names_that_are_spelled_apart_look_alike(name, ways):
  other = name
  for way in ways:
    other = way(other)
  assert label_files.normalised(
    label_files.normalised(name)
  ) == label_files.normalised(name)
  assert label_files.normalised(other) == label_files.normalised(name)


@pytest.mark.parametrize(
  'names',
  [
    ['1', '10', '-1', '1.1', '1.10', '0', '00.1'],
    ['+', '-', '++', '1+', '1-', '', 'a/1', 'b/1', 'a', 'b'],
    ['p1', 'p11', 'p1-1', 'patient_1_1', 'patient_1_2', 'TCGA-AA', 'TCGA-AB'],
  ],
)
def test_names_of_different_things_do_not(names):
  assert label_files.alike(names, label_files.same_patient) == ''


TWO = ('case_1', 'a', 'x'), ('case_2', 'b', 'y')


@pytest.mark.parametrize(
  'rows, problem, warning',
  [
    (TWO, '', ''),
    ([*TWO, ('c', 'd', 'X')], 'labels X and x differ only in how', ''),
    ([*TWO, ('c', 'd', 'x\u200b')], r"labels x and 'x\u200b' differ", ''),
    ([*TWO, ('c', 'd', 'x0.5'), ('e', 'f', 'x.5')], '', ''),
    ([*TWO, ('c', 'd', '.5'), ('e', 'f', '0,5')], 'labels .5 and 0,5', ''),
    ([*TWO, ('c', 'd', '10'), ('e', 'f', '1E1')], 'labels 10 and 1E1', ''),
    ([*TWO, ('c', 'd', 'non-x'), ('e', 'f', 'nonX')], 'non-x and nonX', ''),
    ([*TWO, ('1.2E+11', 'd', 'x')], '', 'the case_id 1.2E+11, which is'),
    ([*TWO, ('c', 'd', "'--")], '', "1 slide with the label '--, which is"),
    ([*TWO, ('c', 'd', 'Not reported')], '', 'the label Not reported, which'),
    ([*TWO, ('CASE-2', 'd', 'x')], '', 'cases CASE-2 and case_2 look like one'),
    ([*TWO, ('c', 'A', 'x')], '', 'slides A and a differ only in how'),
    ([*TWO, ('c', 'd', '#N/A')], '', '1 slide with the label #N/A, which is'),
    ([*TWO, ('nan', 'd', 'x')], '', '1 slide with the case_id nan, which is'),
    *(
      ([(f'{patient}-01', 'a', 'x'), (f'{patient}-02', 'b', 'y')], '', patient)
      for patient in (
        *('TCGA-0A-0001', 'C3N-00001', 'GTEX-1117F', 'TCGA.0A.0001'),
        *('TARGET-20-PABLDZ', 'HCM-BROD-0095-C15'),
      )
    ),
    ([('TCGA.0A.1', 'a', 'x'), ('TCGA-0A-1', 'b', 'y')], '', 'TCGA.0A.1'),
  ],
)
def test_what_is_hardly_meant_is_named(rows, problem, warning):
  table = Manifest(*np.array(rows).T)
  for found, words in zip(
    label_files.check(table), (problem, warning), strict=True
  ):
    assert len(found) == bool(words) and words in ''.join(found)
