"""Images with masks: what is read, and every input that is refused."""

import io

import numpy as np
from PIL import Image
import pytest
from samples import encoded, picture, write_rows

from data import node_images
from data.node_images import ImageError

# Two patients, both with a positive and a negative image.
ROWS = [
  ['a', 'p1', 'development', ''],
  ['b', 'p1', 'development', 'negative'],
  ['c', 'p2', 'test', 'positive'],
  ['d', 'p2', 'test', ''],
]


def mask(height, width, rows=slice(None)):
  """A file that marks tumour in some rows."""
  pixels = np.zeros((height, width), np.uint8)
  pixels[rows, 5:9] = 255
  return encoded(pixels)


def blank(mode, width=60, height=50, kind='PNG'):
  file = io.BytesIO()
  Image.new(mode, (width, height), 1).save(file, kind)
  return file.getvalue()


@pytest.fixture
def folder(tmp_path):
  for name in ('images', 'masks'):
    (tmp_path / name).mkdir()
  for i, name in enumerate('abcd'):
    pixels = picture(i, (50 + i, 60, 3))
    (tmp_path / f'images/{name}.png').write_bytes(encoded(pixels))
    if name != 'b':
      marked = slice(10, 20) if name in 'ac' else slice(0)
      (tmp_path / f'masks/{name}.png').write_bytes(mask(50 + i, 60, marked))
  write(tmp_path, ROWS)
  return tmp_path


def write(folder, rows, header=(*node_images.COLUMNS, 'label')):
  write_rows(folder / 'images.csv', [header, *rows])


def load(folder, **options):
  names = ('images', 'masks', 'images.csv')
  return node_images.load(*(folder / name for name in names), **options)


def test_patients_that_are_spelled_apart_are_warned_of(folder):
  write(folder, [['a', 'P01', *ROWS[0][2:]], *ROWS[1:]])
  with pytest.warns(
    UserWarning, match='cases P01 and p1 look like one patient'
  ):
    load(folder)


def test_an_image_of_two_patients_is_a_leak(folder):
  Image.open(folder / 'images/a.png').save(folder / 'images/e.tif')
  (folder / 'masks/e.png').write_bytes((folder / 'masks/a.png').read_bytes())
  write(folder, [*ROWS, ['e', 'p1', *ROWS[0][2:]]])
  load(folder)  # Of one patient.
  write(folder, [*ROWS, ['e', 'p3', 'test', '']])
  with pytest.raises(ImageError, match=r'a\.png, .*e\.tif: one image of sev'):
    load(folder)


def test_images_come_with_masks_parts_and_labels(folder):
  write(folder, ROWS[::-1])  # The order of rows is immaterial.
  images = load(folder)
  assert images.id.tolist() == list('abcd')
  assert images.patient.tolist() == ['p1', 'p1', 'p2', 'p2']
  assert images.test.tolist() == [False, False, True, True]
  assert images.positive.tolist() == [True, False, True, False]
  for row, name in enumerate('abcd'):
    pixels, mask = images.read(row)
    np.testing.assert_array_equal(pixels, picture(row, (50 + row, 60, 3)))
    assert mask.shape == pixels.shape[:2]
    assert mask.sum() == (40 if name in 'ac' else 0)
  (folder / 'masks/a.png').rename(folder / 'masks/a.Png')
  pixels, mask = load(folder, mpp=2.0).read(0)  # At 1 um per pixel, too.
  assert pixels.shape == (100, 120, 3)
  assert mask[20:40, 10:18].all() and mask.sum() == 160


def test_a_scale_that_makes_an_image_too_large_is_named(folder):
  with pytest.raises(ImageError, match=r'a\.png: 37500 x 31250.* 625 um wide'):
    load(folder, mpp=625)


