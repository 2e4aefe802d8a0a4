"""Tiles in folders and zip files: what is there is read, the rest is named."""

import csv
import io
import shutil
import zipfile

import numpy as np
from PIL import Image
import pytest

from data import tile_sources
from data.labelled_tiles import TileError
from data.tile_sources import COLUMNS, from_folders, from_zip


def picture(seed, shape=(8, 8, 3)):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image, kind='PNG'):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind)
  return file.getvalue()


def write_folders(root):
  """Six tiles of two classes; returns them by id."""
  images = {
    f'{name}/p{i}_{name}{i}.png': picture(10 * i + len(name))
    for name in ('no', 'yes')
    for i in range(3)
  }
  for name, image in images.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image))
  return images


def rows_of(n=6):
  return [
    {
      'patient': f'0{i % 3}',
      'x': str(50 * i + 1),
      'y': str(-i),
      'label': '210'[i % 3] if i else '10',
      'zip_path': f'{i % 3}/t{i}.png',
    }
    for i in range(n)
  ]


def write_zip(root, rows=None, files=None, columns=COLUMNS):
  rows = rows_of() if rows is None else rows
  if files is None:
    files = {r['zip_path']: encoded(picture(i)) for i, r in enumerate(rows)}
  with zipfile.ZipFile(root / 'tiles.zip', 'w') as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  with (root / 'index.csv').open('w', newline='') as f:
    writer = csv.DictWriter(f, columns, extrasaction='ignore')
    writer.writeheader()
    writer.writerows(rows)
  return root / 'tiles.zip', root / 'index.csv'


def test_folders_are_classes_and_names_begin_with_the_group(tmp_path):
  images = write_folders(tmp_path)
  (tmp_path / '.cache').mkdir()
  (tmp_path / 'no' / '.hidden.png').write_bytes(b'x')
  (tmp_path / 'no' / 'notes.txt').write_text('x')
  tiles = from_folders(tmp_path)
  assert tiles.id.tolist() == sorted(images)
  assert tiles.classes == ('no', 'yes')
  assert tiles.label.tolist() == [0, 0, 0, 1, 1, 1]
  assert tiles.group.tolist() == ['p0', 'p1', 'p2'] * 2
  assert (tiles.size, tiles.channels, tiles.dtype) == (8, 3, np.uint8)
  for i, name in enumerate(tiles.id):
    np.testing.assert_array_equal(tiles.read(i), images[name])
  called = from_folders(tmp_path, lambda name: name[-1])
  assert called.group.tolist() == ['0', '1', '2'] * 2
  with pytest.raises(TileError, match='6 problem') as error:
    from_folders(tmp_path, lambda name: '')
  assert 'p0_no0.png: its name tells no patient or slide' in str(error.value)


def test_what_makes_a_tile_of_an_image(tmp_path):
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
  clear = np.dstack([picture(0), np.full((8, 8), 128, np.uint8)])
  (tmp_path / 'a/1.png').write_bytes(encoded(clear))
  smooth = np.full((8, 8, 3), (200, 90, 30), np.uint8)
  (tmp_path / 'b/2.JPG').write_bytes(encoded(smooth, 'JPEG'))
  grey = picture(1, (8, 8))
  (tmp_path / 'b/3.png').write_bytes(encoded(grey))
  tiles = from_folders(tmp_path)
  assert tiles.group.tolist() == ['1', '2', '3']
  on_white = clear[..., :3] * (128 / 255) + 255 * (1 - 128 / 255)
  np.testing.assert_allclose(tiles.read(0), on_white, atol=1)
  np.testing.assert_allclose(tiles.read(1), smooth, atol=3)
  np.testing.assert_array_equal(tiles.read(2), np.dstack([grey] * 3))
  for path in ('a/1.png', 'b/2.JPG'):
    (tmp_path / path).unlink()
  (tmp_path / 'a/1.png').write_bytes(encoded(grey))
  tiles = from_folders(tmp_path)
  assert tiles.channels == 1
  np.testing.assert_array_equal(tiles.read(1), grey[..., None])
  Image.fromarray(grey.astype(np.uint16)).save(tmp_path / 'a/4.png')
  with pytest.raises(TileError, match=r'4\.png: mode I;16'):
    from_folders(tmp_path)


