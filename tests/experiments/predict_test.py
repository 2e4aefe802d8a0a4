"""Trained models on new slides: the run's own answers, refusals, recovery."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import feature_folder
import h5py
import numpy as np
import pytest

from data import features, splits
from experiments import cohort as cohorts, crossval, provenance, summaries
from experiments.prediction import bags, loop, outputs, predictor, run_folder
from experiments.prediction.card import Card, PredictionError
from experiments.provenance import ResultsError
from experiments.training import Run, Settings
from kmil_jax import calibration, export
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


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of a run that ended before its first epoch, and its features."""
  folder = tmp_path_factory.mktemp('cohort')
  planted, labels = feature_folder.planted(24)
  feature_folder.write(folder, [bag[:8] for bag in planted], labels)
  cohort = cohorts.load(folder / 'labels.csv', folder / 'features')
  folds = splits.make(cohort.manifest, 3, seed=1)
  recipe = Recipe(epochs=0)
  settings = Settings(
    'kmil',
    recipe,
    recipe,
    seed=1,
    choice=Choice(drop_per_mille=300),
    combine=True,
  )
  run = folder / 'kmil_s1'
  provenance.open_folder(
    run, FLAGS, FLAGS, cohort.fingerprint(), cohort.about()
  )
  runs = [Run(run / f'fold_{i}', i, settings.choice) for i in range(3)]
  crossval.complete(
    cohort, folds, runs, range(3), settings, run, attention=True
  )
  summaries.summarise(run, 'kmil', 'origin', 3, cohort.classes)
  return run, folder / 'features'


@pytest.fixture(scope='module')
def models(finished):
  return predictor.of_run(finished[0], None)


@pytest.fixture(scope='module')
def model_file(finished):
  """The run's models as a file."""
  card, design, weights = run_folder.read(finished[0], None)
  archive = export.Archive(card.to_json(), weights, design.lower(weights))
  path = finished[0].parent / 'model.kmil'
  path.write_bytes(export.pack(archive))
  return path


@pytest.fixture(scope='module')
def predicted(finished, models, tmp_path_factory):
  """All slides of the run, predicted anew."""
  folder = tmp_path_factory.mktemp('predicted')
  found, failures = bags.check(finished[1], models.card)
  assert failures == [] == loop.predict(found, models, folder)
  return folder, found.ids


