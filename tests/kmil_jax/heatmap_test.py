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
  h, w = (max(0, (n - window) // stride + 1) for n in (rows, columns))
  with mock.patch.multiple(heatmap, WINDOW=window, STRIDE=stride):
    positive = np.random.default_rng(seed).random((h, w)) < 0.4
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


@pytest.mark.parametrize(
  'shape,windows',
  [((39, 200), (0, 17)), ((200, 20), (17, 0)), ((40, 40), (1, 1))],
)
def test_small_images_have_few_windows(shape, windows):
  assert heatmap.on_tissue(np.ones(shape, bool)).shape == windows
