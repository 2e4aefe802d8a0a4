from concurrent.futures import ThreadPoolExecutor
import pathlib
import re
import shutil
import warnings

import numpy as np
import openslide
import pytest

from data import slides
from data.phantom import tiff
from data.slides import Slide, SlideError, list_slides, pixel_size, slide_id

WSI = pathlib.Path(__file__).parents[3] / 'shared/data/wsi'
FIXTURES = WSI / 'openslide-fixtures'
needs_wsi = pytest.mark.skipif(
  not WSI.is_dir(), reason=f'no real slides at {WSI}'
)


@pytest.fixture(scope='module')
def pyramid(tmp_path_factory):
  """A 1300 x 900 px slide of smooth colours at 0.25 um/px, three levels."""
  y, x = np.mgrid[:900, :1300]
  image = np.stack([x / 1300, y / 900, (x + y) / 2200], -1) * 200 + 20
  path = tmp_path_factory.mktemp('slides') / 'pyramid.tiff'
  tiff.write(path, image.astype(np.uint8), mpp=0.25, levels=3, quality=95)
  return path


@pytest.mark.parametrize(
  'name, expected',
  [
    ('TCGA-3C-AALI-01Z-00-DX1.F6E9.svs', 'TCGA-3C-AALI-01Z-00-DX1.F6E9'),
    ('007.tiff', '007'),
    ('a/b/tumor_001.TIF', 'tumor_001'),
    ('case.3', 'case.3'),
    ('a.ome.tiff', 'a.ome'),
  ],
)
def test_only_a_slide_extension_is_removed(name, expected):
  assert slide_id(name) == expected


def test_lists_slides_in_subfolders_but_nothing_hidden(tmp_path):
  names = ['b.svs', 'a.TIFF', 'c/d.ndpi', 'notes.txt', '._a.svs', '.x/e.svs']
  for name in names:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
  expected = [tmp_path / name for name in ('a.TIFF', 'b.svs', 'c/d.ndpi')]
  assert list_slides(tmp_path) == expected


def test_two_slides_of_one_id_are_refused(tmp_path):
  (tmp_path / 'a.svs').touch()
  (tmp_path / 'a.tiff').touch()
  with pytest.raises(SlideError, match=r'a\.tiff: .*a\.svs.*rename'):
    list_slides(tmp_path)


def test_missing_folder_is_named(tmp_path):
  with pytest.raises(SlideError, match='absent: no such folder'):
    list_slides(tmp_path / 'absent')


@needs_wsi
def test_dicom_folder_is_one_slide_and_loose_files_are_grouped(tmp_path):
  (tmp_path / 'case.1').mkdir()
  for path in FIXTURES.glob('*.dcm'):
    shutil.copy(path, tmp_path / 'case.1')
  assert list_slides(tmp_path) == [tmp_path / 'case.1']
  assert list_slides(tmp_path / 'case.1') == [tmp_path / 'case.1/boxes_0.dcm']
  with Slide(tmp_path / 'case.1') as slide:
    assert (slide.slide_id, slide.width, slide.mpp) == ('case.1', 16, 0.499)
    assert slide.read(0, 0, 0, 16, 16).shape == (16, 16, 3)


@needs_wsi
def test_lists_the_slides_of_a_mixed_folder():
  names = [path.name for path in list_slides(FIXTURES)]
  assert names == [
    'boxes.tiff',
    'boxes_0.dcm',
    'small.svs',
    'unopenable.tiff',
    'unreadable.svs',
  ]


def test_reads_what_openslide_reads(pyramid):
  rng = np.random.default_rng(0)
  with Slide(pyramid) as slide, openslide.OpenSlide(pyramid) as reference:
    assert slide.mpp == pytest.approx(0.25)
    assert slide.mpp_source == 'openslide'
    assert (slide.width, slide.height) == (1300, 900)
    assert slide.level_downsamples == pytest.approx((1, 2, 4))
    for level, factor in enumerate((1, 2, 4)):
      width, height = rng.integers(1, 100, 2).tolist()
      x = int(rng.integers(0, 1300 - width * factor))
      y = int(rng.integers(0, 900 - height * factor))
      expected = reference.read_region((x, y), level, (width, height))
      got = slide.read(x, y, level, width, height)
      assert got.dtype == np.uint8
      np.testing.assert_array_equal(got, np.asarray(expected)[..., :3])


