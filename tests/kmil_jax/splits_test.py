"""Groups of cases, as sites, are dealt whole."""

import itertools

import hypothesis
from hypothesis import given, strategies as st
import numpy as np
import pytest

from kmil_jax import splits
from kmil_jax.splits import SplitError


def cohort(counts):
  """Slides of sites, counts [G, C], each a case of its own."""
  group = [g for g, row in enumerate(counts) for n in row for _ in range(n)]
  label = [c for row in counts for c, n in enumerate(row) for _ in range(n)]
  ids = np.array([f'{i:03}' for i in range(len(group))])
  label = np.array([f'class{c}' for c in label])
  return (ids, label), np.array([f'site{g}' for g in group])


def can_be_trained(counts, fold, k):
  """Whether each part has slides, and each training part every class."""
  held = np.array([np.sum(counts[fold == i], 0) for i in range(k)])
  trained = [np.delete(held, [i, (i + 1) % k], 0).sum(0) for i in range(k)]
  return held.any(1).all() and np.all(np.array(trained)[:, counts.any(0)])


@hypothesis.settings(max_examples=20)
@given(
  counts=st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 3)), min_size=3, max_size=6
  ),
  seed=st.integers(0, 10**6),
)
def test_groups_are_whole_and_folds_are_found_if_there_are_any(counts, seed):
  k = 3
  counts = np.array([row for row in counts if sum(row)] or [(1, 1)])
  every = itertools.product(range(k), repeat=len(counts))
  possible = any(can_be_trained(counts, np.array(fold), k) for fold in every)
  table, group = cohort(counts)
  if not possible:
    with pytest.raises(
      SplitError, match=r'another number of folds|fewer than 3'
    ):
      splits.make(*table, k, seed, group)
    return
  folds = splits.make(*table, k, seed, group)
  assert np.all(sum(split.test.astype(int) for split in folds) == 1)
  for split in folds:
    parts = [set(group[rows]) for rows in split]
    assert sum(map(len, parts)) == len(set(group))


def test_seeds_deal_otherwise():
  table, group = cohort([(2 + i, 1 + i % 3) for i in range(12)])
  first_tests = {
    tuple(np.flatnonzero(splits.make(*table, 4, seed, group)[0].test))
    for seed in range(20)
  }
  assert len(first_tests) > 5


def test_classes_are_as_even_as_groups_allow():
  """Of 12 sites half lack a class; every test part gets one of either kind."""
  site = np.repeat(np.arange(12), 6)
  n = len(site)
  label = np.where((site % 2 == 0) & (np.arange(n) % 2 == 0), 'rare', 'usual')
  ids = np.array([f'{i:03}' for i in range(n)])
  folds = splits.make(ids, label, 6, 0, site.astype(str))
  for split in folds:
    assert split.test.sum() == 12 and (label[split.test] == 'rare').sum() == 3


@hypothesis.settings(max_examples=50)
@given(
  counts=st.lists(st.integers(1, 12), min_size=2, max_size=4),
  slides=st.integers(1, 3),
  seed=st.integers(0, 10**6),
)
def test_one_training_validates_by_a_fifth_of_each_class(counts, slides, seed):
  label = np.repeat([f'class{c}' for c in range(len(counts))], counts)
  case = np.array([f'{i:03}' for i in range(len(label))])
  case, label = np.repeat(case, slides), np.repeat(label, slides)
  ((train, val, test),) = splits.make(case, label, 1, seed)
  assert not test.any()
  assert set(label[train]) == set(label)
  if max(counts) == 1:  # Nobody is left to validate.
    assert train.all()
    assert val.all()
    return
  assert np.all(train ^ val)
  assert not set(case[train]) & set(case[val])
  for c, count in enumerate(counts):
    held = len(set(case[val & (label == f'class{c}')]))
    assert held == (0 if count == 1 else max(1, count // 5))


def test_one_training_keeps_every_class_or_says_why():
  """All slides of class a are of cases that count as b."""
  case = np.array(['0', '0', '1', '1'])
  label = np.array(['a', 'b', 'b', 'b'])
  for seed in range(9):
    try:
      ((train, *_),) = splits.make(case, label, 1, seed)
    except SplitError as e:
      assert 'class a' in str(e)
    else:
      assert set(label[train]) == {'a', 'b'}
