"""The packing script, as users run it."""

import functools

import feature_folder
import numpy as np
import pytest
import script_process

import data
from data import packed
from data.features import FeatureError

pack = functools.partial(script_process.run, 'experiments.pack')


def test_a_folder_is_packed_once_and_says_how_large(tmp_path):
  bags, labels = feature_folder.planted(num_bags=6)
  args = feature_folder.write(tmp_path, bags, labels)
  args.append(f'--out_dir={tmp_path / "packed"}')
  run = pack(*args, '--name=hospital_1')
  assert run.returncode == 0, run.stderr
  folder = tmp_path / 'packed/slide_bags/hospital_1/1.0.0'
  instances = sum(len(bag) for bag in bags)
  assert '--file_format=array_record' in run.stdout
  last = run.stdout.splitlines()[-1]
  assert last.startswith(f'{folder}: 6 slides, {instances} instances of 16 ')
  found, files = packed.find(folder), packed.find(tmp_path / 'features')
  for i in range(6):
    slide = f'slide_{i:03d}'
    np.testing.assert_array_equal(
      found.read(slide).features, files.read(slide).features
    )

  cohort = data.read_cohort(tmp_path / 'labels.csv', folder)
  assert cohort.labels.tolist() == list(map(str, labels))
  assert [len(bag) for bag in cohort.bags] == [len(bag) for bag in bags]

  with pytest.raises(FeatureError, match=f'give one, as {folder}'):
    packed.find(tmp_path / 'packed')
  with pytest.raises(FeatureError, match='copy or mount the bucket'):
    packed.find('gs://bucket/slide_bags')

  again = pack(*args, '--name=hospital_1')
  assert again.returncode == 1
  assert again.stderr.splitlines()[-1].startswith(f'error: {folder} is there')
  assert pack(*args, '--name=hospital_2').returncode == 0


def test_faults_end_the_script_with_one_message(tmp_path):
  bags, labels = feature_folder.planted(num_bags=4)
  args = feature_folder.write(tmp_path, bags, labels)
  args.append(f'--out_dir={tmp_path / "packed"}')
  for i in (1, 2):
    (tmp_path / f'features/slide_00{i}.h5').unlink()
  run = pack(*args)
  assert run.returncode == 1
  assert 'Traceback' not in run.stderr
  assert 'slide_001.h5: no such file' in run.stderr
  assert 'slide_002.h5: no such file' in run.stderr
  assert not (tmp_path / 'packed/slide_bags/cohort/1.0.0').exists()
