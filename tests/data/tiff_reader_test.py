"""Tiles of TIFF files: OpenSlide's pixels, or OpenSlide."""

import numpy as np
import pytest
import simplejpeg
import tifffile

from data import slides, tiff
from data.slides import Slide, SlideError
from data.tiff_reader import TiffReader

KINDS = {
  'jpeg': {'compression': 'jpeg', 'compressionargs': {'level': 80}},
  'jpeg_halved': {'compression': 'jpeg', 'subsampling': (2, 2)},
  'jpeg_rgb': {'compression': 'jpeg', 'compressionargs': {'outcolorspace': 2}},
  'lzw': {'compression': 'lzw'},
  'deflate': {'compression': 'deflate'},
  'none': {},
}


def picture(height, width):
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
  return np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]


@pytest.fixture
def pyramid(tmp_path):
  path = tmp_path / 'pyramid.tiff'
  tiff.write(path, picture(900, 1300), mpp=0.25, levels=3)
  return path


def assert_alike(path, corners, size=100):
  """Regions of both readers differ by the rounding of JPEG at most."""
  with (
    Slide(path, 0.5, reader='tifffile') as fast,
    Slide(path, 0.5, reader='openslide') as slow,
  ):
    for level, factor in enumerate(fast.level_downsamples):
      width, height = fast.level_dimensions[level]
      sides = min(size, width), min(size, height)
      room = np.array([width - sides[0], height - sides[1]])
      for corner in corners:
        x, y = (np.floor(room * corner) * factor).astype(int).tolist()
        region = x, y, level, *sides
        off = fast.read(*region).astype(int) - slow.read(*region)
        assert np.abs(off).max() <= 2, region


# Middles and edges.
CORNERS = ((0, 0), (0.31, 0.77), (0.5, 0.5), (0.93, 0.12), (1, 1))


def test_a_pyramid_is_read_as_by_openslide(pyramid):
  assert_alike(pyramid, CORNERS)


@pytest.mark.parametrize('kind', KINDS)
def test_compressions_are_read_as_by_openslide(tmp_path, kind):
  path = tmp_path / 'a.tiff'
  options = {'photometric': 'rgb', 'tile': (112, 128)} | KINDS[kind]
  tifffile.imwrite(path, picture(300, 500), **options)
  assert_alike(path, CORNERS)


@pytest.mark.parametrize(
  'name',
  [
    'CMU-1-Small-Region.svs',
    'openslide-fixtures/boxes.tiff',
    'openslide-fixtures/small.svs',
  ],
)
def test_real_slides_are_read_as_by_openslide(real_data, name):
  assert_alike(real_data / 'wsi' / name, CORNERS)


def test_regions_between_pixels_are_openslides(pyramid, monkeypatch):
  """Level 2 is 4 times as coarse: (2, 4) is in the middle of its pixels."""
  asked = []
  real = slides._read_region
  monkeypatch.setattr(
    slides, '_read_region', lambda *args: asked.append(args) or real(*args)
  )
  with Slide(pyramid, reader='tifffile') as slide:
    asked.clear()  # Both were compared.
    slide.read(4, 8, 2, 20, 20)
    assert not asked
    slide.read(2, 4, 2, 20, 20)
    assert asked


@pytest.mark.parametrize('wrong', [0, 2])
def test_a_reader_of_other_pixels_is_not_used(pyramid, monkeypatch, wrong):
  real = TiffReader.read
  monkeypatch.setattr(
    TiffReader,
    'read',
    lambda self, level, *region: real(self, level, *region)[
      ..., :: -1 if level == wrong else 1
    ],
  )
  with (
    Slide(pyramid) as slide,
    Slide(pyramid, reader='openslide') as reference,
  ):
    region = 100, 100, wrong, 50, 50
    np.testing.assert_array_equal(slide.read(*region), reference.read(*region))
  with pytest.raises(SlideError, match='tifffile does not read the pixels'):
    Slide(pyramid, reader='tifffile')


