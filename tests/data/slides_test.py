"""Slides: which there are, their scale, their pixels, and every fault."""

from concurrent.futures import ThreadPoolExecutor
import ctypes
import re
import shutil
import warnings

import numpy as np
import openslide
import pytest
import tifffile

from data import slides, tiff
from data.slides import Slide, SlideError, list_slides, pixel_size, slide_id


@pytest.fixture(scope='module')
def pyramid(tmp_path_factory):
  """A 1300 x 900 px slide of smooth colours at 0.25 um/px, three levels."""
  y, x = np.mgrid[:900, :1300]
  image = np.stack([x / 1300, y / 900, (x + y) / 2200], -1) * 200 + 20
  path = tmp_path_factory.mktemp('slides') / 'pyramid.tiff'
  tiff.write(path, image.astype(np.uint8), mpp=0.25, levels=3, quality=95)
  return path


@pytest.fixture
def fixtures(real_data):
  return real_data / 'wsi/openslide-fixtures'


def test_only_a_slide_extension_is_removed():
  names = ['TCGA-3C.F6E9.svs', 'a/007.tiff', 'tumor.TIF', 'case.3', 'a.ome.tif']
  expected = ['TCGA-3C.F6E9', '007', 'tumor', 'case.3', 'a.ome']
  assert list(map(slide_id, names)) == expected


def test_slides_are_listed_once_and_nothing_hidden(tmp_path):
  names = ['b.svs', 'a.TIFF', 'c/d.ndpi', 'notes.txt', '._a.svs', '.x/e.svs']
  for name in names:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
  expected = [tmp_path / name for name in ('a.TIFF', 'b.svs', 'c/d.ndpi')]
  with warnings.catch_warnings(action='error'):
    assert list_slides(tmp_path) == expected
  (tmp_path / 'c/b.tiff').touch()
  with pytest.raises(SlideError, match=r'b\.tiff: .*b\.svs.*Rename'):
    list_slides(tmp_path)
  with pytest.raises(SlideError, match='absent: no such folder'):
    list_slides(tmp_path / 'absent')


def test_what_is_left_out_is_named(tmp_path):
  """Pictures, unless they are of a slide; links to what is not there."""
  folder, gone = tmp_path / 'slides', tmp_path / 'gone'
  (folder / 'vms').mkdir(parents=True)
  names = ['a.svs', 'a.jpg', 'vms/b.vms', 'vms/b-1.jpg', 'c.PNG', 'd.svs.gz']
  for name in [*names, 'a.svs.md5', 'h.svs.crdownload']:
    (folder / name).touch()
  for name in ('e.svs', 'f', 'g.dcm'):
    (folder / name).symlink_to(gone)
  with pytest.warns(UserWarning) as caught:
    found = list_slides(folder)
  assert [path.name for path in found] == ['a.svs', 'e.svs', 'b.vms']
  (text,) = [str(one.message) for one in caught]
  assert text.startswith(str(folder))
  assert text.endswith(': c.PNG, d.svs.gz, f, g.dcm, h.svs.crdownload')
  with pytest.raises(SlideError, match=r'e\.svs: a link to .*gone, which does'):
    Slide(found[1])
  (tmp_path / 'none').mkdir()
  (tmp_path / 'none/x.png').touch()
  with pytest.raises(SlideError, match=r'no slides. Found x\.png\. .*\.svs'):
    list_slides(tmp_path / 'none')


def test_dicom_folder_is_one_slide_and_loose_files_are_grouped(
  tmp_path, fixtures
):
  (tmp_path / 'case.1').mkdir()
  for path in fixtures.glob('*.dcm'):
    shutil.copy(path, tmp_path / 'case.1')
  assert list_slides(tmp_path) == [tmp_path / 'case.1']
  assert list_slides(tmp_path / 'case.1') == [tmp_path / 'case.1/boxes_0.dcm']
  with Slide(tmp_path / 'case.1') as slide:
    assert (slide.slide_id, slide.width, slide.mpp) == ('case.1', 16, 0.499)
    assert slide.read(0, 0, 0, 16, 16).shape == (16, 16, 3)
  mixed = [path.name for path in list_slides(fixtures)]
  assert 'boxes_0.dcm' in mixed and len(mixed) == 5


def test_reads_what_openslide_reads(pyramid):
  rng = np.random.default_rng(0)
  with Slide(pyramid) as slide, openslide.OpenSlide(pyramid) as reference:
    assert slide.mpp == pytest.approx(0.25)
    assert slide.mpp_source == 'openslide'
    assert (slide.width, slide.height) == (1300, 900)
    assert slide.level_downsamples == pytest.approx((1, 2, 4))
    with tifffile.TiffFile(pyramid) as file:
      per_cm = [page.resolution[0] for page in file.pages]
    assert per_cm == pytest.approx([1e4 / 0.25, 1e4 / 0.5, 1e4 / 1])
    for level, factor in enumerate((1, 2, 4)):
      width, height = rng.integers(1, 100, 2).tolist()
      x = int(rng.integers(0, 1300 - width * factor))
      y = int(rng.integers(0, 900 - height * factor))
      expected = reference.read_region((x, y), level, (width, height))
      pixels = slide.read(x, y, level, width, height)
      assert pixels.dtype == np.uint8
      np.testing.assert_array_equal(pixels, np.asarray(expected)[..., :3])
    for x, y, level, size in (
      (-1, 0, 0, 8),
      (0, -1, 0, 8),
      (1293, 0, 0, 8),
      (0, 893, 0, 8),
      (1270, 0, 2, 16),
    ):
      with pytest.raises(SlideError, match=r'pyramid\.tiff: .* outside'):
        slide.read(x, y, level, size, size)


