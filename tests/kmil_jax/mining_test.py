"""Mining: equal to brute force, whatever the blocks; ties and bad input."""

import tracemalloc
from unittest import mock

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from kmil_jax import mining


def brute(queries, candidates, alpha, metric):
  """Distances of all pairs in float64, then a stable sort."""
  q, c = np.float64(queries), np.float64(candidates)
  if metric == 'l2':
    distance = np.linalg.norm(q[:, None] - c[None], axis=2)
  else:
    length = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(c, axis=1)
    cosine = np.divide(q @ c.T, length, np.zeros_like(length), where=length > 0)
    distance = 1 - cosine
  index = np.argsort(distance, axis=1, kind='stable')[:, :alpha]
  return index, np.take_along_axis(distance, index, 1), distance


@pytest.mark.parametrize('metric', mining.METRICS)
@pytest.mark.parametrize('offset', [0.0, 30.0])
def test_it_equals_brute_force(metric, offset):
  rng = np.random.default_rng(0)
  # Far from the origin, squares lose what distances need.
  queries = np.float32(rng.normal(offset, 1, (13, 64)))
  candidates = np.float32(rng.normal(offset, 1, (1000, 64)))
  candidates[::100] = queries[0] + 1e-3 * rng.normal(size=(10, 64))
  index, distance = mining.nearest(queries, candidates, 7, metric=metric)
  _, want, everything = brute(queries, candidates, 7, metric)
  np.testing.assert_allclose(distance, want, atol=1e-4)
  assert (np.diff(distance, axis=1) >= 0).all()
  # The places are those of these distances, up to ties.
  picked = np.take_along_axis(everything, index, 1)
  np.testing.assert_allclose(picked, want, atol=1e-4)
  assert all(len(set(row)) == 7 for row in index.tolist())


@settings(max_examples=5)
@given(block=st.integers(1, 70), metric=st.sampled_from(mining.METRICS))
def test_blocks_are_immaterial_and_of_equals_the_first_wins(block, metric):
  rng = np.random.default_rng(1)
  # Few distinct vectors, so that most distances occur many times.
  kinds = np.float32(rng.integers(-1, 2, (6, 3)))
  candidates = kinds[rng.integers(0, 6, 60)]
  queries = np.float32(rng.integers(-1, 2, (4, 3)))
  want, distance, _ = brute(queries, candidates, 20, metric)
  with mock.patch.object(mining, 'BLOCK', block):
    picked = mining.nearest(queries, candidates, 20, metric=metric)
  np.testing.assert_allclose(picked[1], distance, atol=1e-6)
  if metric == 'l2':  # Small integers: ties are exact.
    np.testing.assert_array_equal(picked[0], want)


def test_cosine_ignores_lengths_and_stands_zeros():
  candidates = np.float32([[0, 0], [-2, 0], [0, 1e-30], [1e25, 0], [3, 3]])
  queries = np.float32([[5, 0], [0, 0]])
  index, distance = mining.nearest(queries, candidates, 5, metric='cosine')
  np.testing.assert_array_equal(index, [[3, 4, 0, 2, 1], [0, 1, 2, 3, 4]])
  np.testing.assert_allclose(
    distance, [[0, 1 - 0.5**0.5, 1, 1, 2], [1] * 5], atol=1e-6
  )


def test_mining_is_the_union_without_duplicates_by_distance():
  candidates = np.float32([[0], [11], [10], [20], [-1]])
  mined = mining.mine(np.float32([[10.4], [19], [10]]), candidates, 2)
  # Of 10, queries 0 and 2 are near; query 2 is at it.
  np.testing.assert_array_equal(mined.index, [2, 1, 3])
  np.testing.assert_allclose(mined.distance, [0, 0.6, 1], atol=1e-5)
  np.testing.assert_array_equal(mined.query, [2, 0, 1])


def test_no_queries_mine_nothing():
  mined = mining.mine(np.zeros((0, 4), np.float32), np.ones((9, 4)), 3)
  assert len(mined.index) == len(mined.distance) == len(mined.query) == 0


def test_no_matrix_of_all_distances_is_made():
  rng = np.random.default_rng(4)
  part = rng.normal(size=(2000, 8)).astype(np.float32)
  queries = part[:200]
  pool = np.concatenate([part + i for i in range(100)])
  tracemalloc.start()
  index, _ = mining.nearest(queries, pool, 3)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  np.testing.assert_array_equal(index[:, 0], np.arange(200))
  assert peak < 200 * 200_000 * 4 / 20  # NumPy's; of JAX see `_merge`.
  best = np.zeros((200, 3), np.float32), np.zeros((200, 3), np.int32)
  program = mining._merge.lower(
    best, queries, part, 0, 2000, metric='l2'
  ).compile()
  assert program.memory_analysis().temp_size_in_bytes < 200 * 2000 * 4 * 4


@pytest.mark.parametrize(
  'change,message',
  [
    ({'candidates': np.full((5, 3), np.nan)}, 'row 0 are not finite'),
    ({'queries': np.array([[0, 0, 0], [0, np.inf, 0]])}, 'row 1 are not'),
  ],
)
def test_bad_input_is_named(change, message):
  good = {
    'queries': np.ones((2, 3)),
    'candidates': np.ones((5, 3)),
    'alpha': 2,
  }
  with pytest.raises(ValueError, match=message):
    mining.nearest(**good | change)


@mock.patch.object(mining, 'BLOCK', 2)
def test_a_row_of_a_later_block_is_named():
  candidates = np.ones((7, 3))
  candidates[5, 1] = np.nan
  with pytest.raises(mining.MiningError, match=r'candidates: .* row 5 are not'):
    mining.nearest(np.ones((2, 3)), candidates, 2)
