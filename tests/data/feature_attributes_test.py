"""Attributes of other tools in our words; the side of a tile from its grid."""

import h5py
import numpy as np
import pytest

from data import features
from data.features import FeatureError, spacing, unified

STAMP = {
  'extractor': 'ctranspath',
  'tile_size_px': 224,
  'tile_size_um': 256.0,
  'unit': 'um',
}


def test_stamps_words_become_ours():
  found = unified(STAMP | {'level0_mpp': 0.25})
  assert found['encoder'] == 'ctranspath' and found['patch_size'] == 224
  assert found['mpp'] == pytest.approx(256 / 224, abs=1e-6)
  assert found['patch_size_level0'] == 1024
  assert 'patch_size_level0' not in unified(STAMP)


def test_what_a_file_says_in_our_words_is_kept():
  ours = {'encoder': 'uni', 'mpp': 0.5, 'patch_size': 256}
  assert unified(STAMP | ours) | ours == unified(STAMP | ours)
  assert unified(ours) == ours


@pytest.mark.parametrize('odd', ['x', b'', True, 0, -1.0, np.nan, np.zeros(3)])
def test_sizes_that_are_none_say_nothing(odd):
  found = unified({'tile_size_um': odd, 'level0_mpp': odd, 'tile_size_px': odd})
  assert not set(found) & {'mpp', 'patch_size', 'patch_size_level0'}


def grid(step, columns, rows, origin=(0, 0)):
  x, y = np.meshgrid(np.arange(columns) * step, np.arange(rows) * step)
  return np.stack([x.ravel(), y.ravel()], 1) + origin


def test_spacing_is_that_of_neighbours_in_each_piece_of_tissue():
  """CLAM's grids begin where each contour does."""
  first, second = grid(256, 5, 4), grid(256, 3, 3, origin=(1411, 77))
  coords = np.random.default_rng(0).permutation(np.concatenate([first, second]))
  assert spacing(coords) == 256
  assert spacing(first[[0, 1, 3, 4, 7, 9]]) == 256  # With holes.
  assert spacing(grid(224, 1, 3)) == 224


@pytest.mark.parametrize(
  'coords',
  [
    [[0, 0]],
    [[0, 0], [5, 7]],
    [[3, 3]] * 3,
    [[0, 0], [9, 16], [18, 32], [27, 48]],
  ],
)
def test_scattered_tiles_have_no_spacing(coords):
  assert spacing(np.array(coords)) is None


def write(path, coords, **attributes):
  with h5py.File(path, 'w') as file:
    file['features'] = np.ones((len(coords), 2), np.float32)
    file['coords'] = coords
    file.attrs.update(attributes)


def test_a_silent_file_gets_the_spacing_and_says_so(tmp_path):
  path = tmp_path / 'a.h5'
  write(path, grid(512, 3, 2))
  found = features.read(path).attributes
  assert found == {
    'patch_size_level0': 512,
    'patch_size_level0_source': 'spacing of coords',
  }
  write(path, grid(512, 3, 2), patch_size_level0=500)
  assert features.read(path).attributes == {'patch_size_level0': 500}


def test_a_scale_given_to_micrometres_is_kept_with_them(tmp_path):
  path = tmp_path / 'a.h5'
  write(path, grid(256, 3, 2) * 0.25, **STAMP)
  bare = features.read(path)
  assert bare.coords is None and bare.attributes['unit'] == 'um'
  found = features.read(path, 0.25)
  np.testing.assert_array_equal(found.coords, grid(256, 3, 2))
  assert found.attributes['level0_mpp'] == 0.25
  assert found.attributes['patch_size_level0'] == 1024
  assert 'unit' not in found.attributes  # They are pixels now.


@pytest.mark.parametrize('mpp', [0.0, -0.25, np.nan, np.inf, 'x', 1e-300])
def test_an_impossible_scale_is_refused(tmp_path, mpp):
  path = tmp_path / 'a.h5'
  write(path, grid(256, 3, 2) * 0.25, **STAMP, level0_mpp=mpp)
  with pytest.raises(FeatureError, match=r'a\.h5: (level0_mpp is|coords are)'):
    features.read(path)


def test_whole_numbers_are_whole():
  for side, expected in ((255.999, 256), (255.9, 255.9)):
    got = unified({'tile_size_um': side, 'level0_mpp': 1.0})
    assert got['patch_size_level0'] == expected
