"""Any bytes in the place of an image, a table or a zip file are named."""

import csv
import io
import zipfile

from hypothesis import given, settings, strategies as st
import numpy as np
from PIL import Image
import pytest

from data.labelled_tiles import TileError
from data.tile_sources import COLUMNS, from_zip

N = 3


def encoded(i):
  file = io.BytesIO()
  pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def write(root, content=None):
  """A zip and its table; `content` is that of the second file."""
  with zipfile.ZipFile(root / 'tiles.zip', 'w') as archive:
    for i in range(N):
      whole = encoded(i) if content is None or i != 1 else content
      archive.writestr(f't{i}.png', whole)
  with (root / 'index.csv').open('w', newline='') as f:
    rows = [['p', i, i, i % 2, f't{i}.png'] for i in range(N)]
    csv.writer(f).writerows([COLUMNS, *rows])
  return root / 'tiles.zip', root / 'index.csv'


def changed(at, value):
  whole = bytearray(encoded(1))
  whole[at % len(whole)] = value
  return bytes(whole)


BYTES = st.one_of(
  st.binary(max_size=200),
  st.builds(changed, st.integers(0, 400), st.integers(0, 255)),
  st.builds(lambda n: encoded(1)[:n], st.integers(0, 280)),
)


@settings(max_examples=40)
@given(content=BYTES)
def test_any_bytes_are_an_image_or_a_named_fault(content, tmp_path_factory):
  try:
    pixels = from_zip(*write(tmp_path_factory.mktemp('fuzz'), content)).pixels
  except TileError as error:
    assert 'index.csv line 3 (t1.png)' in str(error)
  else:
    assert pixels.shape == (N, 8, 8, 3)
    with Image.open(io.BytesIO(content)) as image:
      np.testing.assert_array_equal(pixels[1], image.convert('RGB'))


@settings(max_examples=15)
@given(table=st.text(max_size=120))
def test_any_table_ends_in_a_named_fault(table, tmp_path_factory):
  archive, path = write(tmp_path_factory.mktemp('fuzz'))
  header = ','.join(COLUMNS) + '\n'
  path.write_bytes((header + table).encode('utf-8', 'surrogatepass'))
  with pytest.raises(TileError, match=r'index\.csv'):
    from_zip(archive, path)


@settings(max_examples=15)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_no_zip(content, tmp_path_factory):
  archive, path = write(tmp_path_factory.mktemp('fuzz'))
  archive.write_bytes(content)
  with pytest.raises(TileError, match=r'tiles\.zip'):
    from_zip(archive, path)


@settings(max_examples=40)
@given(place=st.integers(0, 2000), value=st.integers(0, 255))
def test_a_zip_with_a_changed_byte_gives_no_other_pixels(
  place, value, tmp_path_factory
):
  archive, path = write(tmp_path_factory.mktemp('fuzz'))
  expected = from_zip(archive, path).pixels
  whole = bytearray(archive.read_bytes())
  whole[place % len(whole)] = value
  archive.write_bytes(whole)
  try:
    pixels = from_zip(archive, path).pixels
  except TileError as error:
    assert 'tiles.zip' in str(error) or 'index.csv' in str(error)
  else:  # The change was to what nobody reads.
    np.testing.assert_array_equal(pixels, expected)
