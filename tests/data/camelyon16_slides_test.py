"""CAMELYON16's slides, their parts and labels, and what is left out."""

import pytest

from data.camelyon16 import slides
from data.camelyon16.slides import EXCLUDED
from data.labelled_tiles import TileError

OFFICIAL = frozenset(
  f'{kind}_{i:03d}'
  for kind, count in (('normal', 160), ('tumor', 110), ('test', 130))
  for i in range(1, count + 1)
)


@pytest.fixture
def folder(tmp_path):
  """The official slides, empty files, under the names of two releases."""
  for name in OFFICIAL:
    kind = name.partition('_')[0]
    name = name.capitalize() if kind == 'test' else name
    path = tmp_path / kind / f'{name}.tif'
    path.parent.mkdir(exist_ok=True)
    path.touch()
  return tmp_path


@pytest.fixture
def reference(tmp_path):
  path = tmp_path / 'test_reference.csv'
  rows = [
    f'Test_{i:03d},Tumor,IDC,Macro'
    if i % 3
    else f'Test_{i:03d},Normal,IDC,None'
    for i in range(1, 131)
  ]
  path.write_text('\n'.join(rows))
  return path


def ids(cohort, **values):
  return {
    s.id for s in cohort if all(getattr(s, k) == v for k, v in values.items())
  }


def test_parts_and_labels_are_the_organisers(folder, reference):
  cohort = slides.find(folder, reference, OFFICIAL)
  assert len(ids(cohort, part='train')) == 270
  assert ids(cohort, part='test') == {
    f'test_{i:03d}' for i in range(1, 131) if i not in (49, 114)
  }
  assert ids(cohort, part='test', label='normal') == {
    f'test_{i:03d}' for i in range(3, 131, 3) if i != 114
  }
  assert ids(cohort, part='train', label='tumor') == {
    'normal_086',
    *(f'tumor_{i:03d}' for i in range(1, 111)),
  }
  assert [s.id for s in cohort] == sorted(s.id for s in cohort)
  assert cohort[-1].path.stem == 'tumor_110'


def test_known_bad_slides_are_left_out(folder, reference):
  cohort = slides.find(folder, reference, OFFICIAL)
  assert ids(cohort) == OFFICIAL - set(EXCLUDED)
  few = slides.find(folder, reference, ['test_049', 'tumor_001'])
  assert ids(few) == {'tumor_001'}


def test_all_missing_slides_are_listed_at_once(folder, reference):
  for name in ('normal/normal_007', 'tumor/tumor_110', 'test/Test_012'):
    (folder / f'{name}.tif').unlink()
  with pytest.raises(
    TileError, match=r'3 slide\(s\) missing: normal_007, test_012, tumor_110$'
  ):
    slides.find(folder, reference, OFFICIAL)
  found = slides.find(folder, reference, ['tumor_001', 'Test_001'])
  assert ids(found) == {'tumor_001', 'test_001'}


def test_masks_and_other_slides_may_lie_there(folder, reference):
  for name in ('tumor_001_mask.tif', 'CMU-1.tif', 'tumor_111.tif'):
    (folder / name).touch()
  assert len(slides.find(folder, reference, OFFICIAL)) == 398
  more = slides.find(folder, reference, ['tumor_111'])
  assert ids(more, part='train', label='tumor') == {'tumor_111'}


def test_test_slides_need_a_label_and_all_a_name(folder, reference):
  reference.write_text('Test_001,Normal,IDC,None')
  with pytest.raises(TileError, match=r'no label in .*csv: test_002'):
    slides.find(folder, reference, wanted=['test_001', 'test_002'])
  with pytest.raises(TileError, match=r'not slides of CAMELYON16: test_1'):
    slides.find(folder, reference, wanted=['test_1'])


def test_one_slide_in_two_files_is_refused(folder, reference):
  (folder / 'Tumor_001.svs').touch()
  with pytest.raises(TileError, match='the same slide'):
    slides.find(folder, reference, ['tumor_001'])


def test_the_real_reference_has_49_tumour_slides(real_data):
  labels = slides.read_reference(real_data / 'camelyon16/test_reference.csv')
  assert set(labels) == {n for n in OFFICIAL if n.startswith('test')}
  tumour = {n for n, label in labels.items() if label == 'tumor'}
  assert len(tumour - {'test_049'}) == 49 and set(EXCLUDED) <= tumour
  assert (labels['test_001'], labels['test_003']) == ('tumor', 'normal')


@pytest.mark.parametrize(
  'row, fault',
  [
    ('Test_002,Tumour,IDC,Macro', 'line 2'),
    ('Test_002,Normal,IDC,Macro', 'line 2'),
    ('Test_002,Tumor,IDC', 'line 2'),
    ('tumor_002,Tumor,IDC,Micro', 'line 2'),
    ('Test_001,Tumor,IDC,Micro', 'line 2: test_001 a second time'),
  ],
)
def test_lines_of_a_reference_that_say_nothing_are_named(tmp_path, row, fault):
  path = tmp_path / 'reference.csv'
  path.write_text(f'Test_001,Normal,DCIS,None\n{row}\n')
  with pytest.raises(TileError, match=fault):
    slides.read_reference(path)
