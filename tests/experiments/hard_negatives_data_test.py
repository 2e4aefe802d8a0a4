"""Tiles and pool of the study of hard negatives: the user's, and a phantom."""

import csv
import io
import zipfile

import numpy as np
from PIL import Image
import pytest

from data import tile_sources
from data.labelled_tiles import TileError
from experiments import hard_negatives_data as materials


def write(path, size=4, seed=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(
    0, 256, (size, size, 3), np.uint8
  )
  Image.fromarray(pixels).save(path)


def folders(root, *, pool_size=4, classes=('neg', 'pos')):
  for c in classes:
    for i in range(4):
      write(root / 'tiles' / c / f'p{i}_{c}.png', seed=i)
  for i in range(3):
    write(root / 'pool' / f'w{i}_1.png', pool_size, seed=10 + i)
  return str(root / 'tiles'), str(root / 'pool')


def test_folders_are_annotated_tiles_and_a_pool_of_negatives(tmp_path):
  found = materials.from_folders(*folders(tmp_path), None)
  assert found.annotated.classes == found.pool.classes == ('neg', 'pos')
  assert found.annotated.label.sum() == 4 and not found.pool.label.any()
  assert set(found.pool.group) == {'w0', 'w1', 'w2'}
  assert not set(found.pool.id) & set(found.annotated.id)
  assert found.hard == frozenset()


def test_a_pool_is_all_images_below_a_folder(tmp_path):
  names = ('a_1.png', 's1/x.png', 's1/deep/y.jpg', 's2/x.png')
  for i, name in enumerate((*names, '.hidden/x.png')):
    write(tmp_path / name, seed=i)
  (tmp_path / 'notes.txt').write_text('no tile')
  pool = tile_sources.from_pool(tmp_path, ('neg', 'pos'))
  assert pool.id.tolist() == sorted(names)
  assert pool.group.tolist() == ['a', 's1', 's1', 's2']
  assert pool.load(np.arange(4)).shape == (4, 4, 4, 3)
  write(tmp_path / 's3/small.png', 3)
  with pytest.warns(UserWarning, match='1 of 5 tiles are left out.*small'):
    assert len(tile_sources.from_pool(tmp_path, ('neg', 'pos'))) == 4
  (tmp_path / 's2/broken.png').write_bytes(b'none')
  with pytest.raises(TileError, match=r'broken\.png: not an image'):
    tile_sources.from_pool(tmp_path, ('neg', 'pos'))
  with pytest.raises(TileError, match='no image'):
    tile_sources.from_pool(tmp_path / 'empty', ('neg', 'pos'))


@pytest.mark.parametrize('name', ['p3_x.png', 'neg/p3_x.png', 'p3/x.png'])
def test_a_pool_of_annotated_patients_is_refused(tmp_path, name):
  where = folders(tmp_path)
  write(tmp_path / 'pool' / name)
  with pytest.raises(TileError, match=r'patients of annotated tiles.*: p3;'):
    materials.from_folders(*where, None)


def test_the_positive_class_can_be_named(tmp_path):
  where = folders(tmp_path, classes=('invasion', 'normal'))
  found = materials.from_folders(*where, 'invasion')
  assert found.annotated.classes == found.pool.classes == ('normal', 'invasion')
  names = [name.split('/')[0] for name in found.annotated.id]
  assert [found.annotated.classes[c] for c in found.annotated.label] == names
  with pytest.raises(TileError, match='--positive=pos: the classes are inv'):
    materials.from_folders(*where, 'pos')


def test_tiles_that_cannot_be_used_are_named(tmp_path):
  with pytest.raises(TileError, match=r'of 4 px .* of the pool of 6'):
    materials.from_folders(*folders(tmp_path, pool_size=6), None)
  with pytest.raises(TileError, match='classes a, b, c; two are needed'):
    materials.from_folders(*folders(tmp_path / 'x', classes='abc'), None)


def zipped(root, patients):
  rows, content = [], io.BytesIO()
  with zipfile.ZipFile(content, 'w') as archive:
    for p in range(patients):
      for label in '0011':
        name = f'{p}_{len(rows)}.png'
        write(root / name, seed=len(rows))
        archive.write(root / name, name)
        rows.append((p, len(rows), 0, label, name))
  (root / 'tiles.zip').write_bytes(content.getvalue())
  with (root / 'tiles.csv').open('w', newline='') as f:
    csv.writer(f).writerows([('patient', 'x', 'y', 'label', 'zip_path'), *rows])
  return str(root / 'tiles.zip'), str(root / 'tiles.csv')


def test_of_a_zip_file_the_negatives_of_some_patients_are_the_pool(tmp_path):
  where = zipped(tmp_path, 10)
  found = materials.from_zip(*where, None, share=0.3, seed=0)
  assert len(set(found.pool.group)) == 3 and len(found.pool) == 6
  assert not set(found.pool.group) & set(found.annotated.group)
  assert not found.pool.label.any() and len(found.annotated) == 28
  assert '6 positives of theirs left out' in found.note
  again = materials.from_zip(*where, None, share=0.3, seed=1)
  assert set(again.pool.group) != set(found.pool.group)
  for share in (0.0, 1.0):
    with pytest.raises(TileError, match='of 10 patients would make the pool'):
      materials.from_zip(*where, None, share=share, seed=0)


def test_the_phantom_is_rendered_once_and_knows_what_is_hard(
  tmp_path, monkeypatch
):
  small = {'patients': 2, 'patches': 30}
  for name in ('_ANNOTATED', '_POOL'):
    options = getattr(materials, name) | small
    monkeypatch.setattr(materials, name, options)
  found = materials.phantom(str(tmp_path), 0)
  assert len(found.annotated) == len(found.pool) == 60
  assert not set(found.annotated.group) & set(found.pool.group)
  hard = materials.hard_rows(found, found.annotated.id)
  assert hard.any() and not (hard & (found.annotated.label == 1)).any()
  calls = []
  monkeypatch.setattr(materials.invasion, 'make', calls.append)
  again = materials.phantom(str(tmp_path), 0)
  assert not calls and again.hard == found.hard
  rows = np.arange(60)
  np.testing.assert_array_equal(
    again.annotated.load(rows), found.annotated.load(rows)
  )
