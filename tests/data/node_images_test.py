"""Images with masks: what is read, and every input that is refused."""

import csv

import numpy as np
from PIL import Image
import pytest

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
  rng = np.random.default_rng(0)
  for name in ('images', 'masks'):
    (tmp_path / name).mkdir()
  for i, name in enumerate('abcd'):
    shape = (50 + i, 60)
    pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f'images/{name}.png')
    mask = np.zeros(shape, np.uint8)
    if name in 'ac':
      mask[10:20, 5:9] = 255
    if name != 'b':
      Image.fromarray(mask).save(tmp_path / f'masks/{name}.png')
  write(tmp_path, ROWS)
  return tmp_path


def write(folder, rows, header=(*node_images.COLUMNS, 'label')):
  with (folder / 'images.csv').open('w', newline='') as f:
    csv.writer(f).writerows([header, *rows])


def load(folder, **options):
  return node_images.load(
    folder / 'images', folder / 'masks', folder / 'images.csv', **options
  )


def test_images_come_with_masks_parts_and_labels(folder):
  write(folder, ROWS[::-1])  # The order of rows is immaterial.
  images = load(folder)
  assert images.id.tolist() == list('abcd')
  assert images.patient.tolist() == ['p1', 'p1', 'p2', 'p2']
  assert images.test.tolist() == [False, False, True, True]
  assert images.positive.tolist() == [True, False, True, False]
  for row, name in enumerate('abcd'):
    pixels, mask = images.read(row)
    want = np.asarray(Image.open(folder / f'images/{name}.png'))
    np.testing.assert_array_equal(pixels, want)
    assert mask.shape == want.shape[:2]
    assert mask.sum() == (40 if name in 'ac' else 0)


def test_other_resolutions_are_brought_to_one_um_per_pixel(folder):
  pixels, mask = load(folder, mpp=2.0).read(0)
  assert pixels.shape == (100, 120, 3)
  assert mask[20:40, 10:18].all() and mask.sum() == 160  # The same um2.


def test_transparent_pixels_are_glass_and_palettes_are_colours(folder):
  path = folder / 'images/a.png'
  clear = Image.open(path).convert('RGBA')
  clear.putalpha(0)
  clear.save(path)
  assert (load(folder).read(0)[0] == 255).all()
  Image.new('P', (60, 50), 1).save(path)
  assert load(folder).read(0)[0].shape == (50, 60, 3)


def save_mask(folder, name, shape, value=255):
  mask = np.full(shape, value, np.uint8)
  Image.fromarray(mask).save(folder / f'masks/{name}.png')


def cut_short(path):
  path.write_bytes(path.read_bytes()[:200])


def swap(row, column, value):
  rows = [list(r) for r in ROWS]
  rows[row][column] = value
  return lambda folder: write(folder, rows)


BROKEN = {
  'mask of another size': (
    lambda f: save_mask(f, 'a', (60, 50)),
    r'masks/a.png: 50 x 60 pixels; its image has 60 x 50',
  ),
  'positive without mask': (
    lambda f: (f / 'masks/c.png').unlink(),
    r'images/c.png has no mask in .*masks: add one',
  ),
  'unknown without mask': (
    lambda f: (f / 'masks/d.png').unlink(),
    r'images/d.png has no mask',
  ),
  'positive with an empty mask': (
    lambda f: save_mask(f, 'c', (52, 60), 0),
    r'masks/c.png is empty, but the label is positive',
  ),
  'negative with tumour': (
    lambda f: save_mask(f, 'b', (51, 60)),
    r'masks/b.png marks tumour, but the label is negative',
  ),
  'no image': (
    lambda f: (f / 'images/a.png').unlink(),
    r'images/a.png or .tif is missing',
  ),
  'two images': (
    lambda f: Image.new('RGB', (60, 50)).save(f / 'images/a.tif'),
    r'a.png and .*a.tif: which of them',
  ),
  'truncated image': (
    lambda f: cut_short(f / 'images/d.png'),
    r'images/d.png: cannot be read as an image',
  ),
  'text for an image': (
    lambda f: (f / 'images/d.png').write_text('hello'),
    r'images/d.png: cannot be read as an image',
  ),
  '16-bit image': (
    lambda f: Image.new('I;16', (60, 50)).save(f / 'images/a.png'),
    r'images/a.png: found pixels of kind I;16',
  ),
  'mask with transparency': (
    lambda f: Image.new('RGBA', (60, 50)).save(f / 'masks/a.png'),
    r'masks/a.png: found pixels of kind RGBA',
  ),
  'image smaller than a window': (
    lambda f: Image.new('RGB', (39, 50)).save(f / 'images/a.png'),
    r'images/a.png: 39 x 50 pixels of 1 um hold no window of 40 um',
  ),
  'no table': (
    lambda f: (f / 'images.csv').unlink(),
    r'images.csv: cannot be read as CSV',
  ),
  'no rows': (lambda f: write(f, []), r'images.csv: 1 prob[^\n]*\n  no rows'),
  'no column': (
    lambda f: write(f, [r[:2] for r in ROWS], ('image_id', 'patient_id')),
    r'no column part; found image_id, patient_id',
  ),
  'empty cell': (swap(1, 1, ''), r'row 3: empty patient_id'),
  'unknown part': (swap(0, 2, 'train'), r"row 2: part 'train' is not develop"),
  'unknown label': (swap(0, 3, '1'), r"row 2: label '1' is not negative or"),
  'id with a folder': (swap(0, 0, '../a'), r"image_id '../a' is no file name"),
  'repeated id': (swap(1, 0, 'a'), r'image a: 2 rows'),
  'patient in both parts': (swap(2, 1, 'p1'), r'patient p1 is in both parts'),
  'no negative test image': (
    lambda f: write(f, ROWS[:3]),
    r'the test part has no negative image; both need both',
  ),
  'no positive development image': (
    lambda f: write(f, ROWS[1:]),
    r'the development part has no positive image',
  ),
}


@pytest.mark.parametrize('case', BROKEN)
def test_what_cannot_be_used_is_named(folder, case):
  load(folder)  # It is the breaking that breaks it.
  damage, message = BROKEN[case]
  damage(folder)
  with pytest.raises(ImageError, match=message) as caught:
    load(folder)
  assert len(str(caught.value).splitlines()) <= 2


def test_all_faults_are_told_at_once(folder):
  cut_short(folder / 'images/a.png')
  (folder / 'masks/c.png').unlink()
  with pytest.raises(ImageError, match=r'a.png: cannot[^\n]*\n.*c.png has no'):
    load(folder)