def test_only_pixels_declared_absent_become_white(pyramid, monkeypatch):
  def read(handle, x, y, level, out):
    # Blue, green, red, alpha; the colours are multiplied by alpha.
    out[:] = [[9, 8, 7, 255], [0, 0, 0, 0], [51, 31, 11, 51]]

  monkeypatch.setattr(slides, '_read_region', read)
  with Slide(pyramid, reader='openslide') as slide:
    pixels = slide.read(0, 0, 0, 3, 1)
    black = slide.read(0, 0, 0, 3, 1, white=False)
  expected = [[[7, 8, 9], [255, 255, 255], [215, 235, 255]]]
  np.testing.assert_array_equal(pixels, expected)
  expected = [[[7, 8, 9], [0, 0, 0], [11, 31, 51]]]
  np.testing.assert_array_equal(black, expected)


def test_a_dead_handle_is_replaced_whatever_the_thread(pyramid, monkeypatch):
  real = slides._read_region
  with Slide(pyramid, reader='openslide') as slide:
    expected = slide.read(0, 0, 0, 64, 64)
    first, failures = slide._handle, []

    def read(handle, *where):
      if handle is first:
        failures.append(where)
        raise openslide.OpenSlideError('dead')
      return real(handle, *where)

    monkeypatch.setattr(slides, '_read_region', read)
    with ThreadPoolExecutor(4) as pool:
      reads = [pool.submit(slide.read, 0, 0, 0, 64, 64) for _ in range(32)]
    for result in reads:
      np.testing.assert_array_equal(result.result(), expected)
    assert 1 <= len(failures) <= 4
  slide.close()  # A second time.
  for handle in (first, slide._handle):
    with pytest.raises(ctypes.ArgumentError, match='closed'):
      handle.read_region((0, 0), 0, (1, 1))


