"""Images with masks: what is read, and every input that is refused."""

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


@pytest.fixture
def folder(tmp_path):
  for name in ('images', 'masks'):
    (tmp_path / name).mkdir()
  for i, name in enumerate('abcd'):
    pixels = picture(i, (50 + i, 60, 3))
    (tmp_path / f'images/{name}.png').write_bytes(encoded(pixels))
    if name != 'b':
      marked = slice(10, 20) if name in 'ac' else slice(0)
      save_mask(tmp_path, name, (50 + i, 60), marked)
  write(tmp_path, ROWS)
  return tmp_path


def save_mask(folder, name, shape, rows=slice(None)):
  mask = np.zeros(shape, np.uint8)
  mask[rows, 5:9] = 255
  (folder / f'masks/{name}.png').write_bytes(encoded(mask))


def write(folder, rows, header=(*node_images.COLUMNS, 'label')):
  write_rows(folder / 'images.csv', [header, *rows])


def load(folder, **options):
  names = ('images', 'masks', 'images.csv')
  return node_images.load(*(folder / name for name in names), **options)


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
  pixels, mask = load(folder, mpp=2.0).read(0)  # At 1 um per pixel, too.
  assert pixels.shape == (100, 120, 3)
  assert mask[20:40, 10:18].all() and mask.sum() == 160


def test_transparent_pixels_are_glass_and_palettes_are_colours(folder):
  path = folder / 'images/a.png'
  clear = Image.open(path).convert('RGBA')
  clear.putalpha(0)
  clear.save(path)
  assert (load(folder).read(0)[0] == 255).all()
  Image.new('P', (60, 50), 1).save(path)
  assert load(folder).read(0)[0].shape == (50, 60, 3)


def swap(row, column, value):
  rows = [list(r) for r in ROWS]
  rows[row][column] = value
  return lambda folder: write(folder, rows)


@pytest.mark.parametrize(
  'damage, words',
  [
    (
      lambda f: save_mask(f, 'a', (60, 50)),
      'masks/a.png: 50 x 60 pixels; its image has 60 x 50',
    ),
    (
      lambda f: (f / 'masks/c.png').unlink(),
      'images/c.png has no mask in .*masks: add one',
    ),
    (lambda f: (f / 'masks/d.png').unlink(), 'images/d.png has no mask'),
    (
      lambda f: save_mask(f, 'c', (52, 60), slice(0)),
      'masks/c.png is empty, but the label is positive',
    ),
    (
      lambda f: save_mask(f, 'b', (51, 60)),
      'masks/b.png marks tumour, but the label is negative',
    ),
    (
      lambda f: (f / 'images/a.png').unlink(),
      'images/a.png or .tif is missing',
    ),
    (
      lambda f: Image.new('RGB', (60, 50)).save(f / 'images/a.tif'),
      'a.png and .*a.tif: which of them',
    ),
    (
      lambda f: (f / 'images/d.png').write_bytes(encoded(picture(0))[:80]),
      'images/d.png: cannot be read as an image',
    ),
    (
      lambda f: Image.new('I;16', (60, 50)).save(f / 'images/a.png'),
      'images/a.png: found pixels of kind I;16',
    ),
    (
      lambda f: Image.new('RGBA', (60, 50)).save(f / 'masks/a.png'),
      'masks/a.png: found pixels of kind RGBA',
    ),
    (
      lambda f: Image.new('RGB', (39, 50)).save(f / 'images/a.png'),
      'images/a.png: 39 x 50 pixels of 1 um hold no window of 40 um',
    ),
    (
      lambda f: (f / 'images.csv').unlink(),
      'images.csv: cannot be read as CSV',
    ),
    (lambda f: write(f, []), r'images.csv: 1 prob[^\n]*\n  no rows'),
    (
      lambda f: write(f, [r[:2] for r in ROWS], ('image_id', 'patient_id')),
      'no column part; found image_id, patient_id',
    ),
    (swap(1, 1, ''), 'row 3: empty patient_id'),
    (swap(0, 2, 'train'), "row 2: part 'train' is not develop"),
    (swap(0, 3, '1'), "row 2: label '1' is not negative or"),
    (swap(0, 0, '../a'), "image_id '../a' is no file name"),
    (swap(1, 0, 'a'), 'image a: 2 rows'),
    (swap(2, 1, 'p1'), 'patient p1 is in both parts'),
    (
      lambda f: write(f, ROWS[:3]),
      'the test part has no negative image; both need both',
    ),
    (
      lambda f: write(f, ROWS[1:]),
      'the development part has no positive image',
    ),
  ],
)
def test_what_cannot_be_used_is_named(folder, damage, words):
  load(folder)  # It is the damage that breaks it.
  damage(folder)
  with pytest.raises(ImageError, match=words) as error:
    load(folder)
  assert len(str(error.value).splitlines()) <= 2


def test_all_faults_are_told_at_once(folder):
  (folder / 'images/a.png').write_text('hello')
  (folder / 'masks/c.png').unlink()
  with pytest.raises(ImageError, match=r'a.png: cannot[^\n]*\n.*c.png has no'):
    load(folder)