def test_all_that_is_wrong_with_folders_is_named_at_once(tmp_path):
  images = write_folders(tmp_path)
  (tmp_path / 'maybe').mkdir()
  (tmp_path / 'no/p9_large.png').write_bytes(encoded(picture(0, (9, 9, 3))))
  (tmp_path / 'no/p9_wide.png').write_bytes(encoded(picture(0, (5, 12, 3))))
  (tmp_path / 'yes/p9_text.png').write_bytes(b'no image at all')
  (tmp_path / 'yes/p9_void.png').write_bytes(b'')
  with pytest.raises(TileError, match='5 problem') as error:
    from_folders(tmp_path)
  for found in (
    'maybe: no image',
    'p9_large.png: 9 x 9 px; tiles are squares of 8 px here',
    'p9_wide.png: 12 x 5 px',
    'p9_text.png: not an image',
    'p9_void.png: not an image',
  ):
    assert found in str(error.value)
  assert not any(name in str(error.value) for name in images)
  with pytest.raises(TileError, match='no such folder'):
    from_folders(tmp_path / 'nowhere')
  shutil.rmtree(tmp_path / 'no')
  shutil.rmtree(tmp_path / 'maybe')
  with pytest.raises(TileError, match=r'1 folder\(s\) in it'):
    from_folders(tmp_path)


def test_tiles_cut_at_a_border_are_left_out_with_a_warning(tmp_path):
  images = write_folders(tmp_path)
  (tmp_path / 'no/p9_cut.png').write_bytes(encoded(picture(0, (8, 3, 3))))
  (tmp_path / 'no/p9_corner.png').write_bytes(encoded(picture(0, (2, 7, 3))))
  with pytest.warns(UserWarning, match=r'2 of 8 tiles .*p9_co'):
    tiles = from_folders(tmp_path)
  assert tiles.id.tolist() == sorted(images)
  np.testing.assert_array_equal(tiles.read(5), images[tiles.id[5]])


def test_a_pool_is_all_images_below_a_folder(tmp_path):
  def write(name, *shape):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(0, *shape)))

  names = ('a_1.png', 's1/x.png', 's1/deep/y.jpg', 's2/x.png')
  for name in (*names, '.hidden/x.png'):
    write(name)
  (tmp_path / 'notes.txt').write_text('no tile')
  find = lambda: tile_sources.from_pool(tmp_path, ('neg', 'pos'))
  assert find().id.tolist() == sorted(names)
  assert find().group.tolist() == ['a', 's1', 's1', 's2']
  assert find().load(np.arange(4)).shape == (4, 8, 8, 3)
  write('s3/small.png', (3, 3, 3))
  with pytest.warns(UserWarning, match=r'1 of 5 tiles are left out.*small'):
    assert len(find()) == 4
  (tmp_path / 's2/broken.png').write_bytes(b'none')
  with pytest.raises(TileError, match=r'broken\.png: not an image'):
    find()
  with pytest.raises(TileError, match='no image'):
    tile_sources.from_pool(tmp_path / 'empty', ('neg', 'pos'))


def test_a_table_labels_a_zip_whatever_its_order(tmp_path):
  rows = rows_of()
  images = {r['zip_path']: picture(i) for i, r in enumerate(rows)}
  tiles = from_zip(*write_zip(tmp_path))
  assert tiles.id.tolist() == sorted(images)
  assert tiles.classes == ('0', '1', '2', '10')
  for i, name in enumerate(tiles.id):
    row = next(r for r in rows if r['zip_path'] == name)
    assert tiles.classes[tiles.label[i]] == row['label']
    assert tiles.group[i] == row['patient']
    assert tiles.xy[i].tolist() == [int(row['x']), int(row['y'])]
    np.testing.assert_array_equal(tiles.read(i), images[name])
  again = from_zip(
    *write_zip(
      tmp_path,
      rows[::-1],
      {name: encoded(image) for name, image in images.items()},
    )
  )
  for column in ('id', 'label', 'group', 'xy'):
    np.testing.assert_array_equal(
      getattr(again, column), getattr(tiles, column)
    )