@pytest.mark.parametrize(
  'x, y, level, size',
  [
    (-1, 0, 0, 8),
    (0, -1, 0, 8),
    (1293, 0, 0, 8),
    (0, 893, 0, 8),
    (1270, 0, 2, 16),
  ],
)
def test_reading_outside_the_slide_is_refused(pyramid, x, y, level, size):
  with Slide(pyramid) as slide:
    with pytest.raises(SlideError, match=r'pyramid\.tiff: .* outside'):
      slide.read(x, y, level, size, size)


def test_only_pixels_declared_absent_become_white(pyramid, monkeypatch):
  def read(handle, x, y, level, out):
    # Blue, green, red, alpha; the colours are multiplied by alpha.
    out[:] = [[9, 8, 7, 255], [0, 0, 0, 0], [51, 31, 11, 51]]

  monkeypatch.setattr(slides, '_read_region', read)
  with Slide(pyramid) as slide:
    got = slide.read(0, 0, 0, 3, 1)
  expected = [[[7, 8, 9], [255, 255, 255], [215, 235, 255]]]
  np.testing.assert_array_equal(got, expected)


def test_a_dead_handle_is_replaced_whatever_the_thread(pyramid, monkeypatch):
  real = slides._read_region
  with Slide(pyramid) as slide:
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


def test_a_region_that_fails_twice_is_reported_not_filled(pyramid, monkeypatch):
  handles = []

  def read(handle, *where):
    handles.append(handle)
    raise openslide.OpenSlideError('bad')

  monkeypatch.setattr(slides, '_read_region', read)
  with Slide(pyramid) as slide:
    with pytest.raises(SlideError, match=r'^pyramid\.tiff: .*\(0, 0\).*bad'):
      slide.read(0, 0, 0, 64, 64)
  assert len(set(handles)) == len(handles) == 2


def test_an_absent_file_is_a_slide_error(tmp_path):
  with pytest.raises(SlideError, match=r'^absent\.svs: '):
    Slide(tmp_path / 'absent.svs')


