"""The plan of an epoch: every bag once, in an order that is a pure function."""

import functools
import itertools

from hypothesis import example, given, strategies as st
import numpy as np

from kmil_jax.models import pooling
from kmil_jax.tasks import bags as plan

lengths = st.lists(st.integers(1, 30_000), min_size=1, max_size=60).map(
  np.array
)


@st.composite
def cohorts(draw):
  """Lengths with a part of the bags, at least one."""
  n = draw(lengths)
  visit = np.array(
    draw(st.lists(st.booleans(), min_size=len(n), max_size=len(n)))
  )
  visit[draw(st.integers(0, len(n) - 1))] = True
  return n, visit


@given(n=lengths)
@example(n=np.array([56, 928]))
def test_buckets_hold_every_bag_and_are_few(n):
  buckets = plan.bucket_lengths(n)
  assert 1 <= len(buckets) <= plan.MAX_BUCKETS
  assert all(b % 8 == 0 for b in buckets)
  assert all(a < b for a, b in itertools.pairwise(buckets))
  multiple = 8 if max(n) <= 1024 else 128
  assert buckets[-1] == -(-max(n) // multiple) * multiple
  assert all(b % 128 == 0 for b in buckets if b > 1024)
  bucket = np.searchsorted(buckets, n)
  assert set(bucket) == set(range(len(buckets)))  # None is idle.


@given(n=st.lists(st.integers(64, 8000), min_size=1, max_size=60))
def test_padding_wastes_at_most_15_percent(n):
  buckets = np.array(plan.bucket_lengths(n))
  padded = buckets[np.searchsorted(buckets, n)].sum()
  of_each = sum(plan.bucket_lengths([x])[0] for x in n)
  assert 0.85 * padded <= sum(n) or padded == of_each


@given(n=st.lists(st.integers(1, 3000), min_size=1, max_size=7))
def test_no_other_lengths_are_fewer_or_pad_less(n):
  buckets = plan.bucket_lengths(n)
  rows = lambda table: sum(min(b for b in table if b >= x) for x in n)
  *others, longest = sorted({plan.bucket_lengths([x])[0] for x in n})
  for count in range(len(buckets)):
    tables = itertools.combinations(others, count)
    least = min(rows((*table, longest)) for table in tables)
    if count + 1 < len(buckets):
      assert 0.85 * least > sum(n)
  assert rows(buckets) == least


@given(n=st.lists(st.integers(1, 200_000), min_size=1, max_size=5))
def test_a_store_of_long_bags_ends_where_the_last_slice_does(n):
  n = np.array([*n, pooling.WHOLE + 1, 1])
  buckets = np.array(plan.bucket_lengths(n))
  ends = np.cumsum(n) - n + buckets[np.searchsorted(buckets, n)]
  assert plan.num_rows(n) == ends.max()
  assert all(b % pooling.BLOCK == 0 for b in buckets if b > pooling.WHOLE)


def test_few_lengths_span_any_range():
  n = np.unique(np.geomspace(1, 10**6, 2000).astype(int))
  assert len(plan.bucket_lengths(n)) <= 16


@given(
  cohort=cohorts(),
  batch=st.integers(1, 5),
  seed=st.integers(0, 10**6),
  epoch=st.integers(0, 500),
)
def test_an_epoch_visits_every_bag_once(cohort, batch, seed, epoch):
  n, visit = cohort
  buckets = plan.bucket_lengths(n)
  make = lambda e: plan.plan_epoch(
    n, buckets, visit=visit, batch=batch, seed=seed, epoch=e
  )
  bucket, index = make(epoch)
  assert bucket.dtype == index.dtype == np.int32
  assert index.shape == (len(bucket), batch)
  assert index.min() >= -1
  real = index[index >= 0]
  np.testing.assert_array_equal(np.sort(real), np.flatnonzero(visit))
  # One bucket per step, the smallest that holds its bags.
  own = np.searchsorted(buckets, n)[index]
  np.testing.assert_array_equal(
    own[index >= 0], np.broadcast_to(bucket[:, None], index.shape)[index >= 0]
  )
  # Fillers end a step, at most one step of a bucket, and fill no step alone.
  filled = index < 0
  assert not filled[:, 0].any()
  assert (np.diff(filled.astype(int), axis=1) >= 0).all()
  assert (
    np.unique(bucket[filled.any(1)], return_counts=True)[1].max(initial=0) <= 1
  )
  again = make(epoch)
  np.testing.assert_array_equal(again[0], bucket)
  np.testing.assert_array_equal(again[1], index)
  assert make(epoch + 1)[1].shape == index.shape


def test_order_changes_with_seed_and_epoch():
  n = np.arange(1, 101)
  make = functools.partial(
    plan.plan_epoch, n, plan.bucket_lengths(n), visit=n > 0, batch=1
  )
  orders = {
    tuple(make(seed=seed, epoch=epoch)[1].ravel())
    for seed, epoch in itertools.product(range(3), range(3))
  }
  assert len(orders) == 9


@given(cohort=cohorts(), data=st.data(), epoch=st.integers(0, 50))
def test_runs_see_their_common_bags_in_one_order(cohort, data, epoch):
  n, visit = cohort
  other = np.array(
    data.draw(st.lists(st.booleans(), min_size=len(n), max_size=len(n)))
  )
  other[data.draw(st.integers(0, len(n) - 1))] = True
  buckets = plan.bucket_lengths(n)

  def order(visit):
    _, index = plan.plan_epoch(
      n, buckets, visit=visit, batch=1, seed=7, epoch=epoch
    )
    return index.ravel()

  mine, theirs = order(visit), order(other)
  np.testing.assert_array_equal(mine[other[mine]], theirs[visit[theirs]])
