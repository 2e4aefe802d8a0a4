"""Votes against the literal loop; every window once, the second where asked."""

import collections
from unittest import mock

from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cutter
from experiments.cutter import Cutter, Image
from kmil_jax import heatmap
from kmil_jax.heatmap import Windows


def literal_votes(positive, shape, window, stride):
  """Adds every window's vote to every one of its pixels."""
  count = np.zeros(shape, int)
  for i in range(positive.shape[0]):
    for j in range(positive.shape[1]):
      for y in range(i * stride, i * stride + window):
        for x in range(j * stride, j * stride + window):
          count[y, x] += bool(positive[i, j])
  return count / (window // stride) ** 2


@given(
  rows=st.integers(1, 33),
  columns=st.integers(1, 33),
  stride=st.integers(1, 4),
  times=st.integers(1, 4),
  seed=st.integers(0, 99),
)
def test_votes_are_the_literal_accumulation(rows, columns, stride, times, seed):
  window = stride * times
  h, w = heatmap.grid((rows, columns), window, stride)
  positive = np.random.default_rng(seed).random((h, w)) < 0.4
  with mock.patch.multiple(heatmap, WINDOW=window, STRIDE=stride):
    got = heatmap.votes(positive, (rows, columns))
  want = literal_votes(positive, (rows, columns), window, stride)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_papers_window_casts_sixteen_votes_of_a_sixteenth():
  positive = np.ones(heatmap.grid((125, 113)), bool)
  got = heatmap.votes(positive, (125, 113))
  np.testing.assert_allclose(got, literal_votes(positive, (125, 113), 40, 10))
  assert (got[30:90, 30:80] == 1).all()  # All that 16 windows cover ...
  assert (got[:30] < 1).all() and got[0, 0] == 0.0625  # ... and no other.
  assert (got[120:] == 0).all() and (got[:, 110:] == 0).all()
  assert heatmap.votes(np.ones((0, 17), bool), (39, 200)).max() == 0


def test_windows_that_are_mostly_glass_are_not_looked_at():
  tissue = np.zeros((60, 70), bool)
  tissue[:, 20:] = True  # The first column of windows is half tissue.
  tissue[40:, :] = False
  got = heatmap.on_tissue(tissue)
  want = [
    [tissue[y : y + 40, x : x + 40].mean() >= 0.5 for x in range(0, 31, 10)]
    for y in range(0, 21, 10)
  ]
  np.testing.assert_array_equal(got, want)
  assert got.any() and not got.all()


@pytest.mark.parametrize('shape', [(39, 200), (200, 20), (40, 40)])
def test_windows_of_small_images_are_those_of_the_grid(shape):
  assert heatmap.on_tissue(np.ones(shape, bool)).shape == heatmap.grid(shape)


def weighted_mean(variables, windows):
  """A network of one neuron: sigmoid of a weighted sum of the pixels."""
  x = windows.astype(jnp.float32) / 255 - 0.5
  return jax.nn.sigmoid(jnp.einsum('tyxc,yxc->t', x, variables))


@pytest.mark.parametrize('shape', [(23, 31), (30, 12), (8, 8)])
@pytest.mark.parametrize('tissue_only', [False, True])
def test_both_steps_are_the_literal_loop_over_windows(shape, tissue_only):
  rng = np.random.default_rng(sum(shape))
  pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
  weights = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
  primary, secondary = (
    Cutter(weighted_mean, w, window=8, batch=8) for w in weights
  )
  look = None
  if tissue_only:
    look = rng.random(heatmap.grid(shape, 8, 2)) < 0.6
  got = cutter.scan(Image(pixels), primary, secondary, stride=2, look=look)

  h, w = heatmap.grid(shape, 8, 2)
  want = np.full((2, h, w), np.nan)
  for i in range(h):
    for j in range(w):
      if look is not None and not look[i, j]:
        continue
      window = pixels[2 * i : 2 * i + 8, 2 * j : 2 * j + 8] / 255 - 0.5
      for step in range(2):
        want[step, i, j] = 1 / (1 + np.exp(-(window * weights[step]).sum()))
        if want[step, i, j] < 0.5:
          break
  np.testing.assert_allclose(got.primary, want[0], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(got.secondary, want[1], rtol=1e-4, atol=1e-6)
  both = (want[0] >= 0.5) & (want[1] >= 0.5)
  np.testing.assert_array_equal(got.positive(), both)
  one = Windows(primary=got.primary, secondary=None)
  np.testing.assert_array_equal(one.positive(), want[0] >= 0.5)


def test_each_window_is_evaluated_once_and_the_second_where_the_first_fires():
  shape = (50, 70)
  places = np.arange(shape[0] * shape[1]).reshape(shape)
  # Red and green of a window's first pixel say where it lies.
  pixels = np.stack([places // 256, places % 256, places % 7], -1)
  seen = {'primary': collections.Counter(), 'secondary': collections.Counter()}

  def spy(name, classify):
    def look(variables, windows):
      first = windows[:, 0, 0].astype(jnp.int32)
      place = first[:, 0] * 256 + first[:, 1]
      count = lambda p: seen[name].update(np.ravel(p).tolist())
      jax.debug.callback(count, place)
      return classify(first[:, 2])

    return Cutter(look, (), window=10, batch=32)

  got = cutter.scan(
    Image(pixels.astype(np.uint8)),
    spy('primary', lambda rest: jnp.where(rest < 3, 0.9, 0.1)),
    spy('secondary', lambda rest: jnp.where(rest < 1, 0.9, 0.1)),
    stride=5,
  )
  jax.effects_barrier()
  rest = places[:41:5, :61:5] % 7
  for name, asked in (('primary', rest < 7), ('secondary', rest < 3)):
    want = collections.Counter(places[:41:5, :61:5][asked].tolist())
    want[0] += -asked.sum() % 32  # Fillers look at the first window.
    assert seen[name] == want
  np.testing.assert_array_equal(got.positive(), rest < 1)
  np.testing.assert_array_equal(np.isnan(got.secondary), rest >= 3)


def test_images_within_a_factor_of_two_share_one_program():
  traces = []

  def classify(variables, windows):
    traces.append(windows.shape)
    return windows.mean((1, 2, 3)) / 255

  look = Cutter(classify, (), window=4, batch=4)
  for shape in ((20, 20), (19, 25), (30, 21)):
    pixels = np.full((*shape, 3), 51, np.uint8)
    said = cutter.scan(Image(pixels), look, stride=4).primary
    np.testing.assert_allclose(said, 0.2, rtol=1e-6)
  assert len(traces) == 1
