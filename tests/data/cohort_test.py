"""The cohort for a notebook: bags, labels and patients, or every fault."""

import pathlib
import time
from types import MappingProxyType

import numpy as np
import pytest
from samples import write_features
import torch

import data
from data import slides
from data.cohort import match
from data.features import Header
from data.labels import Manifest

WIDTH = 4


def bag(i):
  return i + np.arange(WIDTH * (i + 3), dtype='f4').reshape(-1, WIDTH) / 64


def write(folder, labels):
  """Writes labels.csv and features of s0, s1, ... with 3, 4, ... instances."""
  rows = ['case_id,slide_id,label']
  for i, label in enumerate(labels):
    rows.append(f'c{i // 2},s{i},{label}')
    write_features(folder / f'features/s{i}.h5', features=bag(i))
  (folder / 'labels.csv').write_text('\n'.join(rows))
  return folder / 'labels.csv', folder / 'features'


def test_bags_come_in_the_order_of_ids(tmp_path):
  path, folder = write(tmp_path, 'xyx')
  header, *lines = path.read_text().splitlines()
  path.write_text('\n'.join([header, *lines[::-1]]))
  (folder / 's1.h5').unlink()
  torch.save(torch.from_numpy(bag(1)), folder / 's1.pt')
  cohort = data.read_cohort(path, folder)
  assert cohort.slides.tolist() == ['s0', 's1', 's2']
  assert cohort.labels.tolist() == ['x', 'y', 'x']
  assert cohort.patients.tolist() == ['c0', 'c0', 'c1']
  for i, found in enumerate(cohort.bags):
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, bag(i))


def test_features_that_are_odd_or_there_twice_are_named(tmp_path):
  path, folder = write(tmp_path, 'xyx')
  write_features(folder / 's1.h5', features=np.zeros((3, WIDTH), 'f4'))
  with pytest.warns(UserWarning, match=r'all zero, or all alike, .* s1 \(3 of'):
    data.read_cohort(path, folder)
  write_features(folder / 's2.h5', features=bag(0))
  with pytest.raises(data.CohortError, match='s0, s2 have the very same'):
    data.read_cohort(path, folder)


def test_all_faults_are_named_at_once(tmp_path):
  path, folder = write(tmp_path, 'xyxyx')
  path.write_text(path.read_text() + '\nc9,s9,\n')
  (folder / 's0.h5').unlink()
  (folder / 's1.h5').write_bytes((folder / 's1.h5').read_bytes()[:600])
  write_features(folder / 's2.h5', features=np.full((5, WIDTH), np.nan, 'f4'))
  write_features(folder / 's3.h5', features=np.ones((2, WIDTH + 1), 'f4'))
  with pytest.raises(data.CohortError) as error:
    data.read_cohort(path, folder)
  text = str(error.value)
  for words in (
    'labels.csv: row 7: empty label',
    'no features of 1 of 5 labelled slides: s0',
    's1.h5: not a complete HDF5 file',
    's2.h5: NaN or infinity in 5 of 5 rows',
    'different dimensions are mixed: 4, 5',
  ):
    assert words in text
  assert len(text.splitlines()) == 5


def test_files_of_another_kind_are_named(tmp_path):
  path, folder = write(tmp_path, 'xyx')
  for slide, end in (('s1', 'npy'), ('s2', 'h5.part')):
    (folder / f'{slide}.h5').rename(folder / f'{slide}.{end}')
  with pytest.raises(data.CohortError, match=r'slides end in \.npy there, and'):
    data.read_cohort(path, folder)


def test_numbers_are_those_stated_however_they_are_stored(tmp_path):
  path, folder = write(tmp_path, 'xyx')
  for i, side in enumerate((256, 256.0, np.float32(256))):
    stated = {'patch_size': side, 'encoder': 'x'}
    write_features(folder / f's{i}.h5', stated, features=np.eye(2 + i, WIDTH))
  assert len(data.read_cohort(path, folder).bags) == 3
  stated['patch_size'] = 256.5
  write_features(folder / 's2.h5', stated, features=np.eye(4, WIDTH))
  with pytest.raises(
    data.CohortError, match=r'patch_size are mixed: 256, .* rest are s2\. E'
  ):
    data.read_cohort(path, folder)


def test_missing_slides_may_be_left_out(tmp_path):
  path, folder = write(tmp_path, 'xyx')
  (folder / 's1.h5').unlink()
  with pytest.warns(UserWarning, match='slides: s1. They are left out'):
    cohort = data.read_cohort(path, folder, allow_missing=True)
  assert cohort.slides.tolist() == ['s0', 's2']
  assert [len(bag) for bag in cohort.bags] == [3, 5]


def test_accents_are_one_however_files_are_named(tmp_path):
  """macOS names files with accents taken apart; tables have them composed."""
  path, folder = write(tmp_path, 'xyx')
  path.write_text(path.read_text().replace(',s', ',é').replace('éli', 'sli'))
  for i, name in enumerate(('é0', 'e\u03011', 'e\u03012')):
    (folder / f's{i}.h5').rename(folder / f'{name}.h5')
  assert data.read_cohort(path, folder).slides.tolist() == ['é0', 'é1', 'é2']
  assert slides.slide_id('e\u03011.svs') == 'é1'
  for i, name in enumerate(('É0', 'e\u03011.svs')):
    next(folder.glob(f'*{i}.h5')).rename(folder / f'{name}.h5')
  pairs = r'é0 in the CSV, É0 on disk, é1 in the CSV, é1\.svs on disk'
  with pytest.raises(data.CohortError, match=pairs):
    data.read_cohort(path, folder)


def test_labels_apart_are_refused_and_cases_apart_are_warned_of(tmp_path):
  path, folder = write(tmp_path, 'xyxy')
  text = path.read_text()
  path.write_text(text.replace('c1,s2', 'C0,s2'))
  with pytest.warns(UserWarning, match='labels.csv: cases C0 and c0 look like'):
    data.read_cohort(path, folder)
  path.write_text(text.replace('s2,x', 's2,X'))
  with pytest.raises(data.CohortError, match=r'csv: labels X and x diff'):
    data.read_cohort(path, folder)


class Many(dict):
  """Features of many slides, whose headers are known."""

  path = pathlib.Path('features')
  ids, header, seen = dict.keys, dict.get, MappingProxyType({})


def test_many_slides_take_no_longer_each_than_few():
  slides_of = lambda n: [f's{i}' for i in range(n)]
  stated = {'encoder': 'x', 'mpp': 0.5, 'patch_size': 256}
  seconds = []
  for n in (4_000, 40_000):
    many = Many.fromkeys(slides_of(n), Header(9, WIDTH, stated, 'float16'))
    many['s7'] = Header(9, WIDTH, stated | {'mpp': 0.25}, 'float16')
    columns = [f'c{i}' for i in range(n)], slides_of(n), ['x'] * n
    table = Manifest(*map(np.array, columns))
    began = time.process_time()
    matched = match(many, table)
    seconds.append(time.process_time() - began)
    assert matched.attributes['mpp'] == '0.5'
    (problem,) = matched.problems
    assert 'Other than the rest are s7. E' in problem
  assert seconds[1] < 30 * seconds[0] + 0.2  # In squares it is a hundredfold.