# How the bytes of a tile are damaged.
DAMAGE = {
  'never written': lambda tile: bytes(len(tile)),
  'half written': lambda tile: tile[: len(tile) // 2].ljust(len(tile), b'\0'),
  'ended early': lambda tile: (
    tile[: len(tile) // 2] + b'\xff\xd9' + tile[len(tile) // 2 + 2 :]
  ),
  'of another start': lambda tile: b'\xff\xd9' + tile[2:],
  'cut in the middle': lambda tile: (
    tile[: len(tile) // 2] + tile[len(tile) // 2 + 40 :] + bytes(40)
  ),
  'of another size': lambda tile: simplejpeg.encode_jpeg(
    np.full((128, 128, 3), 90, np.uint8)
  ).ljust(len(tile), b'\0'),
}


def write_damaged(path, source, damage):
  """Writes a slide whose first tile is damaged."""
  content = bytearray(source.read_bytes())
  with tifffile.TiffFile(source) as file:
    page = file.pages[0]
    start, size = page.dataoffsets[0], page.databytecounts[0]
  tile = damage(bytes(content[start : start + size]))
  assert len(tile) == size
  content[start : start + size] = tile
  path.write_bytes(content)


@pytest.fixture(params=['YCbCr', 'RGB', 'Aperio'])
def jpeg_slide(request, tmp_path):
  """Slides of JPEGs: of either colours, and of tables that all tiles share."""
  if request.param == 'Aperio':
    real = request.getfixturevalue('real_data')
    return real / 'wsi' / 'CMU-1-Small-Region.svs'
  path = tmp_path / 'whole.tiff'
  options = KINDS['jpeg_rgb'] if request.param == 'RGB' else KINDS['jpeg']
  image = picture(900, 1300)
  tifffile.imwrite(path, image, photometric='rgb', tile=(256, 256), **options)
  return path


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_tile_is_an_error_by_every_reader(jpeg_slide, tmp_path, kind):
  path = (tmp_path / 'damaged').with_suffix(jpeg_slide.suffix)
  write_damaged(path, jpeg_slide, DAMAGE[kind])
  for reader in slides.READERS:
    with Slide(path, 0.5, reader=reader) as slide:
      assert slide.read(600, 400, 0, 64, 64).any()
      with pytest.raises(SlideError, match=r'^damaged\..*: .*damaged'):
        slide.read(0, 0, 0, 64, 64)


def test_what_is_read_of_any_damage_is_openslides(jpeg_slide, tmp_path):
  """Bytes of a tile are changed at random, most of them in its header."""
  rng = np.random.default_rng(0)
  path = (tmp_path / 'damaged').with_suffix(jpeg_slide.suffix)

  def damage(tile):
    tile = bytearray(tile)
    for _ in range(rng.integers(1, 4)):
      tile[int(len(tile) ** rng.random()) - 1] = rng.integers(256)
    return tile

  def outcome(reader):
    with Slide(path, 0.5, reader=reader) as slide:
      try:
        return slide.read(0, 0, 0, 128, 128).astype(int)
      except SlideError:
        return None

  errors = 0
  for _ in range(20):
    write_damaged(path, jpeg_slide, damage)
    fast, slow = outcome('auto'), outcome('openslide')
    errors += slow is None
    assert (fast is None) == (slow is None)
    assert slow is None or np.abs(fast - slow).max() <= 2
  assert 4 < errors < 20


@pytest.mark.parametrize('reader', slides.READERS)
@pytest.mark.parametrize(
  ('tags', 'words'),
  [
    (('TileWidth', 'TileLength'), 'tiles of 32768 x 32768 pixels'),
    (('TileByteCounts',), 'a tile of 9999999 bytes'),
  ],
)
def test_no_memory_is_asked_for_what_cannot_be(pyramid, reader, tags, words):
  """OpenSlide would end the process where there is too little of it."""
  with tifffile.TiffFile(pyramid, mode='r+b') as file:
    for tag in [file.pages[0].tags[tag] for tag in tags]:
      side = 9_999_999 if tag.name == 'TileByteCounts' else 32768
      tag.overwrite((side,) * tag.count)
  with pytest.raises(SlideError, match=rf'\.tiff: {words}.*damaged'):
    Slide(pyramid, 0.5, reader=reader)


def test_jpegs_are_not_openslides_to_read(jpeg_slide, monkeypatch):
  with Slide(jpeg_slide, 0.5) as slide:
    monkeypatch.delattr(slides, '_read_region')
    assert slide.read(300, 100, 0, 64, 64).any()


def test_tiles_that_are_not_stored_are_white(tmp_path):
  path = tmp_path / 'sparse.tiff'
  image = np.full((512, 512, 3), 90, np.uint8)
  tifffile.imwrite(path, image, tile=(256, 256), photometric='rgb')
  with tifffile.TiffFile(path, mode='r+b') as file:
    counts = file.pages[0].tags['TileByteCounts']
    counts.overwrite((0, *counts.value[1:]))
  with Slide(path, 0.5) as slide:
    assert (slide.read(0, 0, 0, 64, 64) == 255).all()
    assert (slide.read(300, 300, 0, 64, 64) == 90).all()
