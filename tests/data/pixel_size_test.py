import re
import warnings

import pytest

from data.pixel_size import pixel_size
from data.slides import SlideError

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
  with pytest.raises(SlideError, match=r'^a\.svs: .*--default_mpp'):
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