def test_rows_and_files_that_do_not_match_are_named_at_once(tmp_path):
  rows = rows_of()
  files = {r['zip_path']: encoded(picture(i)) for i, r in enumerate(rows)}
  del files['2/t5.png']
  files['0/lone.png'] = encoded(picture(0))
  files['__MACOSX/0/._t1.png'] = files['readme.txt'] = b'x'
  rows[1]['x'], rows[2]['y'], rows[3]['label'] = '1.5', '', ' '
  rows.append(rows[4])
  with pytest.raises(TileError, match='6 problem') as error:
    from_zip(*write_zip(tmp_path, rows, files))
  for found in (
    'line 3 (1/t1.png): x',
    'line 4 (2/t2.png): empty y',
    'line 5 (0/t3.png): empty label',
    'line 7 (2/t5.png): no such file in tiles.zip',
    'line 8 (1/t4.png): a second row',
    'tiles.zip: 0/lone.png has no row in index.csv',
  ):
    assert found in str(error.value)


def test_a_table_or_zip_that_cannot_be_read_is_named(tmp_path):
  archive, table = write_zip(tmp_path)
  with pytest.raises(TileError, match=r'nothing\.csv: cannot be read as CSV'):
    from_zip(archive, tmp_path / 'nothing.csv')
  with pytest.raises(TileError, match=r'index\.csv: cannot be read as a zip'):
    from_zip(table, table)
  archive.write_bytes(archive.read_bytes()[:-40])
  with pytest.raises(TileError, match=r'tiles\.zip: cannot be read as a zip'):
    from_zip(archive, table)
  with pytest.raises(TileError, match=r'index\.csv: no column patient, label;'):
    from_zip(*write_zip(tmp_path, columns=('x', 'y', 'zip_path')))
  with pytest.raises(TileError, match='no tile'):
    from_zip(*write_zip(tmp_path, [], {}))
  table.write_bytes(b'\xff\xfe\x00')
  with pytest.raises(TileError, match='cannot be read as CSV'):
    from_zip(archive, table)


def test_a_truncated_image_is_named_with_its_row_when_it_is_read(tmp_path):
  rows = rows_of()
  files = {r['zip_path']: encoded(picture(i)) for i, r in enumerate(rows)}
  files['1/t4.png'] = files['1/t4.png'][:120]
  tiles = from_zip(*write_zip(tmp_path, rows, files))
  with pytest.raises(
    TileError, match=r'index\.csv line 6 \(1/t4\.png\): cannot be decoded'
  ):
    tiles.pixels  # noqa: B018
  assert tiles.take(tiles.id != '1/t4.png').pixels.shape == (5, 8, 8, 3)


def test_real_tiles_carry_their_place_in_their_name(real_data):
  folder = real_data / 'idc_breast'
  with pytest.warns(UserWarning, match='26 of 3361'):
    tiles = tile_sources.from_zip(
      folder / 'idc_tiles.zip', folder / 'index.csv'
    )
  assert len(tiles) == 3335 and tiles.size == 50 and tiles.channels == 3
  for i in (0, 1700, 3334):
    patient, x, y, label = (
      tiles.group[i],
      *tiles.xy[i],
      tiles.classes[tiles.label[i]],
    )
    name = f'{patient}/{label}/{patient}_idx5_x{x}_y{y}_class{label}.png'
    assert tiles.id[i] == name
    assert tiles.read(i).std() > 1
