"""Cohorts that have to fit another: its classes, and how features were made."""

import csv

import feature_folder
import h5py
import numpy as np
import pytest

from data import features
from data.cohort import CohortError
from experiments import cohort as cohorts


def load(folder, labels, *, width=4, attributes=(), like=None):
  rng = np.random.default_rng(0)
  bags = [rng.normal(size=(3, width)) for _ in labels]
  feature_folder.write(folder, bags, labels)
  for path in sorted((folder / 'features').iterdir()):
    made = feature_folder.ATTRIBUTES | dict(attributes)
    found = features.read(path)
    features.write(path, found.features, found.coords, made)
  return cohorts.load(folder / 'labels.csv', folder / 'features', like=like)


def test_classes_are_those_of_the_first_cohort_in_its_order(tmp_path):
  first = load(tmp_path / 'a', ['b', 'a', 'c', 'a'])
  second = load(tmp_path / 'b', ['c', 'c', 'b'], like=first)
  assert second.classes == first.classes == ('a', 'b', 'c')
  assert second.label.tolist() == [2, 2, 1]
  # One class is enough to be tried on, though not to be trained on.
  assert load(tmp_path / 'c', ['b', 'b'], like=first).label.tolist() == [1, 1]


def test_labels_that_the_models_do_not_know_are_named(tmp_path):
  first = load(tmp_path / 'a', ['b', 'a'])
  with pytest.raises(CohortError, match=r'labels x, y are none of .*: a, b'):
    load(tmp_path / 'b', ['x', 'a', 'y'], like=first)


@pytest.mark.parametrize(
  'made,message',
  [
    ({'attributes': {'encoder': 'other'}}, 'encoder other here, planted there'),
    ({'attributes': {'mpp': 0.5}}, 'mpp 0.5 here, 1.0 there'),
    ({'attributes': {'patch_size': 64}}, 'patch_size 64 here, 128 there'),
    ({'width': 5}, 'dimensions 5 here, 4 there'),
  ],
)
def test_features_made_otherwise_are_refused(tmp_path, made, message):
  first = load(tmp_path / 'a', ['b', 'a'])
  with pytest.raises(CohortError, match=message):
    load(tmp_path / 'b', ['b', 'a'], like=first, **made)


def test_what_only_one_side_states_is_no_difference(tmp_path):
  first = load(tmp_path / 'a', ['b', 'a'])
  rows = [['case_id', 'slide_id', 'label'], ['c', 's', 'a']]
  with (tmp_path / 'labels.csv').open('w', newline='') as f:
    csv.writer(f).writerows(rows)
  (tmp_path / 'features').mkdir()
  with h5py.File(tmp_path / 'features' / 's.h5', 'w') as f:
    f['features'] = np.ones((2, 4), np.float32)
  found = cohorts.load(
    tmp_path / 'labels.csv', tmp_path / 'features', like=first
  )
  assert set(first.made) - set(found.made) == {'encoder', 'mpp', 'patch_size'}


def test_slides_of_the_first_cohort_are_refused(tmp_path, capsys):
  first = load(tmp_path / 'a', ['b', 'a', 'b'])
  message = r'holds 3 slides .* slide_000, slide_001, slide_002'
  with pytest.raises(CohortError, match=message):
    cohorts.check_apart(first, first)
  second = load(
    tmp_path / 'b', ['b', 'a'], attributes={'level0_mpp': 0.25}, like=first
  )
  cohorts.check_apart(first, second)
  # The same names may be other patients': said, not refused.
  assert 'cases named case_000, case_001; if' in capsys.readouterr().out
