"""Results folders that several files of tests read, and none may change."""

import pytest


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
  """The folder of a run, and that of its features."""
  import run_of_no_epoch

  return run_of_no_epoch.make(tmp_path_factory.mktemp('cohort'))


@pytest.fixture(scope='session')
def models(finished):
  """The card of all folds of the run, and the function of a bag."""
  from experiments.prediction import models
  from experiments.run.results import Folder

  card, trained = models.read(Folder(finished[0]), None)
  return card, trained.predictor


@pytest.fixture(scope='session')
def model_file(finished):
  """The run's models as a file."""
  from experiments import export

  path = finished[0].parent / 'model.kmil'
  export.main(['export', f'--run={finished[0]}', f'--out={path}'])
  return path
