"""A second cohort: each fold's own model, and nothing of another's features."""

import csv
import json
import shutil

import feature_folder
import h5py
import numpy as np
import pytest

QUICK = ['--k=3', '--seed=1', '--lr=0.005', '--epochs=8']
NEVER = 'from kmil_jax import loop; loop.fit = None'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run that was not told of a second cohort, and a copy of the first."""
  folder = tmp_path_factory.mktemp('cohort')
  data_flags = feature_folder.write(folder, *feature_folder.planted())
  args = [*data_flags, *QUICK, f'--results_dir={folder}']
  feature_folder.run(*args)
  shutil.copytree(folder / 'features', folder / 'copy')
  for path in (folder / 'copy').iterdir():  # The same bags in other files.
    with h5py.File(path, 'a') as f:
      f.attrs['copied'] = True
  copy = [
    f'--external_csv={folder / "labels.csv"}',
    f'--external_features_dir={folder / "copy"}',
  ]
  return args, copy, folder / 'kmil_origin_s1'


def rows(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def prob(row):
  return [float(row[f'prob_{c}']) for c in range(3)]


def test_the_models_own_bags_get_their_own_predictions_again(finished):
  args, copy, folder = finished
  out = feature_folder.run(*args, *copy, before=NEVER)
  assert 'warning: both cohorts have cases named case_000, case_001' in out
  assert 'external cohort, 60 slides of 60 cases' in out
  told = {
    (row['fold'], row['slide_id']): prob(row)
    for row in rows(folder / 'external_predictions.csv')
  }
  assert len(told) == 4 * 60  # Three folds and their mean.
  tested = rows(folder / 'predictions.csv')
  for row in tested:
    np.testing.assert_allclose(
      told[row['fold'], row['slide_id']], prob(row), atol=1e-5
    )
  for slide in {row['slide_id'] for row in tested}:
    folds = [told[fold, slide] for fold in '012']
    np.testing.assert_allclose(told['mean', slide], np.mean(folds, 0))
    assert np.ptp(folds, axis=0).max() > 1e-6
  summary = json.loads((folder / 'summary.json').read_text())
  assert len(summary['external']['metrics']['auroc']['per_fold']) == 3


def test_another_cohort_in_the_same_folder_is_refused(finished):
  args, copy, folder = finished
  (folder / 'external.json').write_text('{"labels_sha256": "of another"}')
  never_even_read = NEVER + '; from experiments.bags import crossval'
  never_even_read += '; crossval.train_folds = None'
  process = feature_folder.script(*args, *copy, before=never_even_read)
  out, _ = process.communicate(timeout=120)
  assert process.returncode != 0
  assert 'the external results are of another cohort' in out
