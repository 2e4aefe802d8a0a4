"""The packing script, as users run it."""

import feature_folder
import h5py
import next_command
import numpy as np
import pytest

import data
from data import packed
from data.features import FeatureError
from experiments import pack


def test_a_folder_is_packed_once_or_refused(tmp_path, capsys):
  bags, labels = feature_folder.planted(num_bags=6)
  args = ['pack', *feature_folder.write(tmp_path, bags, labels)]
  args += [f'--out_dir={tmp_path / "packed"}', '--name=hospital_1']
  folder = tmp_path / 'packed/slide_bags/hospital_1/1.0.0'
  path = tmp_path / 'features/slide_001.h5'
  path.rename(tmp_path / 'elsewhere')
  with pytest.raises(SystemExit, match=r'error: .*1 of 6 .*: slide_001'):
    pack.main(args)
  assert not folder.exists()
  (tmp_path / 'elsewhere').rename(path)
  pack.main(args)
  instances = sum(len(bag) for bag in bags)
  line = f'{folder}: 6 slides, {instances} instances of 16 dimensions'
  printed, shown = capsys.readouterr()
  assert line in printed
  of = [args[1], f'--features_dir={folder}']
  assert next_command.read(shown) == ('kmil', of)
  for done in ('read', 'packed'):
    assert f'{done}: 6/6 [' in shown
  found, files = packed.find(folder), packed.find(tmp_path / 'features')
  for slide in files.ids():
    np.testing.assert_array_equal(
      found.read(slide).features, files.read(slide).features
    )
  table = data.labels.read(tmp_path / 'labels.csv')
  assert found.cases == dict(zip(table.slide, table.case, strict=True))
  cohort = data.read_cohort(tmp_path / 'labels.csv', folder)
  assert cohort.labels.tolist() == list(map(str, labels))
  assert [len(bag) for bag in cohort.bags] == [len(bag) for bag in bags]
  with pytest.raises(SystemExit, match=f'error: {folder} is there'):
    pack.main(args)
  with pytest.raises(FeatureError, match=f'Give one, as {folder}'):
    packed.find(tmp_path / 'packed')
  with pytest.raises(FeatureError, match='Copy or mount the bucket'):
    packed.find('gs://bucket/slide_bags')


def test_places_that_cannot_be_packed_are_named(tmp_path, capsys):
  """STAMP's, in micrometres, where the file does not say of what scale."""
  bags, labels = feature_folder.planted(num_bags=6)
  args = ['pack', *feature_folder.write(tmp_path, bags, labels)]
  for slide in 'slide_001', 'slide_002':
    with h5py.File(tmp_path / f'features/{slide}.h5', 'r+') as file:
      del file['coords']
      file['coords'] = np.full((len(file['features']), 2), 112.0)
      file.attrs['unit'] = 'um'
      if slide == 'slide_001':
        del file.attrs['level0_mpp']
  pack.main([*args, f'--out_dir={tmp_path / "packed"}'])
  printed = capsys.readouterr().out
  assert 'without coordinates' in printed and ': slide_001. For' in printed
  found = packed.find(tmp_path / 'packed/slide_bags/cohort/1.0.0')
  assert found.read('slide_001').coords is None
  assert (found.read('slide_002').coords == 224).all()
