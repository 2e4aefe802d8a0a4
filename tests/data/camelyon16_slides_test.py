"""CAMELYON16's slides, their parts and labels, and what is left out."""

import pytest

from data.camelyon16 import slides
from data.camelyon16.slides import EXCLUDED, OFFICIAL
from data.labelled_tiles import TileError


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
    s.id
    for s in cohort.slides
    if all(getattr(s, k) == v for k, v in values.items())
  }


def test_parts_and_labels_are_the_organisers(folder, reference):
  cohort = slides.find(folder, reference)
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
  assert cohort.relabelled == ('normal_086',)
  assert cohort.left_out == EXCLUDED
  assert [s.id for s in cohort.slides] == sorted(s.id for s in cohort.slides)
  assert cohort.slides[-1].path.stem == 'tumor_110'


def test_what_is_excluded_can_be_kept_as_released(folder, reference):
  cohort = slides.find(folder, reference, keep_excluded=True)
  assert set(EXCLUDED) <= ids(cohort, part='test')
  assert 'normal_086' in ids(cohort, label='normal')
  assert (len(cohort.slides), cohort.left_out) == (400, {})
  assert cohort.relabelled == ()


def test_all_missing_slides_are_listed_at_once(folder, reference):
  for name in ('normal/normal_007', 'tumor/tumor_110', 'test/Test_012'):
    (folder / f'{name}.tif').unlink()
  with pytest.raises(
    TileError, match=r'3 slide\(s\) missing: normal_007, test_012, tumor_110$'
  ):
    slides.find(folder, reference)
  found = slides.find(folder, reference, wanted=['tumor_001', 'Test_001'])
  assert ids(found) == {'tumor_001', 'test_001'}
  assert found.left_out['tumor_002'] == 'not asked for'


def test_not_every_release_has_normal_086(folder, reference):
  (folder / 'normal/normal_086.tif').unlink()
  (folder / 'tumor/tumor_111.tif').touch()
  cohort = slides.find(folder, reference)
  assert 'tumor_111' in ids(cohort, part='train', label='tumor')


def test_masks_are_no_slides_and_other_files_are_named(folder, reference):
  (folder / 'tumor_001_mask.tif').touch()
  (folder / 'CMU-1.tif').touch()
  cohort = slides.find(folder, reference)
  assert len(cohort.slides) == 398
  assert cohort.left_out['cmu-1'] == 'not a name of CAMELYON16'


def test_test_slides_need_a_reference(folder):
  cohort = slides.find(folder, None)
  assert len(cohort.slides) == 270
  assert 'no reference' in cohort.left_out['test_001']
  with pytest.raises(TileError, match='no label in None: test_001'):
    slides.find(folder, None, wanted=['test_001'])
  with pytest.raises(TileError, match=r'not slides of CAMELYON16: test_1'):
    slides.find(folder, None, wanted=['test_1'])


def test_one_slide_in_two_files_is_refused(folder):
  (folder / 'Tumor_001.svs').touch()
  with pytest.raises(TileError, match='the same slide'):
    slides.find(folder, None)


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
