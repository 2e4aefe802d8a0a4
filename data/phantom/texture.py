"""Makes the smooth noise and the repeating textures that tissue is made of."""

import functools

import numpy as np
from numpy.random import Generator
from PIL import Image
import scipy

PERIOD = 512  # Side of a repeating texture in pixels.
_FREQUENCY = np.fft.fftfreq(PERIOD)


def enlarge(image: np.ndarray, shape: tuple[int, int], box=None) -> np.ndarray:
  """Resizes float32 [h, w] to `shape`, bicubic; may overshoot a little.

  Args:
    image: what to resize.
    shape: size of the result.
    box: the part that is resized (left, top, right, bottom); all by default.
  """
  whole = Image.fromarray(image.astype(np.float32))
  return np.asarray(whole.resize(shape[::-1], Image.Resampling.BICUBIC, box))


def noise(rng: Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
  """Returns smooth noise of about zero mean and unit deviation.

  Args:
    rng: where the randomness comes from.
    shape: size of the result.
    scale: distance in pixels between independent values.

  Returns:
    float32 array of the given shape.
  """
  coarse = [int(n / scale) + 2 for n in shape]
  return 1.3 * enlarge(rng.standard_normal(coarse, np.float32), shape)


def stretch(texture: np.ndarray, shape: tuple[int, int], y: int, x: int):
  """Repeats a periodic texture [P, P] over `shape`, from position (y, x)."""
  moved = np.roll(texture, (-y, -x), (0, 1))
  times = [n // PERIOD + 1 for n in shape]
  return np.tile(moved, times)[: shape[0], : shape[1]]


def voronoi(
  points: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Measures how far pixels lie inside the cell of their nearest point.

  Args:
    points: cell centres (y, x) in pixels, [K, 2], K at least 2.
    shape: size of the result.

  Returns:
    Half the difference between the distances to the second nearest and the
    nearest point (0 on a border), float32; and the nearest point's index.
  """
  yx = np.indices(shape, np.float32).reshape(2, -1).T
  distance, index = scipy.spatial.cKDTree(points).query(yx, k=2)
  inside = (distance[:, 1] - distance[:, 0]) / 2
  return inside.reshape(shape).astype(np.float32), index[:, 0].reshape(shape)


def jittered_grid(
  rng: Generator, shape: tuple[int, int], pitch: float, jitter: float = 0.35
) -> np.ndarray:
  """Returns points (y, x) of a hexagonal grid, each moved a little, [K, 2].

  Args:
    rng: where the randomness comes from.
    shape: height and width to cover.
    pitch: distance between neighbours.
    jitter: largest move as a part of the pitch.

  Returns:
    Points; those at the border may lie just outside.
  """
  rows = np.arange(0, shape[0], pitch * 0.866, np.float32)
  columns = np.arange(0, shape[1], pitch, np.float32)
  x, y = np.meshgrid(columns, rows)
  x = x + pitch / 2 * (np.arange(len(rows)) % 2)[:, None]
  points = np.stack([y, x], -1).reshape(-1, 2)
  move = rng.uniform(-jitter, jitter, points.shape)
  return points + (move * pitch).astype(np.float32)


def _spectral(power: np.ndarray, seed: int) -> np.ndarray:
  """Filters white noise by `power` [P, P] over frequencies; periodic."""
  white = np.random.default_rng(seed).standard_normal((PERIOD, PERIOD))
  filtered = np.fft.ifft2(np.fft.fft2(white) * power).real
  return (filtered / filtered.std()).astype(np.float32)


@functools.cache
def grain() -> np.ndarray:
  """Fine cytoplasmic mottling: zero mean, unit deviation, periodic [P, P]."""
  r = np.hypot(_FREQUENCY[:, None], _FREQUENCY)
  fine = _spectral(np.exp(-((r / 0.16) ** 2)), 11)
  coarse = _spectral(np.exp(-((r / 0.04) ** 2)), 12)
  return 0.75 * fine + 0.66 * coarse


@functools.cache
def fibre() -> np.ndarray:
  """Wavy horizontal collagen fibres: zero mean, unit deviation, [P, P]."""
  fy, fx = _FREQUENCY[:, None], _FREQUENCY
  band = np.exp(-(((np.abs(fy) - 0.07) / 0.05) ** 2) - (fx / 0.008) ** 2)
  x = np.arange(PERIOD)
  wave = 2 * np.pi * x / PERIOD
  shift = np.rint(7 * np.sin(3 * wave) + 5 * np.sin(5 * wave + 1)).astype(int)
  return _spectral(band, 13)[(x[:, None] + shift) % PERIOD, x]


@functools.cache
def fat() -> np.ndarray:
  """Adipocytes: 1 on their thin membranes, 0 in the empty cells, [P, P]."""
  half = PERIOD // 2
  points = jittered_grid(np.random.default_rng(14), (half, half), 51.2, 0.38)
  shift = half * (np.indices((3, 3)).reshape(2, 9).T - 1)
  tiled = (points % half + shift[:, None]).reshape(-1, 2)
  inside, _ = voronoi(tiled, (half, half))
  membrane = np.pad(np.exp(-((inside / 1.1) ** 2)), 8, 'wrap')
  whole = enlarge(membrane, (PERIOD + 32, PERIOD + 32))
  return whole[16:-16, 16:-16].clip(0, 1)
