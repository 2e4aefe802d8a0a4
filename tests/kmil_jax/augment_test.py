"""Augmentation: exact symmetries, known warps, draws of key and place alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from scipy import ndimage

from kmil_jax import augment
from kmil_jax.augment import PRESETS, Policy
from kmil_jax.models import cpu

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
LUMA = np.array([0.299, 0.587, 0.114])


def noise_tiles(n, channels=3, seed=0):
  shape = (n, SIDE, SIDE, channels)
  return np.random.default_rng(seed).random(shape, np.float32)


def many(tile, n):
  return np.broadcast_to(tile, (n, *tile.shape))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _apply(images, seed, place, policy, size):
  return augment.apply(images, jax.random.key(seed), place, policy, size)


def apply(images, policy, seed=0, place=None, size=None):
  place = np.arange(len(images)) if place is None else place
  return np.asarray(_apply(images, seed, place, policy, size))


def views(tile):
  """The eight symmetries of a square."""
  turned = [np.rot90(tile, k) for k in range(4)]
  return turned + [view[:, ::-1] for view in turned]


@pytest.mark.parametrize('name', [*PRESETS, 'all'])
def test_key_and_place_are_a_picture_whatever_the_neighbours(name):
  policy, images = (PRESETS | {'all': ALL})[name], noise_tiles(40)
  all_at_once = apply(images, policy)
  order = np.random.default_rng(1).permutation(40)
  moved = apply(images[order], policy, place=order)
  np.testing.assert_array_equal(moved, all_at_once[order])
  assert np.array_equal(all_at_once, images) == (policy == PRESETS['none'])
  for other in ({'seed': 1}, {'place': np.arange(40, 80)}):
    changed = np.abs(apply(images, policy, **other) - all_at_once)
    changed = changed.max((1, 2, 3)) > 1e-3
    assert changed.mean() > 0.6 or policy == PRESETS['none']
  assert all_at_once.min() >= 0 and all_at_once.max() <= 1


def test_accelerators_make_the_same_pictures_all_at_once():
  images, place = noise_tiles(40), np.arange(40)
  with cpu.lowering_for('cuda'):
    seen = jax.jit(augment.apply, static_argnums=3)(
      images, jax.random.key(0), place, ALL
    )
  np.testing.assert_allclose(seen, apply(images, ALL), atol=1e-4)


def test_bytes_are_numbers_from_0_to_1_and_are_made_smaller_before():
  pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
  whole = apply(pixels, PRESETS['none'])
  np.testing.assert_allclose(whole, pixels / 255, atol=1e-7)
  halves = pixels.reshape(4, 4, 2, 4, 2, 3).mean((2, 4)) / 255
  for size, side in ((4, 4), (8, 8), (16, 8)):
    seen = apply(pixels, PRESETS['tang'], size=size)
    assert seen.shape == (4, side, side, 3)
  # Their sums are those of any symmetry.
  small = apply(pixels, PRESETS['tang'], size=4).mean((1, 2))
  np.testing.assert_allclose(small, halves.mean((1, 2)), atol=0.02)


@pytest.mark.parametrize('size', [4, 8, 16])
def test_networks_see_tiles_resized_and_normalised(size):
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
  seen = augment.normalise(pixels[None], mean, std, size)
  for c in range(3):
    channel = Image.fromarray(np.float32(pixels[..., c] / 255))
    expected = channel.resize((size, size), Image.Resampling.BILINEAR)
    expected = (np.asarray(expected) - mean[c]) / std[c]
    np.testing.assert_allclose(seen[0, ..., c], expected, atol=1e-5)
  floats = augment.normalise(np.float32(pixels[None] / 255), mean, std, size)
  np.testing.assert_allclose(floats, seen, atol=1e-5)


def test_all_eight_symmetries_are_equally_frequent():
  tile, n = noise_tiles(1)[0], 4000
  seen = apply(many(tile, n), PRESETS['tang'])
  counts = [(seen == view).all((1, 2, 3)).sum() for view in views(tile)]
  assert sum(counts) == n  # Nothing but the eight, each to the bit.
  # Standard deviation of a count is 21.
  assert min(counts) > 500 - 85 and max(counts) < 500 + 85


def warped(image, scale=1.0, degrees=0.0, shift=(0.0, 0.0), displacement=0.0):
  field = np.broadcast_to(np.float32(displacement), (SIDE, SIDE, 2))
  turn = np.deg2rad(degrees)
  return augment.warp(image, scale, turn, jnp.array(shift), field)


@pytest.mark.parametrize(
  'scale, degrees', [(1.4, 0), (0.6, 0), (0.8, 50), (1, -77.5), (1, 143)]
)
def test_scale_and_rotation_are_an_affine_map_about_the_centre(scale, degrees):
  image = noise_tiles(1)[0]
  turn = np.deg2rad(degrees)
  matrix = np.array(  # From places (y, x) of the output to those of the input.
    [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
  )
  matrix /= scale
  centre = np.full(2, (SIDE - 1) / 2)
  offset = centre - matrix @ centre
  seen = warped(image, scale, degrees)
  for c in range(3):
    expected = ndimage.affine_transform(
      image[..., c], matrix, offset, order=1, mode='reflect'
    )
    np.testing.assert_allclose(seen[..., c], expected, atol=1e-4)


def test_a_smooth_field_passes_through_its_points_and_displaces():
  points = np.random.default_rng(0).normal(size=(5, 5, 2)).astype(np.float32)
  field = np.asarray(augment.smooth_field(points, 1001))
  at = np.array([0, 250, 500, 750, 1000])
  np.testing.assert_allclose(field[np.ix_(at, at)], points, atol=0.02)
  flat = augment.smooth_field(np.ones((5, 5, 2), np.float32), 31)
  np.testing.assert_allclose(flat, 1, atol=1e-6)
  image = noise_tiles(1)[0]
  field = np.asarray(augment.smooth_field(points, SIDE))
  seen = warped(image, displacement=field)
  y, x = np.mgrid[:SIDE, :SIDE] + np.moveaxis(field[..., ::-1], -1, 0)
  for c in range(3):
    expected = ndimage.map_coordinates(
      image[..., c], [y, x], order=1, mode='reflect'
    )
    np.testing.assert_allclose(seen[..., c], expected, atol=1e-4)


def test_a_shift_moves_whole_pixels_and_mirrors_beyond_the_border():
  image = noise_tiles(1)[0]
  moved = np.asarray(warped(image, shift=(3.0, -2.0)))
  np.testing.assert_array_equal(moved[:-2, 3:], image[2:, :-3])
  np.testing.assert_array_equal(moved[:-2, :3], image[2:, 2::-1])
  n = 300
  mark = np.zeros((n, SIDE, SIDE, 1), np.float32)
  mark[:, 10, 13] = 1
  seen = apply(mark, Policy(shift=(1.0, 4 / SIDE)))[..., 0]
  assert set(np.unique(seen)) == {0, 1}
  _, y, x = np.nonzero(seen)
  assert len(x) == n  # The mark is far enough from the border to stay one.
  assert sorted(set(x - 13)) == sorted(set(y - 10)) == list(range(-4, 5))
  assert abs(np.mean(x - 13)) < 0.6


def ramp(axis):
  """A tile whose values tell where they come from along an axis."""
  places = np.mgrid[:SIDE, :SIDE][axis] / SIDE
  return np.float32(places[..., None])


def slopes(policy, n=4000):
  """How places (y, x) of the input change with those of the output, at 0."""
  seen = [apply(many(ramp(axis), n), policy)[..., 0] for axis in (0, 1)]
  inside = slice(SIDE // 2 - 2, SIDE // 2 + 2)  # Beyond it are mirror images.
  cut = SIDE * np.stack([x[:, inside, inside] for x in seen], -1)
  along = [np.diff(cut, axis=a).mean((1, 2)) for a in (1, 2)]
  return np.stack(along, 1)  # [n, axis of the output, axis of the input]


def test_factors_angles_and_bends_are_spread_as_the_policy_says():
  """Moments of even draws: a deviation of a / sqrt(3), as many on each side."""
  factor = 1 / slopes(Policy(scale=(1.0, 0.3)))[:, 0, 0]
  np.testing.assert_allclose(factor.mean(), 1, atol=0.01)
  np.testing.assert_allclose(factor.std(), 0.3 / 3**0.5, rtol=0.03)
  assert 0.7 < factor.min() < 0.71 and 1.29 < factor.max() < 1.3001
  slope = slopes(Policy(rotation=(1.0, 40.0)))
  angle = np.rad2deg(np.arctan2(slope[:, 1, 0], slope[:, 0, 0]))
  np.testing.assert_allclose(angle.mean(), 0, atol=1.5)
  np.testing.assert_allclose(angle.std(), 40 / 3**0.5, rtol=0.03)
  assert -40.01 < angle.min() < -39 and 39 < angle.max() < 40.01
  # The middle of the grid of five is a point, moved by its own draw.
  policy = Policy(elastic=(1.0, 0.03))
  moved = apply(many(ramp(1), 4000), policy)[:, SIDE // 2, SIDE // 2, 0]
  moved = SIDE * (moved - np.median(moved))
  np.testing.assert_allclose(moved.std(), 0.03 * SIDE, rtol=0.05)
  np.testing.assert_allclose((moved**4).mean() / moved.var() ** 2, 3, atol=0.3)


def test_blur_is_that_of_scipy_and_its_width_is_even():
  n = 2000
  point = np.zeros((SIDE, SIDE, 1), np.float32)
  point[11, 11] = 1
  largest = 1.5
  policy = Policy(blur=(1.0, largest / SIDE))
  seen = apply(many(point, n), policy)[..., 0]
  np.testing.assert_allclose(seen.sum((1, 2)), 1, atol=1e-4)
  rows = seen.sum(2)
  with np.errstate(divide='ignore'):
    sigma = (-0.5 / np.log(rows[:, 12] / rows[:, 11])) ** 0.5
  np.testing.assert_allclose(sigma.mean(), largest / 2, rtol=0.04)
  np.testing.assert_allclose(sigma.std(), largest / 12**0.5, rtol=0.04)
  assert 1.49 < sigma.max() < 1.501
  images = noise_tiles(20)
  blurred = apply(images, policy)
  for image, one, width in zip(images, blurred, sigma, strict=False):
    expected = ndimage.gaussian_filter(
      image, (width, width, 0), mode='reflect', radius=(5, 5, 0)
    )
    np.testing.assert_allclose(one, expected, atol=1e-4)


def test_noise_has_its_spread_and_no_pattern():
  n = 200
  grey = np.full((n, SIDE, SIDE, 3), 0.5, np.float32)
  added = apply(grey, Policy(noise=(1.0, 0.1))) - 0.5
  spread = added.std((1, 2, 3))
  assert spread.min() < 0.01 and 0.09 < spread.max() < 0.105
  np.testing.assert_allclose(spread.mean(), 0.05, atol=0.007)
  white = (added / spread[:, None, None, None]).reshape(n, -1)
  assert abs(white.mean()) < 0.01
  np.testing.assert_allclose((white**4).mean(), 3, atol=0.05)
  assert abs((white[:, 1:] * white[:, :-1]).mean()) < 0.01
  assert abs((white[1:] * white[:-1]).mean()) < 0.01


def test_brightness_and_contrast_are_one_line_per_tile():
  images = 0.4 + 0.2 * noise_tiles(200)  # None is clipped.
  seen = apply(images, Policy(brightness_contrast=(0.5, 0.2)))
  fits = []
  for before, after in zip(images, seen, strict=True):
    gain, offset = np.polyfit(before.ravel(), after.ravel(), 1)
    np.testing.assert_allclose(gain * before + offset, after, atol=1e-4)
    fits.append((gain, offset))
  gain, offset = np.transpose(fits)
  assert 0.3 < (np.abs(gain - 1) < 1e-4).mean() < 0.7
  assert 0.8 < gain.min() < 0.85 and 1.15 < gain.max() < 1.2001
  assert -0.2 < offset.min() < -0.1 and 0.1 < offset.max() < 0.2
  assert abs(np.corrcoef(gain, offset)[0, 1]) < 0.3


def test_colour_keeps_grey_and_luma():
  grey = np.repeat(0.2 + 0.6 * noise_tiles(20, 1), 3, -1)
  policy = Policy(colour=(1.0, 0.3, 20.0))
  np.testing.assert_allclose(apply(grey, policy), grey, atol=2e-3)
  images = 0.35 + 0.3 * noise_tiles(60)
  seen = apply(images, policy)
  np.testing.assert_allclose(seen @ LUMA, images @ LUMA, atol=1e-3)
  # Both colour differences are turned and scaled, all of a tile alike.
  before, after = (x @ augment._YIQ[1:].T @ [1, 1j] for x in (images, seen))
  factor = (after / before).reshape(60, -1)
  np.testing.assert_allclose(factor, factor[:, :1].repeat(SIDE**2, 1), atol=0.1)
  size, turn = np.abs(factor[:, 0]), np.angle(factor[:, 0], deg=True)
  assert 0.69 < size.min() < 0.78 and 1.22 < size.max() < 1.31
  assert -21 < turn.min() < -15 and 15 < turn.max() < 21


def test_probabilities_are_kept():
  n = 2000
  images = many(noise_tiles(1)[0, :8, :8], n)
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
    changed = (apply(images, policy) != images).any((1, 2, 3)).mean()
    expected = 0.3 if amounts else 0.3 * 7 / 8
    assert abs(changed - expected) < 0.035, field  # Three deviations.


def test_no_change_goes_with_another():
  images = many(noise_tiles(1)[0, :8, :8], 2000)
  changed = [
    (apply(images, Policy(**change)) != images).any((1, 2, 3))
    for change in ({'noise': (0.5, 0.1)}, {'brightness_contrast': (0.5, 0.2)})
  ]
  assert abs(np.corrcoef(*changed)[0, 1]) < 0.07  # Three deviations.
