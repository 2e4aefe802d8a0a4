"""Anomaly maps: against torch and SciPy, their bounds, all devices."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from experiments.encoding import encoder
from kmil_jax import anomaly
from kmil_jax.models import reverse_distillation
from kmil_jax.models.reverse_distillation import Teacher

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


def test_maps_equal_torchs():
  torch = pytest.importorskip('torch')
  twin = pytest.importorskip('torch_networks.reverse_distillation')
  f, g = maps(0, 256), maps(1, 256)
  to_torch = lambda x: torch.tensor(x.transpose(0, 3, 1, 2))
  raw = twin.anomaly_maps(
    [to_torch(x) for x in f], [to_torch(x) for x in g], 256
  ).numpy()
  want = np.stack([ndimage.gaussian_filter(m, sigma=4) for m in raw])
  np.testing.assert_allclose(maps_of(f, g, 256), want, atol=1e-4)


def test_equal_maps_give_0_and_orthogonal_ones_3():
  f = maps(0, 64)
  np.testing.assert_allclose(maps_of(f, f, 64), 0, atol=1e-6)
  half = [x.copy() for x in f]
  other = [x.copy() for x in f]
  for a, b in zip(half, other, strict=True):
    a[..., ::2], b[..., 1::2] = 0, 0
  np.testing.assert_allclose(maps_of(half, other, 64), 3, atol=1e-5)


def test_a_fault_shows_where_it_is():
  f = maps(0, 64)
  g = [x.copy() for x in f]
  for x in g:
    quarter = x.shape[1] // 4
    corner = x[0, :quarter, -quarter:]
    corner[...] = corner[..., ::-1]
  found = np.asarray(maps_of(f, g, 64))
  assert np.unravel_index(found[0].argmax(), (64, 64)) == (0, 63)
  np.testing.assert_allclose(found[1:], 0, atol=1e-6)
  mean, highest = anomaly.scores(found)
  np.testing.assert_allclose(mean, found.mean((1, 2)), rtol=1e-5)
  np.testing.assert_array_equal(highest, found.max((1, 2)))


def test_patches_are_normalised_as_imagenets():
  image = np.full((1, 2, 2, 3), [0, 128, 255], np.uint8)
  mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
  want = (np.array([0, 128 / 255, 1]) - mean) / std
  got = jax.jit(anomaly.normalise)(image)
  np.testing.assert_allclose(got[0, 1, 1], want, rtol=1e-5)


def test_a_random_teacher_is_calibrated_and_a_function_of_its_seed(monkeypatch):
  monkeypatch.setattr(reverse_distillation, 'STAGES', (1, 1, 1))
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (24, 8, 8, 3), np.uint8)
  image = coarse.repeat(4, 1).repeat(4, 2)
  tiles = np.asarray(anomaly.normalise(image))
  teacher = lambda seed: encoder.random_network(
    Teacher(4, momentum=0.0), tiles, seed=seed
  )
  variables, again = teacher(0), teacher(0)
  jax.tree.map(np.testing.assert_array_equal, variables, again)
  other = teacher(1)
  kernel = lambda v: v['params']['conv1']['kernel']
  assert np.abs(kernel(variables) - kernel(other)).max() > 0.01
  maps = jax.jit(Teacher(4).apply)(variables, anomaly.normalise(image))
  for m in maps:
    m = np.asarray(m)
    assert 0.3 < m.mean() < 3
    # Channels differ from place to place: nothing is dead.
    assert (m.reshape(-1, m.shape[-1]).std(0) > 0.05).mean() > 0.95
