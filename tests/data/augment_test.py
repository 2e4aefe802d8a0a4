"""Augmentation: exact symmetries, known warps, draws that hang on the key."""

import numpy as np
import pytest
from scipy import ndimage

from data import augment, augment_ops
from data.augment import Policy
from data.host_tensorflow import tf

SIDE = 24
ALL = Policy(
  dihedral=1.0,
  scale=(1.0, 0.2),
  rotation=(1.0, 180.0),
  shift=(1.0, 0.05),
  elastic=(0.5, 0.03),
  blur=(0.5, 0.015),
  noise=(0.5, 0.02),
  brightness_contrast=(0.5, 0.15),
  colour=(0.5, 0.2, 10.0),
)
POLICIES = augment.PRESETS | {'all': ALL}


@pytest.fixture(autouse=True)
def eagerly():
  """Compiles nothing: that takes longer than all these tests."""
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


def keys(n, seed=0):
  return np.random.default_rng(seed).integers(0, 2**64, n, np.uint64)


def noise_tiles(n, channels=3, seed=0):
  shape = (n, SIDE, SIDE, channels)
  return np.random.default_rng(seed).random(shape, np.float32)


def smooth_tiles(n, channels=3):
  rough = noise_tiles(n, channels)
  smooth = ndimage.gaussian_filter(rough, (0, 2, 2, 0), mode='wrap')
  low, high = smooth.min(), smooth.max()
  return (smooth - low) / (high - low)


def apply(images, key, policy):
  return augment_ops.apply(
    tf.constant(images), tf.constant(key), policy
  ).numpy()


def views(tile):
  """The eight symmetries of a square."""
  turned = [np.rot90(tile, k) for k in range(4)]
  return turned + [view[:, ::-1] for view in turned]


@pytest.mark.parametrize('name', POLICIES)
def test_a_key_is_a_picture_whatever_the_neighbours(name):
  policy = POLICIES[name]
  images, key = noise_tiles(40), keys(40)
  all_at_once = apply(images, key, policy)
  order = np.random.default_rng(1).permutation(40)
  np.testing.assert_array_equal(
    apply(images[order], key[order], policy), all_at_once[order]
  )
  for i in (0, 7, 39):
    alone = apply(images[i : i + 1], key[i : i + 1], policy)[0]
    np.testing.assert_allclose(alone, all_at_once[i], atol=1e-5)
  other = apply(images, keys(40, 1), policy)
  changed = np.abs(other - all_at_once).max((1, 2, 3)) > 1e-3
  assert changed.mean() > 0.6 or np.array_equal(all_at_once, images)
  assert np.array_equal(all_at_once, images) == (name == 'none')
  assert all_at_once.min() >= 0 and all_at_once.max() <= 1


def test_the_compiled_program_makes_the_same_pictures():
  images, key = smooth_tiles(40), keys(40)
  expected = apply(images, key, ALL)
  tf.config.run_functions_eagerly(False)
  seen = apply(images, key, ALL)
  np.testing.assert_allclose(seen, expected, atol=1e-4)
  order = np.random.default_rng(1).permutation(40)
  moved = apply(images[order], key[order], ALL)
  np.testing.assert_array_equal(moved, seen[order])


def test_all_eight_symmetries_are_equally_frequent():
  tile = noise_tiles(1)[0]
  n = 4000
  seen = apply(
    np.broadcast_to(tile, (n, *tile.shape)), keys(n), augment.PRESETS['tang']
  )
  counts = [(seen == view).all((1, 2, 3)).sum() for view in views(tile)]
  assert sum(counts) == n  # Nothing but the eight, each to the bit.
  # Standard deviation of a count is 21.
  assert min(counts) > 500 - 85 and max(counts) < 500 + 85


def warped(images, scale=1.0, degrees=0.0, shift=(0.0, 0.0), displacement=None):
  n = len(images)
  return augment_ops.warp(
    tf.constant(images),
    tf.fill([n], float(scale)),
    tf.fill([n], float(np.deg2rad(degrees))),
    tf.constant([shift] * n, tf.float32),
    displacement,
  ).numpy()


