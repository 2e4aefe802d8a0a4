"""Material of the few-shot study: slides with lists, folders of patches."""

import json
import shutil

import few_shot_slides
import numpy as np
from PIL import Image
import pytest

from data.labelled_tiles import TileError
from data.splits import PARTS
from experiments.run.options import OptionError
from experiments.studies import few_shot_data as material
from experiments.studies.few_shot_data import Data


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return few_shot_slides.make(tmp_path_factory.mktemp('c16'))


def open_slides(root, **others):
  data = few_shot_slides.data(root, **others)
  return material.of_slides(data, seed=0, scale=few_shot_slides.SCALE)


def test_lists_become_parts_and_validation_is_drawn(root):
  found = open_slides(root)
  for tiles in found.parts.values():
    violet = few_shot_slides.violet(tiles.pixels)
    np.testing.assert_array_equal(violet > 1.5, tiles.label == 0)
  assert set(found.parts['train'].group) == {'tumor_001'}
  val = found.parts['val']
  assert set(val.group[val.label == 0]) == {'tumor_002'}
  assert set(val.group[val.label == 1]) == {'normal_003'}
  assert 'tumor_002 and normal_003' in found.note
  np.testing.assert_array_equal(open_slides(root).parts['val'].xy, val.xy)
  assert [(s.id, s.label) for s in found.slides] == [
    ('test_001', 'normal'),
    ('test_002', 'tumor'),
    ('test_003', 'tumor'),
  ]
  # Three tumour patches: less than any but none of the paper's.
  assert (found.main, found.counts) == (3, {0: 0})


def test_lists_that_are_there_are_used_but_for_excluded_slides(root, tmp_path):
  before = open_slides(root).parts['test']
  lists = shutil.copytree(root / 'lists', tmp_path / 'lists')
  (lists / 'val_good.txt').write_text('normal_003,200,300\n')
  (lists / 'val_bad.txt').write_text('tumor_002,400,400\n')
  with (lists / 'test_good.txt').open('a') as f:
    f.write('test_114,200,300\ntest_114,400,300\n')
  found = open_slides(root, lists_dir=lists)
  xy = found.parts['val'].xy + 32
  assert xy.tolist() == [[400, 400], [200, 300]]
  np.testing.assert_array_equal(found.parts['test'].id, before.id)
  assert 'test_114: left out, not all of its tumour is annot' in found.note
  assert 'test_good: 2 patches of slides left out' in found.note


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
  with pytest.raises(OptionError, match=r'--annotations, --reference_csv'):
    Data(slides_dir=root, lists_dir=root)
  with pytest.raises(OptionError, match='together with slides'):
    few_shot_slides.data(root, patches_dir=root)
  (tmp_path / 'train_good.txt').write_text('tumor_001,200,300\n')
  with pytest.raises(TileError, match=r'train_bad\.txt, test_bad\.txt, test_g'):
    open_slides(root, lists_dir=tmp_path)
  slides = shutil.copytree(root / 'slides', tmp_path / 'slides')
  (slides / 'normal_003.tiff').unlink()
  with pytest.raises(TileError, match='there is no normal one'):
    open_slides(root, slides_dir=slides)
  (slides / 'test_002.tiff').unlink()
  shutil.copy(root / 'slides/normal_003.tiff', slides)
  with pytest.raises(TileError, match=r'1 slide.* missing: test_002'):
    open_slides(root, slides_dir=slides)
  marks = shutil.copytree(root / 'annotations', tmp_path / 'annotations')
  (marks / 'test_002.json').unlink()
  with pytest.raises(TileError, match='without annotation: test_002'):
    open_slides(root, annotations=marks)


def fill(root, kinds=('good', 'bad'), slides=('tumor_001', 'b', 'c')):
  """Writes patches whose level of grey is 200 (normal) or 60 (tumour)."""
  for part, slide in zip(PARTS, slides, strict=True):
    for kind, level in zip(kinds, (200, 60), strict=True):
      folder = root / part / kind
      folder.mkdir(parents=True)
      for i in range(2):
        image = Image.new('RGBA', (32, 32), (level, level, level, 255))
        image.save(folder / f'{slide}_{i}_{7 * i}.png')
  return root


def open_folders(root):
  return material.open_material(Data(patches_dir=root), 0, root)


@pytest.mark.parametrize('kinds', [('good', 'bad'), ('normal', 'tumor')])
def test_folders_are_labelled_by_their_names(tmp_path, kinds):
  found = open_folders(fill(tmp_path, kinds))
  for tiles in found.parts.values():
    assert tiles.label.tolist().count(1) == 2
    bright = tiles.pixels.mean((1, 2, 3)) > 100
    np.testing.assert_array_equal(bright, tiles.label == 1)
  assert set(found.parts['train'].group) == {'tumor_001'}
  assert (found.scale.size, found.main, found.slides) == (32, 2, ())


def test_folders_that_cannot_be_are_refused(tmp_path):
  with pytest.raises(TileError, match='found the folders bad, fine'):
    open_folders(fill(tmp_path / 'a', ('fine', 'bad')))
  root = fill(tmp_path / 'c')
  for path in root.rglob('*.png'):
    Image.open(path).convert('L').save(path)
  with pytest.raises(TileError, match='grey'):
    open_folders(root)
  with pytest.raises(TileError, match=r'slide.* tumor_001 in more than one'):
    open_folders(fill(tmp_path / 'b', slides=('tumor_001', 'tumor_001', 'c')))


def test_hashes_see_pixels_labels_and_parts(tmp_path):
  one = open_folders(fill(tmp_path / 'a')).inputs
  assert one == open_folders(fill(tmp_path / 'b')).inputs
  path = next((tmp_path / 'b/val/good').iterdir())
  Image.new('RGB', (32, 32)).save(path)
  other = open_folders(tmp_path / 'b').inputs
  assert [k for k in one if one[k] != other[k]] == ['val_sha256']