def test_what_cannot_be_opened_or_read_is_named_not_filled(tmp_path, fixtures):
  with pytest.raises(SlideError, match=r'^absent\.svs: '):
    Slide(tmp_path / 'absent.svs')
  with pytest.raises(SlideError, match=r'^unopenable\.tiff: .*compression'):
    Slide(fixtures / 'unopenable.tiff')
  whole = (fixtures.parent / 'CMU-1-Small-Region.svs').read_bytes()
  for part in (0, 1000, len(whole) // 2, len(whole) - 1000):
    (tmp_path / 'cut.svs').write_bytes(whole[:part])
    with pytest.raises(SlideError, match=r'^cut\.svs: '):
      Slide(tmp_path / 'cut.svs')
  with Slide(fixtures / 'unreadable.svs') as slide:
    for read in (
      lambda: slide.read(0, 0, 0, 16, 16),
      lambda: slide.thumbnail(1),
    ):
      with pytest.raises(SlideError, match=r'^unreadable\.svs: .*marker'):
        read()


@pytest.mark.parametrize('mpp', [0.25, 0.7, 1.3, 3.3, 8.0, 1e4])
def test_thumbnail_covers_the_slide_exactly(pyramid, mpp, monkeypatch):
  with Slide(pyramid) as slide:
    image = slide.thumbnail(mpp)
    monkeypatch.setattr(slides, '_BLOCK', 100)  # Whatever the size of blocks.
    np.testing.assert_allclose(slide.thumbnail(mpp).astype(int), image, atol=2)
  height, width = image.shape[:2]
  assert height == max(1, round(900 * 0.25 / mpp))
  assert width == max(1, round(1300 * 0.25 / mpp))
  # The colours are linear in the position, so a pixel shows its centre.
  x = (np.arange(width) + 0.5) / width
  y = (np.arange(height) + 0.5) / height
  np.testing.assert_allclose(image[..., 0].mean(0), 20 + 200 * x, atol=3)
  np.testing.assert_allclose(image[..., 1].mean(1), 20 + 200 * y, atol=3)


def test_a_narrow_slide_is_shown_to_its_end(tmp_path, monkeypatch):
  """By OpenSlide's mean factor its levels are longer than the slide."""
  y = np.mgrid[:4096, :70, :3][0] / 4096 * 200 + 20
  path = tmp_path / 'core.tiff'
  tiff.write(path, y.astype(np.uint8), mpp=0.5, levels=5, quality=95)
  with Slide(path) as slide:
    image = slide.thumbnail(8).astype(int)
    monkeypatch.setattr(slides, '_BLOCK', 100)
    np.testing.assert_allclose(slide.thumbnail(8), image, atol=2)
    with pytest.raises(SlideError, match='outside'):
      slide.read(0, 0, 4, 4, 258)
  expected = 20 + 200 * (np.arange(256) + 0.5) / 256
  np.testing.assert_allclose(image.mean((1, 2)), expected, atol=2)


OPENSLIDE = {'openslide.mpp-x': '0.25', 'openslide.mpp-y': '0.25'}
TAGS = {'tiff.XResolution': '20000', 'tiff.YResolution': '20000'}
INCH = {'tiff.ResolutionUnit': 'inch'}


@pytest.mark.parametrize(
  'properties, options, expected',
  [
    (OPENSLIDE | TAGS, (1.0, 0.3), (0.3, 'mpp_csv')),
    (OPENSLIDE | TAGS, (1.0,), (0.25, 'openslide')),
    (OPENSLIDE | INCH | {'tiff.XResolution': '0'}, (1,), (0.25, 'openslide')),
    (TAGS | {'tiff.ResolutionUnit': 'centimeter'}, (1.0,), (0.5, 'tiff')),
    (TAGS | INCH, (1.0,), (1.27, 'tiff')),
    (TAGS, (1.0,), (1.0, 'default_mpp')),
    ({'openslide.mpp-x': '0.25'}, (1.0,), (1.0, 'default_mpp')),
    (dict.fromkeys(OPENSLIDE, 'x'), (1.0,), (1.0, 'default_mpp')),
    (dict.fromkeys(OPENSLIDE, '0'), (1.0,), (1.0, 'default_mpp')),
    (dict.fromkeys(OPENSLIDE, '352.8'), (1.0,), (1.0, 'default_mpp')),
  ],
)
def test_scale_comes_from_the_first_plausible_source(
  properties, options, expected
):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert pixel_size('a.svs', properties, *options) == pytest.approx(expected)


@pytest.mark.parametrize('default', [None, 0.0, -1.0, 50.0, float('nan')])
def test_no_usable_scale_is_an_error_with_the_slide_and_the_flag(default):
  with pytest.raises(SlideError, match=r'^a\.svs: .*--slide_mpp'):
    pixel_size('a.svs', {}, default)


@pytest.mark.parametrize(
  ('mpp', 'power', 'words'),
  [
    (('0.25', '0.25'), '40', None),
    (('0.23', '0.23'), '40', None),
    (('0.5', '0.5'), '', None),
    (('0.25', '0.25'), '20', r'\(openslide\), but an objective of 20x'),
    (('0.5', '0.5'), '40', r'objective of 40x, which gives about 0\.25'),
    (('4', '4'), '', r'4 um/px \(openslide\), where scanners have 0\.1 to 2'),
    (('0.06', '0.06'), '', 'where scanners have'),
    (('0.50', '0.52'), '', r'0\.5 .*0\.52 um/px down .*. The mean is used'),
  ],
)
def test_an_odd_scale_is_a_warning(mpp, power, words):
  properties = dict(zip(OPENSLIDE, mpp, strict=True))
  properties['openslide.objective-power'] = power
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    found, _ = pixel_size('a.svs', properties, None)
  assert found == pytest.approx(sum(map(float, mpp)) / 2)
  assert len(caught) == bool(words)
  if words:
    assert re.search(rf'^a\.svs: .*{words}', str(caught[0].message))


@pytest.mark.parametrize(
  'properties', [OPENSLIDE | {'openslide.objective-power': '40'}, TAGS | INCH]
)
def test_a_scale_that_is_given_against_the_slides_own_is_a_warning(properties):
  own, _ = pixel_size('a.svs', properties, None)
  for factor in (0.5, 0.9, 1.1, 2):
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      pixel_size('a.svs', properties, None, factor * own)
    said = [f'the slide states {own:g}' in str(w.message) for w in caught]
    assert said == [True] * (factor in (0.5, 2))


def test_scales_are_a_column_of_which_all_wrong_rows_are_named(tmp_path):
  path = tmp_path / 'scales.csv'
  path.write_text(
    '\ufeffcase_id,slide_id,label,mpp\nc,007.a,x,0.25\nc,b,x,\nc,c,y, 1\n',
    encoding='utf-8',
  )
  assert slides.read_mpp_csv(path) == {'007.a': 0.25, 'c': 1.0}
  path.write_text('slide_id,mpp\na,40x\nb,nan\nc,250\n,0.5\nd,0.5\nd,0.25\n')
  with pytest.raises(SlideError) as error:
    slides.read_mpp_csv(path)
  rows = str(error.value).split(': ', 1)[1].split('; ')
  assert [row.split(':')[0] for row in rows] == [
    f'row {i}' for i in (2, 3, 4, 5, 7)
  ]
  assert "mpp '250', not 0.05 to 20 um/px" in rows[2]
  path.write_text('slide_id,high,low\na,0,1,0,05\nb,1,2,,\n')
  with pytest.raises(
    SlideError, match='csv: row 2: more cells than the header: w'
  ):
    slides.read_numbers(path, ('high', 'low'))
