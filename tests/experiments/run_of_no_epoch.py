"""A results folder whose training ended before its first epoch."""

import csv
import dataclasses
import shutil
from unittest import mock

import feature_folder
import h5py

from experiments import kmil
from experiments.bags import options

_SETTINGS = options.settings


def _untrained(*args):
  settings = _SETTINGS(*args)
  recipe = dataclasses.replace(settings.recipe, epochs=0)
  return dataclasses.replace(settings, recipe=recipe)


def command(folder, results_dir):
  """Returns the command of the run, on what `make` wrote into `folder`."""
  return [
    *('kmil', '--k=3', '--seed=1', '--epochs=1', '--drop_fraction=0.3'),
    *('--average_with_top_instance', '--heat_maps=0', '--exp_code=kmil'),
    f'--csv_path={folder / "labels.csv"}',
    f'--features_dir={folder / "features"}',
    f'--results_dir={results_dir}',
  ]


def make(folder):
  """Returns the results folder, made in `folder`, and that of its features."""
  planted, labels = feature_folder.planted(24)
  feature_folder.write(folder, [bag[:8] for bag in planted], labels)
  with mock.patch.object(options, 'settings', _untrained):
    kmil.main(command(folder, folder))
  return folder / 'kmil_s1', folder / 'features'


def rows(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def prob(row, prefix=''):
  return [float(row[f'{prefix}prob_{c}']) for c in range(3)]


def some_features(finished, folder, names, **changed):
  """Copies the features of a few slides, some of their attributes changed."""
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    shutil.copy(finished[1] / f'{name}.h5', folder)
    with h5py.File(folder / f'{name}.h5', 'a') as f:
      f.attrs.update(changed)
      f['coords'].attrs.update(changed)
  return folder
