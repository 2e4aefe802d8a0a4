"""Cohorts of the few-shot study: slides with lists, folders of patches."""

import json
import shutil

import few_shot_slides
import numpy as np
from PIL import Image
import pytest

from data.labelled_tiles import TileError
from experiments.few_shot_parts import (
  cohort as cohorts,
  paper,
  patch_folders,
)

NAMES = {
  'tumor_001': True,
  'tumor_002': True,
  'normal_003': False,
  'test_001': True,
  'test_002': False,
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return few_shot_slides.make(tmp_path_factory.mktemp('c16'), NAMES)


def open_slides(root, **others):
  paths = {
    'slides': root / 'slides',
    'annotations': root / 'annotations',
    'reference': root / 'reference.csv',
    'lists': root / 'lists',
  } | others
  return cohorts.open_camelyon(
    *paths.values(), seed=0, scale=few_shot_slides.SCALE
  )


def test_lists_become_parts_and_validation_is_drawn(root):
  found = open_slides(root)
  violet = {
    part: few_shot_slides.violet(tiles.pixels)
    for part, tiles in found.parts.items()
  }
  for part, tiles in found.parts.items():
    # 0 is tumour.
    np.testing.assert_array_equal(violet[part] > 1.5, tiles.label == 0)
  assert set(found.parts['train'].group) == {'tumor_001'}
  val = found.parts['val']
  assert set(val.group[val.label == 0]) == {'tumor_002'}
  assert set(val.group[val.label == 1]) == {'normal_003'}
  assert 'tumor_002 and normal_003' in found.note
  again = open_slides(root).parts['val']
  np.testing.assert_array_equal(again.xy, val.xy)
  assert [(s.id, s.label) for s in found.slides] == [
    ('test_001', 'tumor'),
    ('test_002', 'normal'),
  ]
  # Three tumour patches: less than any but none of the paper's.
  assert (found.main, found.counts) == (3, {0: 0})


def test_lists_of_validation_are_used_where_there_are(root, tmp_path):
  lists = shutil.copytree(root / 'lists', tmp_path / 'lists')
  (lists / 'val_good.txt').write_text('normal_003,200,300\n')
  (lists / 'val_bad.txt').write_text('tumor_002,400,400\n')
  val = open_slides(root, lists=lists).parts['val']
  assert val.xy.tolist() == [[400 - 32, 400 - 32], [200 - 32, 300 - 32]]


def test_patches_of_excluded_slides_are_left_out_and_counted(
  root, tmp_path, capsys
):
  before = open_slides(root).parts['test']
  lists = shutil.copytree(root / 'lists', tmp_path / 'lists')
  with (lists / 'test_good.txt').open('a') as f:
    f.write('test_114,200,300\ntest_114,400,300\n')
  capsys.readouterr()
  found = open_slides(root, lists=lists).parts['test']
  np.testing.assert_array_equal(found.id, before.id)
  said = capsys.readouterr().out
  assert 'test_114: left out, not all of its tumour is annotated' in said
  assert 'test_good: 2 patches of slides left out' in said


def test_validation_is_of_a_slide_with_room(root, tmp_path):
  root = shutil.copytree(root, tmp_path / 'c16')
  for name in ('slides/{}.tiff', 'annotations/{}.json'):
    shutil.copy(
      root / name.format('tumor_002'), root / name.format('tumor_003')
    )
  small = {'positive': [[[320, 192], [420, 192], [420, 292]]], 'negative': []}
  (root / 'annotations/tumor_002.json').write_text(json.dumps(small))
  val = open_slides(root).parts['val']
  assert set(val.group[val.label == 0]) == {'tumor_003'}
  (root / 'annotations/tumor_003.json').unlink()
  with pytest.raises(TileError, match='no tumor one with room'):
    open_slides(root)


def test_what_is_missing_is_named(root, tmp_path):
  (tmp_path / 'train_good.txt').write_text('tumor_001,200,300\n')
  with pytest.raises(TileError, match=r'train_bad\.txt, test_good\.txt'):
    open_slides(root, lists=tmp_path)
  slides = shutil.copytree(root / 'slides', tmp_path / 'slides')
  (slides / 'normal_003.tiff').unlink()
  with pytest.raises(TileError, match='there is no normal one'):
    open_slides(root, slides=slides)
  (slides / 'test_002.tiff').unlink()
  shutil.copy(root / 'slides/normal_003.tiff', slides)
  with pytest.raises(TileError, match=r'1 slide.* missing: test_002'):
    open_slides(root, slides=slides)
  marks = shutil.copytree(root / 'annotations', tmp_path / 'annotations')
  (marks / 'test_001.json').unlink()
  with pytest.raises(TileError, match='without annotation: test_001'):
    open_slides(root, annotations=marks)


def fill(root, kinds=('good', 'bad'), slides=('tumor_001', 'b', 'c'), side=32):
  """Writes patches whose level of grey is 200 (normal) or 60 (tumour)."""
  for part, slide in zip(cohorts.PARTS, slides, strict=True):
    for kind, level in zip(kinds, (200, 60), strict=True):
      folder = root / part / kind
      folder.mkdir(parents=True)
      for i in range(2):
        image = Image.new('RGBA', (side, side), (level, level, level, 255))
        image.save(folder / f'{slide}_{i}_{7 * i}.png')
  return root


@pytest.mark.parametrize('kinds', [('good', 'bad'), ('normal', 'tumor')])
def test_folders_are_labelled_by_their_names(tmp_path, kinds):
  found = patch_folders.open_folders(fill(tmp_path, kinds))
  for tiles in found.parts.values():
    assert tiles.label.tolist().count(1) == 2
    bright = tiles.pixels.mean((1, 2, 3)) > 100
    np.testing.assert_array_equal(bright, tiles.label == 1)
  assert set(found.parts['train'].group) == {'tumor_001'}
  assert (found.scale.size, found.main, found.slides) == (32, 2, ())


def test_folders_that_cannot_be_are_refused(tmp_path):
  with pytest.raises(TileError, match='found the folders bad, fine'):
    patch_folders.open_folders(fill(tmp_path / 'a', ('fine', 'bad')))
  root = fill(tmp_path / 'c')
  for path in root.rglob('*.png'):
    Image.open(path).convert('L').save(path)
  with pytest.raises(TileError, match='grey'):
    patch_folders.open_folders(root)
  with pytest.raises(TileError, match=r'slide.* tumor_001 in both'):
    root = fill(tmp_path / 'b', slides=('tumor_001', 'tumor_001', 'c'))
    patch_folders.open_folders(root)


def test_the_fingerprint_sees_pixels_labels_and_parts(tmp_path):
  one = cohorts.fingerprint(patch_folders.open_folders(fill(tmp_path / 'a')))
  same = cohorts.fingerprint(patch_folders.open_folders(fill(tmp_path / 'b')))
  assert one == same
  path = next((tmp_path / 'b/val/good').iterdir())
  Image.new('RGB', (32, 32)).save(path)
  other = cohorts.fingerprint(patch_folders.open_folders(tmp_path / 'b'))
  assert [k for k in one if one[k] != other[k]] == ['val_sha256']


def test_the_real_lists_are_the_papers(real_data):
  from data.camelyon16 import patches

  lists = real_data / 'camelyon16/few_shot_patches'
  found = {p.stem: patches.read(p) for p in lists.glob('*.txt')}
  assert len(found['train_good']) == paper.NORMAL
  assert len(found['train_bad']) >= max(paper.COUNTS)
