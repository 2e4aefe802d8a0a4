"""A results folder whose training ended before its first epoch."""

import csv
import dataclasses
import shutil

import feature_folder
import h5py

from experiments.bags import cohort as cohorts, crossval, options
from experiments.bags.crossval import Run
from experiments.bags.options import Data, Folds, Model, Training
from experiments.evaluation import summary as summaries
from experiments.run import results
from experiments.run.start import Output

ASKED = (
  Model(drop_fraction=0.3, average_with_top_instance=True),
  Training(epochs=1),
)


def make(folder):
  """Returns the results folder, made in `folder`, and that of its features."""
  planted, labels = feature_folder.planted(24)
  feature_folder.write(folder, [bag[:8] for bag in planted], labels)
  data = Data(folder / 'labels.csv', folder / 'features')
  material = cohorts.load(data, Folds(k=3), 1, folder)
  model, training = ASKED
  settings = options.settings(model, training, 1)
  nothing = dataclasses.replace(settings.recipe, epochs=0)
  settings = dataclasses.replace(settings, recipe=nothing)
  asked = [*ASKED, data, Output(seed=1)]
  path = folder / 'kmil_s1'
  runs = [Run(path / f'fold_{i}', i, settings.choice) for i in range(3)]
  with results.opened(path, asked, material.inputs(), material.about()) as run:
    material.write(run)
    crossval.train_folds(
      material, runs, range(3), settings, training, run, attention=True
    )
    classes = material.cohort.classes
    summaries.summarise(run, 'kmil', 'origin', 3, classes)
  return path, folder / 'features'


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
