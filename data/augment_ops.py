"""Applies a policy of random changes to a batch of tiles."""

from collections.abc import Callable
import functools
import math

import numpy as np

from data.augment import Policy
from data.augment_warp import dihedral, smooth_field, warp
from data.host_tensorflow import tf

_POINTS = 5  # Per side of the grid that elastic deformation moves.
_GOLDEN = 0x9E3779B97F4A7C15
# Every change is one pass over the pixels, made to all tiles and kept where it
# was drawn, for shapes must be known. With all changes in one program XLA would
# compute the first again wherever the next uses a pixel.
_one_program = functools.partial(tf.function, jit_compile=True)
# Every change has a stream of random numbers of its own, so that a policy with
# one change more draws the same for the others.
_DIHEDRAL, _SCALE, _ROTATION, _SHIFT, _ELASTIC = range(5)
_BLUR, _NOISE, _BRIGHTNESS, _COLOUR = range(5, 9)
# Luma and the two colour differences of NTSC (Y, I, Q).
_YIQ = np.array(
  [
    [0.299, 0.587, 0.114],
    [0.596, -0.274, -0.322],
    [0.211, -0.523, 0.312],
  ]
)


def apply(image: tf.Tensor, key: tf.Tensor, policy: Policy) -> tf.Tensor:
  """Returns tiles changed at random, each as its own key says.

  Neither the other tiles of the batch nor their order have an influence.

  Args:
    image: float32 [T, S, S, C] in 0..1, S and C known.
    key: uint64 [T], well mixed: see `data.tile_pipeline`.
    policy: what is done.

  Raises:
    ValueError: if colours are to change and C is not 3.
  """
  if policy.colour[0] and image.shape[3] != 3:
    raise ValueError(
      f'found tiles of {image.shape[3]} channel(s); colours can only be '
      'changed in RGB: choose another augmentation'
    )
  if policy.dihedral:
    image = _turned(image, key, policy.dihedral)
  geometric = (policy.scale, policy.rotation, policy.shift, policy.elastic)
  if any(p for p, _ in geometric):
    image = _moved(image, key, policy)
  for stream, (p, *amounts), change in (
    (_BLUR, policy.blur, _blurred),
    (_NOISE, policy.noise, _noisy),
    (_BRIGHTNESS, policy.brightness_contrast, _brighter),
    (_COLOUR, policy.colour, _coloured),
  ):
    if p:
      image = _where(change, image, key, stream, p, *amounts)
  return image


@_one_program
def _where(
  change: Callable[..., tf.Tensor],
  image: tf.Tensor,
  key: tf.Tensor,
  stream: int,
  p: float,
  *amounts: float,
) -> tf.Tensor:
  chosen = (uniform(key, stream, 1) < p)[:, :, None, None]
  changed = tf.clip_by_value(change(image, key, *amounts), 0, 1)
  return tf.where(chosen, changed, image)


@_one_program
def _turned(image: tf.Tensor, key: tf.Tensor, p: float) -> tf.Tensor:
  draw = uniform(key, _DIHEDRAL, 2)
  element = tf.cast(8 * draw[:, 1], tf.int32)
  return dihedral(image, tf.where(draw[:, 0] < p, element, 0))


def uniform(key: tf.Tensor, stream: int, count: int) -> tf.Tensor:
  """Returns numbers in [0, 1) that depend on key, stream and place alone.

  SplitMix64 as a function of its counter: Steele, Lea and Flood, "Fast
  splittable pseudorandom number generators", OOPSLA 2014.

  Args:
    key: uint64 [T].
    stream: numbers of different streams are independent.
    count: how many, below 2^32.

  Returns:
    Multiples of 2^-24, float32 [T, count].
  """
  step = (np.arange(count, dtype=np.uint64) + np.uint64(stream << 32)) + 1
  x = key[:, None] + tf.constant(step * np.uint64(_GOLDEN))
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    x = _xor_shift(x, shift) * tf.constant(factor, tf.uint64)
  x = tf.bitwise.right_shift(_xor_shift(x, 31), tf.constant(40, tf.uint64))
  return tf.cast(x, tf.float32) * 2.0**-24


def _xor_shift(x: tf.Tensor, bits: int) -> tf.Tensor:
  moved = tf.bitwise.right_shift(x, tf.constant(bits, tf.uint64))
  return tf.bitwise.bitwise_xor(x, moved)