@needs_wsi
def test_unopenable_and_truncated_files_are_slide_errors(tmp_path):
  with pytest.raises(SlideError, match=r'^unopenable\.tiff: .*compression'):
    Slide(FIXTURES / 'unopenable.tiff')
  whole = (WSI / 'CMU-1-Small-Region.svs').read_bytes()
  for part in (0, 1000, len(whole) // 2, len(whole) - 1000):
    path = tmp_path / 'cut.svs'
    path.write_bytes(whole[:part])
    with pytest.raises(SlideError, match=r'^cut\.svs: '):
      Slide(path)


@needs_wsi
def test_an_unreadable_region_is_a_slide_error():
  with Slide(FIXTURES / 'unreadable.svs') as slide:
    for read in (
      lambda: slide.read(0, 0, 0, 16, 16),
      lambda: slide.thumbnail(1),
    ):
      with pytest.raises(SlideError, match=r'^unreadable\.svs: .*marker'):
        read()


@needs_wsi
def test_an_implausible_scale_counts_as_none():
  with pytest.raises(SlideError, match=r'^boxes\.tiff: .*352.*--slide_mpp'):
    Slide(FIXTURES / 'boxes.tiff')
  with Slide(FIXTURES / 'boxes.tiff', default_mpp=0.5) as slide:
    assert (slide.mpp, slide.mpp_source) == (0.5, 'default_mpp')
    expected = (1, 2, 4.016129032, 8.086312118)
    assert slide.level_downsamples == pytest.approx(expected)


@pytest.mark.parametrize('mpp', [0.25, 0.7, 1.0, 2.0, 3.3, 8.0, 1e4])
def test_thumbnail_covers_the_slide_exactly(pyramid, mpp):
  with Slide(pyramid) as slide:
    image = slide.thumbnail(mpp)
  height, width = image.shape[:2]
  assert height == max(1, round(900 * 0.25 / mpp))
  assert width == max(1, round(1300 * 0.25 / mpp))
  # The colours are linear in the position, so a pixel shows its centre.
  x = (np.arange(width) + 0.5) / width
  y = (np.arange(height) + 0.5) / height
  np.testing.assert_allclose(image[..., 0].mean(0), 20 + 200 * x, atol=3)
  np.testing.assert_allclose(image[..., 1].mean(1), 20 + 200 * y, atol=3)


def test_thumbnail_does_not_depend_on_the_size_of_blocks(pyramid, monkeypatch):
  with Slide(pyramid) as slide:
    for mpp in (1.3, 8.0):
      whole = slide.thumbnail(mpp)
      with monkeypatch.context() as patch:
        patch.setattr(slides, '_BLOCK', 100)
        parts = slide.thumbnail(mpp)
      np.testing.assert_allclose(parts.astype(int), whole, atol=2)


OPENSLIDE = {'openslide.mpp-x': '0.25', 'openslide.mpp-y': '0.25'}
TAGS = {'tiff.XResolution': '20000', 'tiff.YResolution': '20000'}


@pytest.mark.parametrize(
  'properties, default, expected',
  [
    (OPENSLIDE | TAGS, 1.0, (0.25, 'openslide')),
    (TAGS | {'tiff.ResolutionUnit': 'centimeter'}, 1.0, (0.5, 'tiff')),
    (TAGS | {'tiff.ResolutionUnit': 'inch'}, 1.0, (1.27, 'tiff')),
    (TAGS, 1.0, (1.0, 'default_mpp')),
    ({'openslide.mpp-x': '0.25'}, 1.0, (1.0, 'default_mpp')),
    ({'openslide.mpp-x': 'x', 'openslide.mpp-y': ''}, 1, (1, 'default_mpp')),
    ({'openslide.mpp-x': '0', 'openslide.mpp-y': '0'}, 1, (1, 'default_mpp')),
    (
      OPENSLIDE | {'tiff.XResolution': '0', 'tiff.ResolutionUnit': 'inch'},
      None,
      (0.25, 'openslide'),
    ),
  ],
)
def test_scale_comes_from_the_first_plausible_source(
  properties, default, expected
):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert pixel_size('a.svs', properties, default) == pytest.approx(expected)


def test_what_is_given_for_a_slide_comes_before_all_else():
  found = pixel_size('a.svs', OPENSLIDE | TAGS, 1.0, 0.3)
  assert found == (0.3, 'mpp_csv')


def test_unequal_scales_are_averaged_with_a_warning():
  properties = {'openslide.mpp-x': '0.50', 'openslide.mpp-y': '0.52'}
  with pytest.warns(UserWarning, match=r'a\.svs: 0\.5 .*0\.52'):
    assert pixel_size('a.svs', properties, None)[0] == pytest.approx(0.51)


@pytest.mark.parametrize('default', [None, 0.0, -1.0, 50.0, float('nan')])
def test_no_usable_scale_is_an_error_with_the_slide_and_the_flag(default):
  with pytest.raises(SlideError, match=r'^a\.svs: .*--slide_mpp'):
    pixel_size('a.svs', {}, default)


@pytest.mark.parametrize(
  ('mpp', 'power', 'said'),
  [
    ('0.25', '40', None),
    ('0.23', '40', None),
    ('0.5', '20', None),
    ('0.25', '', None),
    ('0.25', '20', r'0\.25 um/px \(openslide\), but an objective of 20x'),
    ('0.5', '40', r'but an objective of 40x, which gives about 0\.25'),
    ('4', '', r'4 um/px \(openslide\), where scanners have 0\.1 to 2'),
    ('0.06', '', r'where scanners have'),
  ],
)
def test_a_scale_that_no_scanner_has_or_no_objective_gives(mpp, power, said):
  properties = {
    'openslide.mpp-x': mpp,
    'openslide.mpp-y': mpp,
    'openslide.objective-power': power,
  }
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    assert pixel_size('a.svs', properties, None)[0] == float(mpp)
  assert len(caught) == bool(said)
  if said:
    assert re.search(rf'^a\.svs: .*{said}', str(caught[0].message))


def write_scales(folder, text):
  path = folder / 'scales.csv'
  path.write_text(text, encoding='utf-8')
  return path


def test_a_table_of_labels_may_have_the_column(tmp_path):
  text = '\ufeffcase_id,slide_id,label,mpp\nc,007.a,x,0.25\nc,b,x,\nc,c,y, 1\n'
  found = slides.read_mpp_csv(write_scales(tmp_path, text))
  assert found == {'007.a': 0.25, 'c': 1.0}


def test_all_wrong_rows_are_named(tmp_path):
  text = 'slide_id,mpp\na,40x\nb,nan\nc,250\n,0.5\nd,0.5\nd,0.25\ne,0.5\n'
  with pytest.raises(SlideError) as error:
    slides.read_mpp_csv(write_scales(tmp_path, text))
  rows = str(error.value).split(': ', 1)[1].split('; ')
  assert [row.split(':')[0] for row in rows] == [
    f'row {i}' for i in (2, 3, 4, 5, 7)
  ]
  assert "mpp '250', not 0.05 to 20 um/px" in rows[2]


@pytest.mark.parametrize('content', [None, b'', b'slide_id\na\n', b'\xff\xfe'])
def test_what_is_no_such_table_is_refused(tmp_path, content):
  path = tmp_path / 'scales.csv'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(SlideError, match=r'scales\.csv: '):
    slides.read_mpp_csv(path)
