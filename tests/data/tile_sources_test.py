"""Tiles in folders and zip files: what is there is read, the rest is named."""

import io
import shutil
import zipfile

from hypothesis import given, settings, strategies as st
import numpy as np
from PIL import Image
import pytest
from samples import encoded, picture, write_rows

from data import tile_sources
from data.labelled_tiles import TileError
from data.tile_sources import COLUMNS, from_folders, from_zip


def write_tile(root, name, *args):
  """Writes an image as `picture(*args)` is, and returns its pixels."""
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  image = picture(*args)
  path.write_bytes(encoded(image))
  return image


def write_folders(root):
  """Six tiles of two classes; returns them by id."""
  return {
    name: write_tile(root, name, i)
    for i, name in enumerate(
      f'{kind}/p{k}_{kind}{k}.png' for kind in ('no', 'yes') for k in range(3)
    )
  }


def rows_of(n=6):
  """Rows of `COLUMNS`; labels in no order."""
  return [
    [f'0{i % 3}', 50 * i + 1, -i, '210'[i % 3] if i else '10', f'{i % 3}/t{i}']
    for i in range(n)
  ]


def write_zip(root, rows=None, content=None):
  """A zip file and its table; `content` of files beside or instead of them."""
  rows = rows_of() if rows is None else rows
  files = {row[-1]: encoded(picture(i)) for i, row in enumerate(rows)}
  with zipfile.ZipFile(root / 'tiles.zip', 'w') as archive:
    for name, one in (files | (content or {})).items():
      if one is not None:
        archive.writestr(name, one)
  return root / 'tiles.zip', write_rows(root / 'index.csv', [COLUMNS, *rows])


def test_folders_are_classes_and_names_begin_with_the_group(tmp_path):
  images = write_folders(tmp_path)
  (tmp_path / '.cache').mkdir()
  (tmp_path / 'no/.hidden.png').write_bytes(b'x')
  (tmp_path / 'no/p0_no0.bmp').write_text('x')
  with pytest.warns(UserWarning, match=r'left out, .*\.jpeg: p0_no0\.bmp\. C'):
    tiles = from_folders(tmp_path)
  (tmp_path / 'no/p0_no0.bmp').unlink()
  assert tiles.id.tolist() == list(images)
  assert tiles.classes == ('no', 'yes')
  assert tiles.label.tolist() == [0, 0, 0, 1, 1, 1]
  assert tiles.group.tolist() == ['p0', 'p1', 'p2'] * 2
  assert (tiles.size, tiles.channels, tiles.dtype) == (8, 3, np.uint8)
  np.testing.assert_array_equal(tiles.pixels, list(images.values()))
  called = from_folders(tmp_path, lambda name: name[-1])
  assert called.group.tolist() == ['0', '1', '2'] * 2
  with pytest.raises(TileError, match='6 problem') as error:
    from_folders(tmp_path, lambda name: '')
  assert 'p0_no0.png: its name tells no patient or slide' in str(error.value)


def test_what_makes_a_tile_of_an_image(tmp_path):
  clear = np.dstack([picture(0), np.full((8, 8), 128, np.uint8)])
  smooth = np.full((8, 8, 3), (200, 90, 30), np.uint8)
  grey = write_tile(tmp_path, 'a/3.png', 1, (8, 8))
  write_tile(tmp_path, 'b/4.png', 1, (8, 8))
  tiles = from_folders(tmp_path)
  assert tiles.channels == 3  # Networks are of RGB.
  np.testing.assert_array_equal(tiles.read(0), np.dstack([grey] * 3))
  (tmp_path / 'a/1.png').write_bytes(encoded(clear))
  (tmp_path / 'a/2.JPG').write_bytes(encoded(smooth, 'JPEG'))
  with pytest.warns(UserWarning, match='each tile counts as a patient or sli'):
    tiles = from_folders(tmp_path)
  assert tiles.group.tolist() == ['1', '2', '3', '4']
  on_white = clear[..., :3] * (128 / 255) + 255 * (1 - 128 / 255)
  np.testing.assert_allclose(tiles.read(0), on_white, atol=1)
  np.testing.assert_allclose(tiles.read(1), smooth, atol=3)
  np.testing.assert_array_equal(tiles.read(2), np.dstack([grey] * 3))
  Image.fromarray(grey.astype(np.uint16)).save(tmp_path / 'a/4.png')
  with pytest.raises(TileError, match=r'4\.png: mode I;16'):
    from_folders(tmp_path)