def _normal(key: tf.Tensor, stream: int, count: int) -> tf.Tensor:
  """Returns standard normal numbers, float32 [T, count]."""
  u = uniform(key, stream, count) + 2.0**-25  # Off 0, whose image is -inf.
  # The largest would be rounded to 1, whose image is inf.
  return math.sqrt(2) * tf.math.erfinv(tf.minimum(2 * u - 1, 1 - 2.0**-23))


@_one_program
def _moved(image: tf.Tensor, key: tf.Tensor, policy: Policy) -> tf.Tensor:
  side = image.shape[1]

  def drawn(stream: int, p: float, amount: float, count: int) -> tf.Tensor:
    """Even draws from -amount to amount, or zeros, [T, count]."""
    u = uniform(key, stream, 1 + count)
    return tf.where(u[:, :1] < p, amount * (2 * u[:, 1:] - 1), 0)

  scale = 1 + drawn(_SCALE, *policy.scale, 1)[:, 0]
  angle = drawn(_ROTATION, *policy.rotation, 1)[:, 0] * (math.pi / 180)
  p, part = policy.shift
  shift = tf.round(drawn(_SHIFT, p, part * side, 2))
  displacement = None
  p, part = policy.elastic
  if p:
    draw = _normal(key, _ELASTIC, 1 + 2 * _POINTS**2)[:, 1:]
    points = part * side * tf.reshape(draw, (-1, _POINTS, _POINTS, 2))
    bent = uniform(key, _ELASTIC, 1)[:, :, None, None] < p
    displacement = smooth_field(tf.where(bent, points, 0), side)
  return warp(image, scale, angle, shift, displacement)


def _blurred(image: tf.Tensor, key: tf.Tensor, part: float) -> tf.Tensor:
  side = image.shape[1]
  largest = part * side
  sigma = tf.maximum(largest * uniform(key, _BLUR, 2)[:, 1:], 1e-3)
  radius = min(math.ceil(3 * largest), side)
  taps = tf.range(-radius, radius + 1, dtype=tf.float32)
  weights = tf.exp(-0.5 * (taps / sigma) ** 2)
  weights /= tf.reduce_sum(weights, 1, keepdims=True)
  for axis in (1, 2):
    around = [[0, 0]] * 4
    around[axis] = [radius, radius]
    padded = tf.pad(image, around, 'SYMMETRIC')
    image = tf.add_n(
      [
        weights[:, k, None, None, None]
        * (padded[:, k : k + side] if axis == 1 else padded[:, :, k : k + side])
        for k in range(2 * radius + 1)
      ]
    )
  return image


def _noisy(image: tf.Tensor, key: tf.Tensor, largest: float) -> tf.Tensor:
  count = int(np.prod(image.shape[1:]))
  sigma = largest * uniform(key, _NOISE, 2)[:, 1]
  noise = _normal(key, _NOISE, 2 + count)[:, 2:]
  noise = tf.reshape(noise, (-1, *image.shape[1:]))
  return image + sigma[:, None, None, None] * noise


def _brighter(image: tf.Tensor, key: tf.Tensor, largest: float) -> tf.Tensor:
  draw = largest * (2 * uniform(key, _BRIGHTNESS, 3)[:, 1:] - 1)
  draw = draw[:, :, None, None, None]
  return (1 + draw[:, 0]) * image + draw[:, 1]


def _coloured(
  image: tf.Tensor, key: tf.Tensor, largest: float, degrees: float
) -> tf.Tensor:
  draw = 2 * uniform(key, _COLOUR, 3)[:, 1:] - 1
  saturation = 1 + largest * draw[:, 0]
  hue = draw[:, 1] * (degrees * math.pi / 180)
  a, b = saturation * tf.cos(hue), saturation * tf.sin(hue)
  zero, one = tf.zeros_like(a), tf.ones_like(a)
  turn = tf.reshape(
    tf.stack([one, zero, zero, zero, a, -b, zero, b, a], 1), (-1, 3, 3)
  )
  to_yiq = tf.constant(_YIQ, tf.float32)
  back = tf.constant(np.linalg.inv(_YIQ), tf.float32)
  matrix = tf.einsum('ij,tjk,kl->til', back, turn, to_yiq)
  return tf.einsum('til,tyxl->tyxi', matrix, image)