def test_transparent_pixels_are_glass_and_palettes_are_colours(folder):
  path = folder / 'images/a.png'
  clear = Image.open(path).convert('RGBA')
  clear.putalpha(0)
  clear.save(path)
  assert (load(folder).read(0)[0] == 255).all()
  Image.new('P', (60, 50), 1).save(path)
  assert load(folder).read(0)[0].shape == (50, 60, 3)


@pytest.mark.parametrize(
  'name, content, words',
  [
    ('masks/a.png', mask(60, 50), '50 x 60 pixels, but its image has 60 x 50'),
    ('masks/c.png', None, 'images/c.png has no mask in .*masks: add one'),
    ('masks/d.png', None, 'images/d.png has no mask'),
    ('masks/c.png', mask(52, 60, slice(0)), 'is empty, but the label is posit'),
    ('masks/b.png', mask(51, 60), 'marks tumour, but the label is negative'),
    ('images/a.png', None, 'images/a.png or .tif is missing'),
    ('images/a.png', 'images/a.JPG', r'missing\. There is .*/images/a\.JPG'),
    ('images/a.png', 'images/A.png', r'missing\. There is .*/images/A\.png'),
    ('masks/c.png', 'masks/c.bmp', r'is negative\. There is .*/masks/c\.bmp'),
    ('images/a.tif', blank('RGB', kind='TIFF'), 'a.tif: which of them'),
    ('images/d.png', blank('RGB')[:80], 'd.png: cannot be read as an image'),
    ('images/a.png', blank('I;16'), 'a.png: found pixels of kind I;16'),
    ('masks/a.png', blank('CMYK', kind='TIFF'), 'pixels of kind CMYK'),
    ('masks/a.png', blank('RGBA'), 'a.png: marks nothing but by transparency'),
    ('images/a.png', blank('RGB', 39), '39 x 50 pixels of 1 um hold no window'),
  ],
)
def test_files_that_cannot_be_used_are_named(folder, name, content, words):
  load(folder)  # It is the damage that breaks it.
  if content is None:
    (folder / name).unlink()
  elif isinstance(content, str):
    (folder / name).rename(folder / content)
  else:
    (folder / name).write_bytes(content)
  with pytest.raises(ImageError, match=words) as error:
    load(folder)
  assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
  'row, column, value, words',
  [
    (1, 1, '', 'row 3: empty patient_id'),
    (0, 2, 'train', "row 2: part 'train' is not develop"),
    (0, 3, '1', "row 2: label '1' is not negative or"),
    (0, 0, '../a', "image_id '../a' is no file name"),
    (0, 0, 'a' * 999, 'a{999}.png or .tif is missing'),
    (1, 0, 'a', 'image a: 2 rows'),
    (2, 1, 'p1', 'patient p1 is in both parts'),
  ],
)
def test_cells_that_cannot_be_used_are_named(folder, row, column, value, words):
  rows = [list(r) for r in ROWS]
  rows[row][column] = value
  write(folder, rows)
  with pytest.raises(ImageError, match=words):
    load(folder)


@pytest.mark.parametrize(
  'rows, words',
  [
    (slice(0), r'images.csv: 1 prob[^\n]*\n  no rows'),
    (slice(3), 'the test part has no negative image. Both parts need both'),
    (slice(1, 4), 'the development part has no positive image'),
  ],
)
def test_tables_without_an_image_of_each_kind_are_refused(folder, rows, words):
  write(folder, ROWS[rows])
  with pytest.raises(ImageError, match=words):
    load(folder)


def test_all_faults_are_listed_at_once(folder):
  (folder / 'images/d.png').unlink()
  (folder / 'images/d.png').symlink_to('gone.png')
  with pytest.raises(ImageError, match=r'd\.png: a link to gone\.png, which'):
    load(folder)
  (folder / 'images/a.png').write_text('hello')
  (folder / 'masks/c.png').unlink()
  with pytest.raises(ImageError, match=r'a.png: cannot[^\n]*\n.*c.png has no'):
    load(folder)
