"""A results folder whose training ended before its first epoch."""

import csv
import shutil

import feature_folder
import h5py

from data.splits import Split
from experiments import (
  cohort as cohorts,
  crossval,
  files,
  provenance,
  summaries,
)
from experiments.crossval import Run, Settings
from kmil_jax import splits
from kmil_jax.models.kmil import Choice
from kmil_jax.types import Recipe

FLAGS = {
  'model': 'kmil',
  'task': 'origin',
  'score': 'var',
  'drop': 'lowest',
  'drop_fraction': 0.3,
  'combine': True,
  'precision': 'float32',
}


def make(folder):
  """Returns the results folder, made in `folder`, and that of its features."""
  planted, labels = feature_folder.planted(24)
  feature_folder.write(folder, [bag[:8] for bag in planted], labels)
  cohort = cohorts.load(folder / 'labels.csv', folder / 'features')
  folds = [
    Split(*parts)
    for parts in splits.make(
      cohort.manifest.case, cohort.manifest.label, 3, seed=1
    )
  ]
  recipe = Recipe(epochs=0)
  settings = Settings(
    model='kmil',
    recipe=recipe,
    seed=1,
    choice=Choice(drop_per_mille=300),
    combine=True,
  )
  run = folder / 'kmil_s1'
  provenance.open_folder(
    run, FLAGS, FLAGS, cohort.fingerprint(), cohort.about()
  )
  files.write_csv(run / 'cohort.csv', cohort.rows())
  runs = [Run(run / f'fold_{i}', i, settings.choice) for i in range(3)]
  crossval.train_folds(
    cohort, folds, runs, range(3), settings, run, attention=True
  )
  summaries.summarise(run, 'kmil', 'origin', 3, cohort.classes)
  return run, folder / 'features'


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