@pytest.mark.parametrize(
  'scale, degrees', [(1.4, 0), (0.6, 0), (0.8, 50), (1, -77.5), (1, 143)]
)
def test_scale_and_rotation_are_an_affine_map_about_the_centre(scale, degrees):
  images = noise_tiles(1)
  turn = np.deg2rad(degrees)
  matrix = np.array(  # From places (y, x) of the output to those of the input.
    [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
  )
  matrix /= scale
  centre = np.full(2, (SIDE - 1) / 2)
  offset = centre - matrix @ centre
  seen = warped(images, scale, degrees)[0]
  for c in range(3):
    expected = ndimage.affine_transform(
      images[0, ..., c], matrix, offset, order=1, mode='reflect'
    )
    np.testing.assert_allclose(seen[..., c], expected, atol=1e-4)


def test_a_smooth_field_passes_through_its_points_and_displaces():
  rng = np.random.default_rng(0)
  points = rng.normal(size=(1, 5, 5, 2)).astype(np.float32)
  field = augment_ops.smooth_field(tf.constant(points), 1001).numpy()
  at = np.array([0, 250, 500, 750, 1000])
  np.testing.assert_allclose(field[0][np.ix_(at, at)], points[0], atol=0.02)
  flat = augment_ops.smooth_field(tf.ones((1, 5, 5, 2)), 31).numpy()
  np.testing.assert_allclose(flat, 1, atol=1e-6)
  images = noise_tiles(1)
  field = augment_ops.smooth_field(tf.constant(points), SIDE)
  seen = warped(images, displacement=field)[0]
  y, x = np.mgrid[:SIDE, :SIDE] + np.moveaxis(field[0, ..., ::-1], -1, 0)
  for c in range(3):
    expected = ndimage.map_coordinates(
      images[0, ..., c], [y, x], order=1, mode='reflect'
    )
    np.testing.assert_allclose(seen[..., c], expected, atol=1e-4)


def test_a_shift_moves_whole_pixels_and_mirrors_beyond_the_border():
  image = noise_tiles(1)
  moved = warped(image, shift=(3, -2))
  np.testing.assert_array_equal(moved[0, :-2, 3:], image[0, 2:, :-3])
  np.testing.assert_array_equal(moved[0, :-2, :3], image[0, 2:, 2::-1])
  n = 300
  policy = Policy(shift=(1.0, 4 / SIDE))
  mark = np.zeros((n, SIDE, SIDE, 1), np.float32)
  mark[:, 10, 13] = 1
  seen = apply(mark, keys(n), policy)[..., 0]
  assert set(np.unique(seen)) == {0, 1}
  _, y, x = np.nonzero(seen)
  assert len(x) == n  # The mark is far enough from the border to stay one.
  assert sorted(set(x - 13)) == sorted(set(y - 10)) == list(range(-4, 5))
  assert abs(np.mean(x - 13)) < 0.6


def test_blur_is_that_of_scipy_at_the_drawn_width():
  images, key = noise_tiles(20), keys(20)
  seen = apply(images, key, Policy(blur=(1.0, 1.5 / SIDE)))
  draw = augment_ops.uniform(tf.constant(key), augment_ops._BLUR, 2).numpy()
  for image, blurred, sigma in zip(images, seen, 1.5 * draw[:, 1], strict=True):
    expected = ndimage.gaussian_filter(
      image, (sigma, sigma, 0), mode='reflect', radius=(5, 5, 0)
    )
    np.testing.assert_allclose(blurred, expected, atol=2e-3)


def test_noise_has_its_spread_and_no_pattern():
  n = 200
  grey = np.full((n, SIDE, SIDE, 3), 0.5, np.float32)
  added = apply(grey, keys(n), Policy(noise=(1.0, 0.1))) - 0.5
  spread = added.std((1, 2, 3))
  assert spread.min() < 0.01 and 0.09 < spread.max() < 0.105
  np.testing.assert_allclose(spread.mean(), 0.05, atol=0.007)
  white = (added / spread[:, None, None, None]).reshape(n, -1)
  assert abs(white.mean()) < 0.01
  np.testing.assert_allclose((white**4).mean(), 3, atol=0.05)
  assert abs((white[:, 1:] * white[:, :-1]).mean()) < 0.01
  assert abs((white[1:] * white[:-1]).mean()) < 0.01


def test_normal_draws_are_finite_at_the_ends_of_even_ones(monkeypatch):
  ends = tf.constant([[0.0, 1 - 2.0**-24]])
  monkeypatch.setattr(augment_ops, 'uniform', lambda *_: ends)
  draw = tf.function(augment_ops._normal, jit_compile=True)
  low, high = draw(None, 0, 2).numpy()[0]
  # Of 2^24 values, the first and the last.
  assert -5.5 < low < -5 and 5 < high < 5.5


def test_brightness_and_contrast_are_one_line_per_tile():
  images = 0.4 + 0.2 * noise_tiles(200)  # None is clipped.
  seen = apply(images, keys(200), Policy(brightness_contrast=(0.5, 0.2)))
  fits = []
  for before, after in zip(images, seen, strict=True):
    gain, offset = np.polyfit(before.ravel(), after.ravel(), 1)
    np.testing.assert_allclose(gain * before + offset, after, atol=1e-4)
    fits.append((gain, offset))
  gain, offset = np.transpose(fits)
  assert 0.3 < (np.abs(gain - 1) < 1e-4).mean() < 0.7
  assert 0.8 < gain.min() < 0.85 and 1.15 < gain.max() < 1.2001
  assert -0.2 < offset.min() < -0.1 and 0.1 < offset.max() < 0.2


def test_colour_keeps_grey_and_luma():
  grey = np.repeat(0.2 + 0.6 * noise_tiles(20, 1), 3, -1)
  policy = Policy(colour=(1.0, 0.3, 20.0))
  np.testing.assert_allclose(apply(grey, keys(20), policy), grey, atol=2e-3)
  images = 0.35 + 0.3 * noise_tiles(20)
  seen = apply(images, keys(20), policy)
  luma = np.array([0.299, 0.587, 0.114])
  np.testing.assert_allclose(seen @ luma, images @ luma, atol=1e-3)
  # Both colour differences are turned and scaled, all of a tile alike.
  before, after = (x @ augment_ops._YIQ[1:].T @ [1, 1j] for x in (images, seen))
  factor = (after / before).reshape(20, -1)
  np.testing.assert_allclose(factor, factor[:, :1].repeat(SIDE**2, 1), atol=0.1)
  size, turn = np.abs(factor[:, 0]), np.angle(factor[:, 0], deg=True)
  assert 0.69 < size.min() < 0.85 and 1.15 < size.max() < 1.31
  assert -21 < turn.min() < -10 and 10 < turn.max() < 21
  with pytest.raises(ValueError, match='1 channel'):
    apply(noise_tiles(1, 1), keys(1), policy)


def test_probabilities_are_kept():
  n = 2000
  images, key = np.repeat(noise_tiles(1)[:, :8, :8], n, 0), keys(n)
  for field, amounts in dict(
    dihedral=None,
    scale=[0.3],
    rotation=[30.0],
    shift=[0.4],
    elastic=[0.05],
    blur=[0.25],  # A fiftieth is too little to be seen.
    noise=[0.1],
    brightness_contrast=[0.2],
    colour=[0.3, 20.0],
  ).items():
    policy = Policy(**{field: (0.3, *amounts) if amounts else 0.3})
    changed = (apply(images, key, policy) != images).any((1, 2, 3)).mean()
    expected = 0.3 if amounts else 0.3 * 7 / 8
    assert abs(changed - expected) < 0.035, field  # Three deviations.
