"""Groups of cases, as sites, are dealt whole."""

from hypothesis import given, strategies as st
import numpy as np

from data import splits
from data.manifest import Manifest
from data.splits import PARTS, SplitError


@given(data=st.data(), k=st.integers(3, 5), seed=st.integers(0, 10**6))
def test_groups_are_whole_and_each_slide_is_tested_once(data, k, seed):
  cases = data.draw(st.integers(3 * k, 8 * k))
  # Each group has a case; of two classes each has k cases.
  site = np.array(
    [i % k if i < 2 * k else data.draw(st.integers(0, k)) for i in range(cases)]
  )
  slides = np.arange(2 * cases)
  case = np.array([f'{i // 2:03}' for i in slides])
  label = np.array(['ab'[(i // 2) % 2] for i in slides])
  table = Manifest(case, np.array([f's{i:04}' for i in slides]), label)
  group = np.array([f'site{i}' for i in np.repeat(site, 2)])
  try:
    made = splits.make(table, k, seed, group)
  except SplitError as e:
    # Whole groups may leave a class, or a part, without slides: never silently.
    assert 'no training slide of class' in str(e) or 'part is empty' in str(e)
    return
  assert np.all(sum(split.test.astype(int) for split in made) == 1)
  for split in made:
    parts = [set(group[getattr(split, part)]) for part in PARTS]
    assert sum(map(len, parts)) == len(set(group))


def test_classes_are_as_even_as_groups_allow():
  """Of 12 sites half lack a class; every test part gets one of either kind."""
  site = np.repeat(np.arange(12), 6)
  n = len(site)
  label = np.where((site % 2 == 0) & (np.arange(n) % 2 == 0), 'rare', 'usual')
  ids = np.array([f'{i:03}' for i in range(n)])
  made = splits.make(Manifest(ids, ids, label), 6, 0, site.astype(str))
  for split in made:
    assert split.test.sum() == 12 and (label[split.test] == 'rare').sum() == 3