def test_all_that_is_wrong_with_folders_is_named_at_once(tmp_path):
  images = write_folders(tmp_path)
  (tmp_path / 'maybe').mkdir()
  write_tile(tmp_path, 'no/p9_large.png', 0, (9, 9, 3))
  write_tile(tmp_path, 'no/p9_wide.png', 0, (5, 12, 3))
  (tmp_path / 'yes/p9_text.png').write_bytes(b'no image at all')
  with pytest.raises(TileError, match='4 problem') as error:
    from_folders(tmp_path)
  for words in (
    'maybe: no image',
    'p9_large.png: 9 x 9 px, but tiles are squares of 8 px here',
    'p9_wide.png: 12 x 5 px',
    'p9_text.png: not an image',
  ):
    assert words in str(error.value)
  assert not any(name in str(error.value) for name in images)
  with pytest.raises(TileError, match='no such folder'):
    from_folders(tmp_path / 'nowhere')
  shutil.rmtree(tmp_path / 'no')
  shutil.rmtree(tmp_path / 'maybe')
  with pytest.raises(TileError, match=r'1 folder\(s\) in it'):
    from_folders(tmp_path)


def test_tiles_cut_at_a_border_are_left_out_with_a_warning(tmp_path):
  images = write_folders(tmp_path)
  write_tile(tmp_path, 'no/p9_cut.png', 0, (8, 3, 3))
  write_tile(tmp_path, 'no/p9_corner.png', 0, (2, 7, 3))
  with pytest.warns(UserWarning, match=r'2 of 8 tiles .*p9_co'):
    tiles = from_folders(tmp_path)
  assert tiles.id.tolist() == list(images)
  np.testing.assert_array_equal(tiles.read(5), images[tiles.id[5]])


def test_a_pool_is_all_images_below_a_folder(tmp_path):
  names = ('a_1.png', 's1/deep/y.jpg', 's1/x.png', 's2/x.png')
  for name in (*names, '.hidden/x.png'):
    write_tile(tmp_path, name, 0)
  for name in 'Thumbs.db', 'desktop.ini', 'notes.txt':
    (tmp_path / name).write_text('no tile')
  with pytest.warns(UserWarning, match=r'left out, .*\.jpeg: notes\.txt\. C'):
    pool = tile_sources.from_pool(tmp_path, ('neg', 'pos'))
  assert pool.id.tolist() == list(names) and not pool.label.any()
  assert pool.group.tolist() == ['a', 's1', 's1', 's2']
  with pytest.raises(TileError, match='no image'):
    tile_sources.from_pool(tmp_path / 'empty', ('neg', 'pos'))


@pytest.mark.parametrize('step', [1, -1])
def test_a_table_labels_a_zip_whatever_its_order(tmp_path, step):
  rows = rows_of()
  images = {row[-1]: picture(i) for i, row in enumerate(rows)}
  content = {name: encoded(image) for name, image in images.items()}
  tiles = from_zip(*write_zip(tmp_path, rows[::step], content))
  assert tiles.id.tolist() == sorted(images)
  assert tiles.classes == ('0', '1', '2', '10')
  for i, name in enumerate(tiles.id):
    patient, x, y, label, _ = next(row for row in rows if row[-1] == name)
    assert tiles.classes[tiles.label[i]] == label
    assert tiles.group[i] == patient
    assert tiles.xy[i].tolist() == [x, y]
    np.testing.assert_array_equal(tiles.read(i), images[name])


def test_patients_that_are_spelled_apart_are_warned_of(tmp_path):
  rows = rows_of()
  rows[0][0], rows[1][0] = 'C3N-00001-21', 'C3N-00001-22'
  with pytest.warns(UserWarning, match='C3N-00001-22 look like one patient'):
    assert len(from_zip(*write_zip(tmp_path, rows)).id) == len(rows)
  for name in ('no/P1_a.png', 'no/p01_b.png', 'yes/x_c.png'):
    write_tile(tmp_path / 'tiles', name, 0)
  for read in (from_folders, lambda root: tile_sources.from_pool(root, 'ab')):
    root = tmp_path / 'tiles'
    with pytest.warns(UserWarning, match='cases P1 and p01 look like one'):
      read(root if read is from_folders else root / 'no')


def test_classes_that_are_spelled_apart_are_named(tmp_path):
  rows = rows_of()
  rows[0][3] = '1.0'
  with pytest.raises(TileError, match=r'classes 1 and 1\.0 are spelled apart'):
    from_zip(*write_zip(tmp_path, rows))
  for name in ('Non-tumor/a_a.png', 'nontumor/b_b.png', 'tumor/c_c.png'):
    write_tile(tmp_path / 'tiles', name, 0)
  with pytest.raises(TileError, match='classes Non-tumor and nontumor are'):
    from_folders(tmp_path / 'tiles')


