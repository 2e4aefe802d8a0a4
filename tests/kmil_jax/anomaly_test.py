"""Anomaly maps: against torch and SciPy, their bounds, all devices."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from kmil_jax import anomaly

maps_of = jax.jit(anomaly.maps, static_argnums=2)


def maps(seed, size, width=4):
  rng = np.random.default_rng(seed)
  return [
    rng.exponential(size=(3, size // 4 // k, size // 4 // k, width * k))
    .astype('f4')
    for k in (1, 2, 4)
  ]  # fmt: skip


def reference(f, g, size):
  """Upsampling by SciPy alone: `zoom` of order 1 aligns the corners."""
  total = 0
  for a, b in zip(f, g, strict=True):
    a, b = np.float64(a), np.float64(b)
    cos = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    scale = size / a.shape[1]
    total = total + ndimage.zoom(1 - cos, (1, scale, scale), order=1)
  return np.stack([ndimage.gaussian_filter(m, 4) for m in total])


@pytest.mark.parametrize('size', [64, 160])
def test_maps_equal_scipys(size):
  f, g = maps(0, size), maps(1, size)
  got = maps_of(f, g, size)
  want = reference(f, g, size)
  assert want.std() > 0.01
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_fault_shows_where_it_is():
  f = maps(0, 64)
  g = [x.copy() for x in f]
  for x in g:
    quarter = x.shape[1] // 4
    corner = x[0, :quarter, -quarter:]
    corner[...] = corner[..., ::-1]
  heat = np.asarray(maps_of(f, g, 64))
  assert np.unravel_index(heat[0].argmax(), (64, 64)) == (0, 63)
  np.testing.assert_allclose(heat[1:], 0, atol=1e-6)