def rows(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def prob(row, prefix=''):
  return [float(row[f'{prefix}prob_{c}']) for c in range(3)]


def some_features(finished, folder, names, **changed):
  """Copies the features of a few slides, some of their attributes changed."""
  folder.mkdir(exist_ok=True)
  for name in names:
    shutil.copy(finished[1] / f'{name}.h5', folder)
    with h5py.File(folder / f'{name}.h5', 'a') as f:
      f.attrs.update(changed)
      f['coords'].attrs.update(changed)
  return folder


def test_the_runs_slides_get_the_runs_own_predictions(
  finished, models, predicted
):
  folder, ids = predicted
  outputs.write_tables(folder, models.card, ids, [], calibrated=False)
  told = {row['slide_id']: row for row in rows(folder / 'predictions.csv')}
  own = rows(finished[0] / 'predictions.csv')
  assert len(told) == 24 and len(own) == 48
  for row in own:
    again = prob(told[row['slide_id']], f'fold_{row["fold"]}_')
    np.testing.assert_allclose(again, prob(row), atol=1e-6)
  paths = list(finished[0].glob('fold_*/attention/*.h5'))
  assert len(paths) == 24
  for path in paths:
    here = folder / path.relative_to(finished[0])
    with h5py.File(path) as f, h5py.File(here) as g:
      assert set(f) == set(g) == {'coords', *models(np.ones((1, 16)))}
      assert f.attrs['encoder'] == g.attrs['encoder'] == 'planted'
      for name in f:
        np.testing.assert_allclose(g[name][()], f[name][()], atol=1e-6)


def test_folds_are_calibrated_each_and_averaged(finished, models, predicted):
  folder, ids = predicted
  outputs.write_tables(folder, models.card, ids, [], calibrated=False)
  raw = rows(folder / 'predictions.csv')
  outputs.write_tables(folder, models.card, ids, [], calibrated=True)
  assert len({t for t in models.card.temperature if t != 1}) > 1
  for one, row in zip(raw, rows(folder / 'predictions.csv'), strict=True):
    assert (one['calibrated'], row['calibrated']) == ('no', 'yes')
    folds = []
    for i in range(3):
      path = finished[0] / f'fold_{i}' / 'temperature.json'
      temperature = json.loads(path.read_text())['temperature']
      before = np.array([prob(one, f'fold_{i}_')])
      folds.append(calibration.scale(before, temperature)[0])
      np.testing.assert_allclose(prob(row, f'fold_{i}_'), folds[-1])
    np.testing.assert_allclose(prob(row), np.mean(folds, 0))
    spread = [float(row[f'std_{c}']) for c in range(3)]
    np.testing.assert_allclose(spread, np.std(folds, 0, ddof=1), atol=1e-12)
    assert row['pred'] == str(np.mean(folds, 0).argmax())


def test_one_fold_is_one_of_the_ensemble(finished, predicted, tmp_path):
  folder, ids = predicted
  one = predictor.of_run(finished[0], 1)
  assert one.card.folds == (1,)
  said = one(features.read(finished[1] / f'{ids[0]}.h5').features)
  with h5py.File(outputs.path_of(folder, 1, ids[0])) as f:
    np.testing.assert_allclose(said['prob'][0], f['prob'][()], atol=1e-6)
  # The ensemble's file of this fold counts as its own.
  found, _ = bags.check(finished[1], one.card)
  assert all(
    outputs.is_done(folder, one.card, slide, found.source.digest(slide))
    for slide in ids
  )
  outputs.write_tables(folder, one.card, ids[:1], [], calibrated=False)
  (row,) = rows(folder / 'predictions.csv')
  assert row['std_0'] == '' and 'fold_0_prob_0' not in row


def test_a_stopped_loop_goes_on_and_a_changed_slide_is_done_again(
  finished, models, tmp_path
):
  names = [f'slide_{i:03d}' for i in range(5)]
  source = some_features(finished, tmp_path / 'features', names)
  calls = []

  class Counted:
    card = models.card

    def __init__(self, stop):
      self.stop = stop
      calls.clear()

    def __call__(self, x):
      if len(calls) == self.stop:
        raise KeyboardInterrupt
      calls.append(len(x))
      return models(x)

  found, _ = bags.check(source, models.card)
  with pytest.raises(KeyboardInterrupt):
    loop.predict(found, Counted(2), tmp_path / 'out')
  assert loop.predict(found, Counted(9), tmp_path / 'out') == []
  assert len(calls) == 3
  # Other features of a slide, and a file that is not what it was.
  shutil.copy(source / 'slide_004.h5', source / 'slide_001.h5')
  outputs.path_of(tmp_path / 'out', 2, 'slide_003').write_bytes(b'of another')
  assert loop.predict(found, Counted(9), tmp_path / 'out') == []
  assert len(calls) == 2


def test_slides_that_cannot_be_read_spoil_no_other(finished, models, tmp_path):
  names = [f'slide_{i:03d}' for i in range(4)]
  source = some_features(finished, tmp_path / 'features', names)
  content = (source / 'slide_000.h5').read_bytes()
  (source / 'slide_000.h5').write_bytes(content[: len(content) // 2])
  with h5py.File(source / 'slide_002.h5', 'a') as f:
    f['features'][0, 0] = np.nan
  found, failures = bags.check(source, models.card)
  failures += loop.predict(found, models, tmp_path)
  outputs.write_tables(tmp_path, models.card, found.ids, failures, True)
  done = [row['slide_id'] for row in rows(tmp_path / 'predictions.csv')]
  assert done == ['slide_001', 'slide_003']
  first, second = rows(tmp_path / 'failures.csv')
  assert first['slide_id'] == 'slide_000' and 'HDF5' in first['reason']
  assert second['slide_id'] == 'slide_002' and 'NaN' in second['reason']


@pytest.mark.parametrize(
  'changed,message',
  [
    ({'encoder': 'other'}, 'slide_001: encoder other, not planted'),
    ({'mpp': 0.5}, 'slide_001: mpp 0.5, not 1.0'),
    ({'patch_size': 256}, 'slide_001: patch_size 256, not 128'),
  ],
)
def test_features_made_otherwise_are_refused(
  finished, models, model_file, tmp_path, changed, message
):
  source = some_features(finished, tmp_path, ['slide_000'])
  some_features(finished, tmp_path, ['slide_001'], **changed)
  of_file = Card.from_json(model_file, export.read(model_file).card)
  for card in (models.card, of_file):
    with pytest.raises(PredictionError) as error:
      bags.check(source, card)
    assert 'features of 1 of 2 slides are not made as' in str(error.value)
    assert message in str(error.value)


def test_other_widths_and_empty_folders_are_refused(models, tmp_path):
  with pytest.raises(PredictionError, match='no feature files'):
    bags.check(tmp_path, models.card)
  with pytest.raises(PredictionError, match='no such folder'):
    bags.check(tmp_path / 'absent', models.card)
  wide = [np.ones((3, 17))]
  feature_folder.write(tmp_path / 'wide', wide, [0])
  with pytest.raises(PredictionError, match='17 features, not 16'):
    bags.check(tmp_path / 'wide' / 'features', models.card)


def change(path, **values):
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
  'spoil,message',
  [
    (lambda f: (f / 'fold_2/temperature.json').unlink(), 'not finished: 2;'),
    (lambda f: change(f / 'summary.json', classes=['1', '0', '2']), 'classes'),
    (lambda f: change(f / 'config.json', flags={'seed': 1}), 'another script'),
    (lambda f: (f / 'config.json').unlink(), 'config.json: no such file'),
    (lambda f: (f / 'config.json').write_text('{'), 'config.json: not JSON'),
    (
      lambda f: change(
        f / 'config.json',
        cohort={'classes': ['0', '1', '2'], 'width': 17, 'features': {}},
      ),
      'not the parameters of kmil with 3 classes and 17 features',
    ),
  ],
)
def test_folders_that_do_not_fit_are_refused(
  finished, tmp_path, spoil, message
):
  folder = tmp_path / 'run'
  shutil.copytree(finished[0], folder)
  spoil(folder)
  with pytest.raises(ResultsError) as error:
    run_folder.read(folder, None)
  assert message in str(error.value)


def test_a_run_of_an_older_version_is_told_how_to_go_on(finished, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(finished[0], folder)
  config = json.loads((folder / 'config.json').read_text())
  del config['cohort']
  (folder / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ResultsError, match='give its training command again'):
    run_folder.read(folder, 0)


# Runs main once per list of a module and its arguments, and notes the outcome.
_RUNS = """
import importlib, json, sys
from absl import flags
from absl.testing import flagsaver
from experiments import export, predict
outcomes = []
for module, *arguments in json.loads(sys.argv[1]):
  with flagsaver.flagsaver():
    try:
      {'export': export, 'predict': predict}[module].main(
        flags.FLAGS([module, *arguments])
      )
      outcomes.append(0)
    except BaseException as error:
      outcomes.append(getattr(error, 'code', str(error)))
print(json.dumps(outcomes))
"""


def start(code, *arguments):
  return subprocess.run(
    [sys.executable, '-c', code, *arguments],
    cwd=feature_folder.ROOT,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
    capture_output=True,
    encoding='utf-8',
    timeout=300,
  )


def test_the_commands(finished, model_file, tmp_path):
  folder, _ = finished
  names = ['slide_000', 'slide_001']
  source = some_features(finished, tmp_path / 'new', names)
  (source / 'broken.h5').write_bytes(b'no features')
  run, new = f'--run={folder}', f'--features_dir={source}'
  out, mine = f'--results_dir={tmp_path}', f'--out={tmp_path / "mine.kmil"}'
  done = start(
    _RUNS,
    json.dumps(
      [
        ['export', run, mine],
        ['export', run, mine, '--fold=two'],
        ['export', run],
        ['predict', run, new, out, '--fold=2'],
        ['predict', run, new, out, '--fold=2', '--check'],
        ['predict', run, new, out, '--fold=3'],
        ['predict', run, new, out, mine.replace('out', 'model')],
        ['predict', mine.replace('out', 'model'), new, '--fold=1'],
        ['predict', run, new, '--weights=imagenet'],
        ['predict', run, f'--slides_dir={tmp_path}'],
      ]
    ),
  )
  assert done.returncode == 0, done.stderr
  codes = json.loads(done.stdout.splitlines()[-1])
  assert codes[0] == 0
  # The same run gives the same file, wherever it is made.
  assert (tmp_path / 'mine.kmil').read_bytes() == model_file.read_bytes()
  assert "--fold=two: give a number, or 'ensemble'" in codes[1]
  assert 'give --run and --out' in codes[2]
  for code in codes[3:5]:
    assert code.startswith('error: 1 slides have no prediction:\n  broken')
  assert (
    len(rows(tmp_path / f'predict_{folder.name}_fold_2_new/predictions.csv'))
    == 2
  )
  assert 'folds of' in codes[5] and 'are 0 to 2' in codes[5]
  assert 'give one of --run and --model' in codes[6]
  assert '--fold goes with --run' in codes[7]
  assert '--weights goes with --slides_dir' in codes[8]
  assert 'features of encoder planted' in codes[9]


# No models; and of the third file that is written, only half.
_ALONE = """
import sys
for name in ('kmil_jax.models', 'kmil_jax.train', 'experiments.training'):
  sys.modules[name] = None
"""
_KILLED = """
import os, signal
from experiments import files
write_h5, written = files.write_h5, []
def killed(path, arrays, attributes):
  if len(written) == 4:
    path.with_name('.' + path.name + '.part').write_bytes(b'half of it')
    os.kill(os.getpid(), signal.SIGKILL)
  written.append(path)
  write_h5(path, arrays, attributes)
files.write_h5 = killed
"""
_PREDICT = """
from absl import app
from experiments import predict
app.run(predict.main)
"""


def test_a_killed_prediction_by_file_goes_on_without_the_models_code(
  finished, models, model_file, predicted, tmp_path
):
  names = ['slide_000', 'slide_001', 'slide_002']
  source = some_features(finished, tmp_path / 'new', names)
  arguments = [
    f'--model={model_file}',
    f'--features_dir={source}',
    f'--results_dir={tmp_path}',
    '--exp_code=out',
    '--nocalibrate',
  ]
  done = start(_ALONE + _KILLED + _PREDICT, *arguments)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert not (tmp_path / 'out' / 'predictions.csv').exists()
  done = start(_ALONE + _PREDICT, *arguments)
  assert done.returncode == 0, done.stderr
  assert 'done before: 1 of 3 slides' in done.stdout
  folder, _ = predicted
  outputs.write_tables(folder, models.card, names, [], calibrated=False)
  want = rows(folder / 'predictions.csv')
  got = rows(tmp_path / 'out' / 'predictions.csv')
  for one, other in zip(want, got, strict=True):
    assert one['slide_id'] == other['slide_id']
    for i in range(3):
      np.testing.assert_allclose(
        prob(other, f'fold_{i}_'), prob(one, f'fold_{i}_'), atol=1e-6
      )
