"""Votes against the literal loop; windows of glass are not looked at."""

from unittest import mock

from hypothesis import given, strategies as st
import numpy as np
import pytest

from kmil_jax import heatmap


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
