"""What networks see of tiles: changed at random to train, then normalised."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import scipy

from kmil_jax.models import cpu
from kmil_jax.types import PatchRecipe

_MOVES = ('scale', 'rotation', 'shift', 'elastic')  # One interpolation.
_POINTS = 5  # Per side of the grid that elastic deformation moves.
# Luma and the two colour differences of NTSC (Y, I, Q).
_YIQ = np.float32(
  [
    [0.299, 0.587, 0.114],
    [0.596, -0.274, -0.322],
    [0.211, -0.523, 0.312],
  ]
)
_IMAGENET = PatchRecipe()  # Its mean and deviation.


@dataclasses.dataclass(frozen=True)
class Policy:
  """Random changes of a tile, in the order in which they are made.

  All fields but `dihedral` begin with the probability of the change; changes
  are drawn independently. S is the side of a tile.

  Attributes:
    dihedral: probability that one of the 8 symmetries of a square, evenly
      drawn and with the identity among them, is taken; pixels are only moved.
    scale: probability, a: enlarged by a factor drawn evenly from 1 - a to
      1 + a.
    rotation: probability, degrees: turned by an angle drawn evenly from -a to
      a.
    shift: probability, part of S: moved in x and y by whole pixels drawn evenly
      from -a S to a S.
    elastic: probability, part of S: the points of a 5 x 5 grid are moved by
      normal draws of this standard deviation, the others smoothly with them.
    blur: probability, part of S: Gaussian blur with a standard deviation drawn
      evenly from 0 to a S.
    noise: probability, a: independent normal noise on every value, with a
      standard deviation drawn evenly from 0 to a; the range of values is 1.
    brightness_contrast: probability, a: (1 + c) x + b with b and c drawn evenly
      from -a to a.
    colour: probability, a, degrees: about the grey of each pixel, saturation
      times 1 - a to 1 + a and hue turned by up to this angle. RGB only.

  Scale, rotation, shift and elastic deformation are one bilinear
  interpolation; beyond its border a tile goes on as its mirror image. After
  every other change, values are kept in 0..1.
  """

  dihedral: float = 0.0
  scale: tuple[float, float] = (0.0, 0.0)
  rotation: tuple[float, float] = (0.0, 0.0)
  shift: tuple[float, float] = (0.0, 0.0)
  elastic: tuple[float, float] = (0.0, 0.0)
  blur: tuple[float, float] = (0.0, 0.0)
  noise: tuple[float, float] = (0.0, 0.0)
  brightness_contrast: tuple[float, float] = (0.0, 0.0)
  colour: tuple[float, float, float] = (0.0, 0.0, 0.0)


PRESETS = {
  'none': Policy(),
  # Tang et al. 2022 train on all eight views of each patch.
  'tang': Policy(dihedral=1.0),
  # Lee et al. 2024: scale +-50 % (the library does so half of the time), half
  # of the time a symmetry of the square (theirs: a flip or a transposition),
  # elastic or +-25 degrees (0.8), smoothing or noise (0.2; one of four is
  # noise), brightness and contrast +-20 % (0.5).
  'lee': Policy(
    dihedral=0.5,
    scale=(0.5, 0.5),
    rotation=(0.4, 25.0),
    elastic=(0.4, 0.03),
    blur=(0.15, 1.4 / 224),
    noise=(0.05, 0.028),
    brightness_contrast=(0.5, 0.2),
  ),
  # Ansari: flips, 0 to 180 degrees, shifts of 10 of 224 px. A flip and any
  # angle are as likely as there, since each symmetry of the square is itself a
  # turn by a right angle, flipped or not.
  'ansari': Policy(dihedral=1.0, rotation=(1.0, 180.0), shift=(1.0, 10 / 224)),
  # The symmetries, and sections as other laboratories stain them. Ours.
  'stain': Policy(
    dihedral=1.0, brightness_contrast=(0.5, 0.15), colour=(0.8, 0.2, 10.0)
  ),
}


def normalise(
  image: jax.Array,
  mean: Sequence[float] = _IMAGENET.mean,
  std: Sequence[float] = _IMAGENET.std,
  size: int | None = None,
) -> jax.Array:
  """Returns tiles as a network wants them, float32.

  Args:
    image: [T, S, S, C], uint8, or float32 in 0..1.
    mean: of every channel, in 0..1, subtracted from it.
    std: likewise; divides it.
    size: side to which tiles are resized, in pixels; S by default.
  """
  return (_resized(image, size) - np.float32(mean)) / np.float32(std)


def _resized(image: jax.Array, size: int | None) -> jax.Array:
  """Returns tiles in 0..1 of a side."""
  scale = 255 if image.dtype == np.uint8 else 1
  image = jnp.asarray(image, jnp.float32) / scale
  shape = len(image), size, size, image.shape[3]
  if size in (None, image.shape[1]):
    return image
  return jax.image.resize(image, shape, 'linear', antialias=True)


def apply(
  image: jax.Array,
  key: jax.Array,
  place: jax.Array,
  policy: Policy,
  size: int | None = None,
) -> jax.Array:
  """Returns tiles changed at random, float32 in 0..1.

  What is done to a tile depends on key and place alone. Tiles that are too
  large are made smaller before, which is the lesser work.

  Args:
    image: [T, S, S, C], uint8, or float32 in 0..1; RGB if colours change.
    key: of all tiles.
    place: of each tile, int32 [T].
    policy: what is done.
    size: side that the network wants, in pixels; S by default.
  """
  image = _resized(image, min(size or image.shape[1], image.shape[1]))
  if policy == PRESETS['none']:
    return image
  one = functools.partial(_changed, policy)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, place)
  # One after the other, CPUs do what was drawn, and nothing else.
  in_turn = lambda *tiles: lax.map(lambda tile: one(*tile), tiles)
  return cpu.choose(in_turn, jax.vmap(one), image, keys)


def _changed(policy: Policy, image: jax.Array, key: jax.Array) -> jax.Array:
  """Returns a tile [S, S, C] changed at random."""
  # Every change has a key of its own, so that a policy with one change more
  # draws the same for the others.
  names = [field.name for field in dataclasses.fields(Policy)]
  keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
  image = _sometimes(_turned, image, keys['dihedral'], policy.dihedral)
  image = _moved(image, keys, policy)
  for name, change in (
    ('blur', _blurred),
    ('noise', _noisy),
    ('brightness_contrast', _brighter),
    ('colour', _coloured),
  ):
    image = _sometimes(change, image, keys[name], *getattr(policy, name))
  return image


def _sometimes(
  change: Callable[..., jax.Array],
  image: jax.Array,
  key: jax.Array,
  p: float,
  *amounts: float,
) -> jax.Array:
  if not p:
    return image
  chance, draw = jax.random.split(key)
  changed = lambda image: change(image, draw, *amounts).clip(0, 1)
  # Without the barrier, what follows computes the change again for every pixel
  # that it takes.
  image = lax.optimization_barrier(image)
  chosen = jax.random.bernoulli(chance, p)
  return lax.cond(chosen, changed, lambda image: image, image)


def _moved(
  image: jax.Array, keys: dict[str, jax.Array], policy: Policy
) -> jax.Array:
  """Returns a tile scaled, turned, shifted and bent at random."""
  if not any(getattr(policy, name)[0] for name in _MOVES):
    return image
  side = len(image)

  def drawn(name, draw):
    (p, amount), (chance, key) = getattr(policy, name), split(keys[name])
    return jnp.where(jax.random.bernoulli(chance, p), amount * draw(key), 0)

  split = jax.random.split
  even = lambda *shape: lambda key: jax.random.uniform(key, shape, minval=-1)
  normal = lambda key: jax.random.normal(key, (_POINTS, _POINTS, 2))
  draws = (
    drawn('scale', even()),
    drawn('rotation', even()) * (math.pi / 180),
    jnp.round(side * drawn('shift', even(2))),
    side * drawn('elastic', normal),
  )

  def move(image, scale, angle, shift, points):
    return warp(image, 1 + scale, angle, shift, smooth_field(points, side))

  return lax.cond(
    functools.reduce(jnp.logical_or, map(jnp.any, draws)),
    move,
    lambda image, *draws: image,
    lax.optimization_barrier(image),
    *draws,
  )


def _turned(image: jax.Array, key: jax.Array) -> jax.Array:
  transpose, *flip = jax.random.bernoulli(key, shape=(3,))
  image = jnp.where(transpose, image.swapaxes(0, 1), image)
  for axis, chosen in enumerate(flip):
    image = jnp.where(chosen, jnp.flip(image, axis), image)
  return image


def _blurred(image: jax.Array, key: jax.Array, part: float) -> jax.Array:
  side = len(image)
  largest = part * side
  sigma = jnp.maximum(largest * jax.random.uniform(key), 1e-3)
  radius = min(math.ceil(3 * largest), side)
  taps = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
  weights = jnp.exp(-0.5 * (taps / sigma) ** 2)
  weights /= weights.sum()
  for _ in range(2):  # Rows; then, the tile transposed, columns.
    rows = jnp.pad(image, ((radius, radius), (0, 0), (0, 0)), 'symmetric')
    moved = [w * rows[k : k + side] for k, w in enumerate(weights)]
    image = lax.optimization_barrier(sum(moved)).swapaxes(0, 1)
  return image


def _noisy(image: jax.Array, key: jax.Array, largest: float) -> jax.Array:
  key, other = jax.random.split(key)
  sigma = largest * jax.random.uniform(key)
  return image + sigma * jax.random.normal(other, image.shape)


def _brighter(image: jax.Array, key: jax.Array, largest: float) -> jax.Array:
  gain, offset = jax.random.uniform(key, (2,), minval=-largest, maxval=largest)
  return (1 + gain) * image + offset


def _coloured(
  image: jax.Array, key: jax.Array, largest: float, degrees: float
) -> jax.Array:
  draw = jax.random.uniform(key, (2,), minval=-1)
  hue = draw[1] * (degrees * math.pi / 180)
  a, b = (1 + largest * draw[0]) * jnp.stack([jnp.cos(hue), jnp.sin(hue)])
  turn = jnp.array([[1, 0, 0], [0, a, -b], [0, b, a]])
  product = functools.partial(jnp.einsum, precision='highest')
  matrix = product('ij,jk,kl->il', np.linalg.inv(_YIQ), turn, _YIQ)
  return product('il,yxl->yxi', matrix, image)


def warp(
  image: jax.Array,
  scale: jax.Array,
  angle: jax.Array,
  shift: jax.Array,
  displacement: jax.Array,
) -> jax.Array:
  """Returns a tile enlarged, turned about its centre, then shifted.

  The value at p is the bilinear interpolation at
  R(-angle) (p - shift - centre) / scale + centre + displacement(p). Beyond the
  border a tile goes on as its mirror image (d c b a | a b c d | d c b a).

  Args:
    image: float32 [S, S, C].
    scale: factor of enlargement.
    angle: radians; positive ones turn the x axis towards the y axis, which is
      clockwise on a screen.
    shift: pixels in x and y, [2].
    displacement: pixels in x and y, [S, S, 2].
  """
  side = len(image)
  centre = (side - 1) / 2
  axis = jnp.arange(side) - centre
  x, y = axis[None] - shift[0], axis[:, None] - shift[1]
  cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
  from_x = cos * x + sin * y + centre + displacement[..., 0]
  from_y = cos * y - sin * x + centre + displacement[..., 1]
  left, top = jnp.floor(from_x), jnp.floor(from_y)
  right_part, low_part = (from_x - left)[..., None], (from_y - top)[..., None]
  columns = _mirror(left, side), _mirror(left + 1, side)
  pixels = image.reshape(-1, image.shape[2])

  def row_of(top):
    places = (_mirror(top, side) * side + column for column in columns)
    one, other = (pixels[place] for place in places)
    return one + right_part * (other - one)

  upper, lower = row_of(top), row_of(top + 1)
  return upper + low_part * (lower - upper)


def _mirror(index: jax.Array, side: int) -> jax.Array:
  index = index.astype(jnp.int32) % (2 * side)
  return jnp.minimum(index, 2 * side - 1 - index)


def smooth_field(points: jax.Array, side: int) -> jax.Array:
  """Returns displacements that pass smoothly through those of a grid.

  Args:
    points: displacements of a K x K grid over the tile, its outer points on
      the border, float32 [K, K, 2].
    side: S, pixels.

  Returns:
    Their bicubic (Catmull-Rom) interpolation, float32 [S, S, 2].
  """
  points_at = np.arange(len(points))
  beside = np.pad(np.eye(len(points_at)), ((1, 1), (0, 0)), 'edge')
  spline = scipy.interpolate.CubicHermiteSpline(
    points_at, beside[1:-1], (beside[2:] - beside[:-2]) / 2
  )
  place = (np.arange(side) + 0.5) / side * (len(points_at) - 1)
  weights = np.float32(spline(place))
  return jnp.einsum(
    'ai,ijc,bj->abc', weights, points, weights, precision='highest'
  )
