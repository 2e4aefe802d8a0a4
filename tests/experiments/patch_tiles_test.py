"""Tiles of a study: splits keep groups whole, checks find what is wrong."""

import numpy as np
import pytest

from data.labelled_tiles import LabelledTiles, TileError, from_arrays
from experiments.patches import tiles as patch_tiles
from experiments.patches.tiles import split
from experiments.run.start import Findings


def cohort(sizes, shares, classes=('no', 'yes')):
  """Groups of `sizes`, the second class `shares` of each."""
  label, group = [], []
  for i, (n, share) in enumerate(zip(sizes, shares, strict=True)):
    label += [j < round(share * n) for j in range(n)]
    group += [f'g{i:02d}'] * n
  images = np.zeros((len(label), 2, 2, 3), np.uint8)
  return from_arrays(images, np.array(label, int), group, classes)


def uneven(groups=40, seed=0):
  rng = np.random.default_rng(seed)
  sizes = rng.integers(5, 120, groups)
  return cohort(sizes, rng.beta(0.7, 1.5, groups))


@pytest.mark.parametrize('fractions', [(0.6, 0.2, 0.2), (0.7, 0.3, 0)])
@pytest.mark.parametrize('seed', range(3))
def test_groups_stay_whole_and_classes_even(seed, fractions):
  tiles = uneven()
  parts = split(tiles, fractions, seed=seed)
  assert sorted(np.concatenate(parts)) == list(range(len(tiles)))
  groups = [set(tiles.group[p]) for p in parts]
  assert sum(map(len, groups)) == len(set().union(*groups))
  for c in (0, 1):
    n = (tiles.label == c).sum()
    got = [(tiles.label[p] == c).sum() / n for p in parts]
    np.testing.assert_allclose(got, fractions, atol=0.03)


def test_a_split_hangs_on_groups_and_seed_alone():
  tiles = uneven()
  one = split(tiles, seed=1)
  order = np.random.default_rng(0).permutation(len(tiles))
  moved = split(tiles.take(order), seed=1)
  for a, b in zip(one, moved, strict=True):
    assert set(tiles.id[a]) == set(tiles.id[order][b])
  for by in ('group', 'tile'):
    tests = [split(tiles, seed=s, by=by)[2] for s in range(4)]
    assert len({t.tobytes() for t in tests}) == 4
  # Every group can be tested on.
  rng = np.random.default_rng(0)
  few = cohort(rng.integers(20, 50, 15), rng.uniform(0.2, 0.6, 15))
  tested = [few.group[split(few, seed=s)[2]] for s in range(40)]
  assert set(np.concatenate(tested)) == set(few.group)


def test_tiles_are_split_exactly_and_groups_straddle():
  tiles = uneven()
  parts = split(tiles, seed=0, by='tile')
  assert sorted(np.concatenate(parts)) == list(range(len(tiles)))
  for c in (0, 1):
    n = (tiles.label == c).sum()
    got = [(tiles.label[p] == c).sum() for p in parts]
    np.testing.assert_allclose(got, [0.6 * n, 0.2 * n, 0.2 * n], atol=1)
  assert set(tiles.group[parts[0]]) & set(tiles.group[parts[2]])


def test_few_groups_all_get_a_part():
  tiles = cohort([10, 10, 10, 200], [0.5] * 4)
  for seed in range(5):
    parts = split(tiles, seed=seed)
    assert all(len(set(tiles.label[p])) == 2 for p in parts)


@pytest.mark.parametrize(
  ('shares', 'kwargs', 'problem'),
  [
    ([0] * 5, {}, r'class yes: tiles of 0 group\(s\)'),
    ([0, 0, 0.5, 0, 1], {}, r'yes: .* 2 group\(s\) only \(g02, g04\) for 3'),
    ([0.5] * 5, {'fractions': (0.5, 0.2, 0.2)}, 'sum to 1'),
    ([0.5] * 5, {'fractions': (1.2, -0.2, 0)}, 'none below 0'),
    (
      [0.5] * 2,
      {'by': 'tile', 'fractions': (0.98, 0.01, 0.01)},
      'val part got no tile of class',
    ),
  ],
)
def test_what_cannot_be_split_is_named(shares, kwargs, problem):
  with pytest.raises(TileError, match=problem):
    split(cohort([8] * len(shares), shares), seed=0, **kwargs)


def test_an_unknown_group_is_named():
  tiles = uneven()
  tiles.group[[3, 7]] = ''
  with pytest.raises(TileError, match=r'(?s)2 problem.*0000003.*0000007'):
    split(tiles, seed=0)
  assert len(split(tiles, seed=0, by='tile')) == 3


def test_tiles_are_all_decoded():
  def read(i):
    if i == 2:
      raise TileError('c.png: cannot be read as an image')
    return np.zeros((8, 8, 3), np.uint8)

  columns = map(np.array, (list('abcd'), [0, 1, 0, 1], list('ppqr')))
  tiles = LabelledTiles(*columns, ('neg', 'pos'), read, size=8)
  sets, findings = {'one': tiles, 'other': tiles.take([3])}, Findings()
  patch_tiles.check(findings, sets)
  [unread] = findings.problems
  assert unread.startswith('one: tiles that cannot be read: 1 problem')
  assert unread.endswith('  c.png: cannot be read as an image')
  table = patch_tiles.counts(sets, 'Tiles').csv()
  assert table[1] == ['one', 4, 2, 2, 3, 8]
