"""Applies a policy of random changes to a batch of tiles."""

from collections.abc import Callable
import functools
import math

import numpy as np
from scipy import interpolate

from data.augment import Policy
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
    key: uint64 [T], well mixed: see `data.pipeline`.
    policy: what is done.

  Raises:
    ValueError: if colours are to change and C is not 3.
  """
  if policy.colour[0] and image.shape[3] != 3:
    raise ValueError(
      f'found tiles of {image.shape[3]} channel(s). Colours can only be '
      'changed in RGB: choose another augmentation.'
    )
  if policy.dihedral:
    image = _change_some(_turned, image, key, _DIHEDRAL, policy.dihedral)
  geometric = (policy.scale, policy.rotation, policy.shift, policy.elastic)
  if any(p for p, _ in geometric):
    image = _move(image, key, policy)
  for stream, (p, *amounts), change in (
    (_BLUR, policy.blur, _blurred),
    (_NOISE, policy.noise, _noisy),
    (_BRIGHTNESS, policy.brightness_contrast, _brighter),
    (_COLOUR, policy.colour, _coloured),
  ):
    if p:
      image = _change_some(change, image, key, stream, p, *amounts)
  return image


@_one_program
def _change_some(
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
def _move(image: tf.Tensor, key: tf.Tensor, policy: Policy) -> tf.Tensor:
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


def _turned(image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
  draw = uniform(key, _DIHEDRAL, 2)[:, 1]
  return dihedral(image, tf.cast(8 * draw, tf.int32))


def _blurred(image: tf.Tensor, key: tf.Tensor, part: float) -> tf.Tensor:
  side = image.shape[1]
  largest = part * side
  sigma = tf.maximum(largest * uniform(key, _BLUR, 2)[:, 1:], 1e-3)
  radius = min(math.ceil(3 * largest), side)
  taps = tf.range(-radius, radius + 1, dtype=tf.float32)
  weights = tf.exp(-0.5 * (taps / sigma) ** 2)
  weights /= tf.reduce_sum(weights, 1, keepdims=True)
  for _ in range(2):  # Rows; then, the tiles transposed, columns.
    padded = tf.pad(image, [[0, 0], [radius] * 2, [0, 0], [0, 0]], 'SYMMETRIC')
    image = tf.add_n(
      [
        weights[:, k, None, None, None] * padded[:, k : k + side]
        for k in range(2 * radius + 1)
      ]
    )
    image = tf.transpose(image, [0, 2, 1, 3])
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


def dihedral(image: tf.Tensor, element: tf.Tensor) -> tf.Tensor:
  """Returns tiles under symmetries of the square; pixels are only moved.

  Args:
    image: [T, S, S, C].
    element: int32 [T], 0..7: bit 0 transposes, then bit 1 flips rows and bit 2
      columns; 0 is the identity.
  """
  for bit, axes in enumerate(([0, 2, 1, 3], None, None)):
    moved = tf.transpose(image, axes) if axes else tf.reverse(image, [bit])
    chosen = tf.bitwise.bitwise_and(element, 1 << bit) > 0
    image = tf.where(chosen[:, None, None, None], moved, image)
  return image


def warp(
  image: tf.Tensor,
  scale: tf.Tensor,
  angle: tf.Tensor,
  shift: tf.Tensor,
  displacement: tf.Tensor | None = None,
) -> tf.Tensor:
  """Returns tiles enlarged, turned about their centre, then shifted.

  The value at p is the bilinear interpolation at
  R(-angle) (p - shift - centre) / scale + centre + displacement(p). Beyond the
  border a tile goes on as its mirror image (d c b a | a b c d | d c b a).

  Args:
    image: float32 [T, S, S, C], S known.
    scale: factors of enlargement, float32 [T].
    angle: radians, float32 [T]; positive ones turn the x axis towards the y
      axis, which is clockwise on a screen.
    shift: pixels in x and y, float32 [T, 2].
    displacement: pixels in x and y, float32 [T, S, S, 2].
  """
  side = image.shape[1]
  centre = (side - 1) / 2
  axis = tf.range(side, dtype=tf.float32) - centre
  x = axis[None, None, :] - shift[:, 0, None, None]
  y = axis[None, :, None] - shift[:, 1, None, None]
  cos = (tf.cos(angle) / scale)[:, None, None]
  sin = (tf.sin(angle) / scale)[:, None, None]
  from_x = cos * x + sin * y + centre
  from_y = cos * y - sin * x + centre
  if displacement is not None:
    from_x += displacement[..., 0]
    from_y += displacement[..., 1]
  left, top = tf.floor(from_x), tf.floor(from_y)
  right_part, low_part = from_x - left, from_y - top
  left, top = tf.cast(left, tf.int32), tf.cast(top, tf.int32)
  columns = _mirror(left, side), _mirror(left + 1, side)
  rows = _mirror(top, side) * side, _mirror(top + 1, side) * side
  count = tf.shape(image)[0]
  rows = [r + (tf.range(count) * side * side)[:, None, None] for r in rows]
  pixels = tf.reshape(image, (-1, image.shape[3]))

  def row_of(row: tf.Tensor) -> tf.Tensor:
    one, other = (tf.gather(pixels, row + column) for column in columns)
    return one + right_part[..., None] * (other - one)

  upper, lower = map(row_of, rows)
  return upper + low_part[..., None] * (lower - upper)


def _mirror(index: tf.Tensor, side: int) -> tf.Tensor:
  index = tf.math.floormod(index, 2 * side)
  return tf.minimum(index, 2 * side - 1 - index)


def smooth_field(points: tf.Tensor, side: int) -> tf.Tensor:
  """Returns displacements that pass smoothly through those of a grid.

  Args:
    points: displacements of a K x K grid over the tile, its outer points on
      the border, float32 [T, K, K, 2].
    side: S, pixels.

  Returns:
    Their bicubic (Catmull-Rom) interpolation, float32 [T, S, S, 2].
  """
  points_at = np.arange(points.shape[1])
  beside = np.pad(np.eye(len(points_at)), ((1, 1), (0, 0)), 'edge')
  spline = interpolate.CubicHermiteSpline(
    points_at, beside[1:-1], (beside[2:] - beside[:-2]) / 2
  )
  place = (np.arange(side) + 0.5) / side * (len(points_at) - 1)
  weights = tf.constant(spline(place), tf.float32)
  return tf.einsum('ai,tijc,bj->tabc', weights, points, weights)