def test_rows_and_files_that_do_not_match_are_named_at_once(tmp_path):
  rows = rows_of()
  rows[1][1], rows[2][2], rows[3][3] = '1.5', '', ' '
  rows.append(rows[4])
  image = encoded(picture(0))
  content = {'2/t5': None, '0/lone.png': image, 'readme.txt': b'x'}
  content['__MACOSX/0/._t1.png'] = b'x'
  with pytest.raises(TileError, match='6 problem') as error:
    from_zip(*write_zip(tmp_path, rows, content))
  for words in (
    'line 3 (1/t1): x',
    'line 4 (2/t2): empty y',
    'line 5 (0/t3): empty label',
    'line 7 (2/t5): no such file in tiles.zip',
    'line 8 (1/t4): a second row',
    'tiles.zip: 0/lone.png has no row in index.csv',
  ):
    assert words in str(error.value)
  with pytest.raises(TileError, match='no tile'):
    from_zip(*write_zip(tmp_path, []))
  archive, table = write_zip(tmp_path)
  with zipfile.ZipFile(archive, 'a') as more, pytest.warns(match='Duplicate'):
    more.writestr('0/t0', image)
  with pytest.raises(TileError, match=r'.0/t0.: 2 such files in tiles\.zip'):
    from_zip(archive, table)


def test_real_tiles_carry_their_place_in_their_name(real_data):
  folder = real_data / 'idc_breast'
  with pytest.warns(UserWarning, match='26 of 3361'):
    tiles = from_zip(folder / 'idc_tiles.zip', folder / 'index.csv')
  assert len(tiles) == 3335 and tiles.size == 50 and tiles.channels == 3
  for i in (0, 1700, 3334):
    patient, (x, y) = tiles.group[i], tiles.xy[i]
    label = tiles.classes[tiles.label[i]]
    name = f'{patient}/{label}/{patient}_idx5_x{x}_y{y}_class{label}.png'
    assert tiles.id[i] == name
    assert tiles.read(i).std() > 1


def changed(content, at, value):
  """A file of which one byte is another."""
  whole = bytearray(content)
  whole[at % len(whole)] = value
  return bytes(whole)


WHOLE = encoded(picture(4))
PLACE, BYTE = st.integers(0, 2000), st.integers(0, 255)
IMAGES = st.one_of(
  st.binary(max_size=200),
  st.builds(changed, st.just(WHOLE), PLACE, BYTE),
  st.builds(lambda n: WHOLE[:n], st.integers(0, 280)),
)


@settings(max_examples=40)
@given(content=IMAGES)
def test_any_bytes_are_an_image_or_a_named_fault(content, tmp_path_factory):
  root = tmp_path_factory.mktemp('fuzz')
  try:
    pixels = from_zip(*write_zip(root, content={'1/t4': content})).pixels
  except TileError as error:
    assert 'index.csv line 6 (1/t4)' in str(error)
  else:
    assert pixels.shape == (6, 8, 8, 3)
    with Image.open(io.BytesIO(content)) as image:
      np.testing.assert_array_equal(pixels[3], image.convert('RGB'))


@settings(max_examples=15)
@given(table=st.text(max_size=120), zipped=st.binary(max_size=200))
def test_any_table_and_any_bytes_for_a_zip_end_in_a_named_fault(
  table, zipped, tmp_path_factory
):
  archive, path = write_zip(tmp_path_factory.mktemp('fuzz'))
  content = (','.join(COLUMNS) + '\n' + table).encode('utf-8', 'surrogatepass')
  path.write_bytes(content)
  with pytest.raises(TileError, match=r'index\.csv'):
    from_zip(archive, path)
  write_zip(path.parent)
  archive.write_bytes(zipped)
  with pytest.raises(TileError, match=r'tiles\.zip'):
    from_zip(archive, path)


@settings(max_examples=40)
@given(place=PLACE, value=BYTE)
def test_a_zip_with_a_changed_byte_gives_no_other_pixels(
  place, value, tmp_path_factory
):
  archive, path = write_zip(tmp_path_factory.mktemp('fuzz'))
  expected = from_zip(archive, path).pixels
  archive.write_bytes(changed(archive.read_bytes(), place, value))
  try:
    pixels = from_zip(archive, path).pixels
  except TileError as error:
    assert 'tiles.zip' in str(error) or 'index.csv' in str(error)
  else:  # The change was to what nobody reads.
    np.testing.assert_array_equal(pixels, expected)
