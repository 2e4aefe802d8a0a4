"""Moves the pixels of tiles: the symmetries of a square, and smooth warps."""

import numpy as np

from data.host_tensorflow import tf


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
    image: float32 [T, S, S, C].
    scale: factors of enlargement, float32 [T].
    angle: radians, float32 [T]; positive ones turn the x axis towards the y
      axis, which is clockwise on a screen.
    shift: pixels in x and y, float32 [T, 2].
    displacement: pixels in x and y, float32 [T, S, S, 2].
  """
  side = image.shape[1]
  if side is None or side != image.shape[2]:
    raise ValueError(f'found tiles {image.shape}; squares of a known side only')
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
  weights = tf.constant(_catmull_rom(points.shape[1], side), tf.float32)
  return tf.einsum('ai,tijc,bj->tabc', weights, points, weights)


def _catmull_rom(count: int, side: int) -> np.ndarray:
  """Returns the weight of every point at every pixel, [S, K]."""
  place = (np.arange(side) + 0.5) / side * (count - 1)
  cell = np.minimum(place.astype(int), count - 2)
  t = place - cell
  taps = 0.5 * np.stack(
    [
      -t + 2 * t**2 - t**3,
      2 - 5 * t**2 + 3 * t**3,
      t + 4 * t**2 - 3 * t**3,
      -(t**2) + t**3,
    ],
    1,
  )
  weights = np.zeros((side, count))
  for k in range(4):  # Beyond the border the last point is repeated.
    point = np.clip(cell + k - 1, 0, count - 1)
    np.add.at(weights, (np.arange(side), point), taps[:, k])
  return weights
