"""Trained models on new slides: the run's own answers, recovery, refusals."""

import dataclasses
import json
import shutil

import feature_folder
import h5py
import numpy as np
import pytest
from run_of_no_epoch import prob, rows, some_features

from data import features, packed
from experiments.bags import options
from experiments.bags.options import Model, Training
from experiments.maps import tile_scores
from experiments.prediction import bags, models as trained, outputs
from experiments.prediction.models import Card, PredictionError
from experiments.run.options import parse, to_json
from experiments.run.results import Folder, ResultsError
from kmil_jax import calibration, inference

NAMES = [f'slide_{i:03d}' for i in range(4)]


def predict(source, models, folder):
  """Predicts a folder of features; returns the slides that failed."""
  card, function = models
  return outputs.predict(
    bags.find(source, card), card, function, Folder(folder)
  )


def at(models, *temperature):
  """The same models at other temperatures, None without a number."""
  card, function = models
  temperature = temperature or (None,) * len(card.folds)
  return dataclasses.replace(card, temperature=temperature), function


@pytest.fixture(scope='module')
def predicted(finished, models, tmp_path_factory):
  """All slides of the run, predicted anew."""
  folder = tmp_path_factory.mktemp('predicted')
  assert predict(finished[1], models, folder) == []
  return folder


def test_the_runs_slides_get_the_runs_own_predictions(
  finished, models, predicted
):
  held = {row['slide_id']: row for row in rows(predicted / 'predictions.csv')}
  own = rows(finished[0] / 'predictions.csv')
  own += rows(finished[0] / 'validation_predictions.csv')
  assert len(held) == 24 and len(own) == 48
  for row in own:
    again = prob(held[row['slide_id']], f'fold_{row["fold"]}_')
    np.testing.assert_allclose(again, prob(row), atol=1e-6)
  paths = list(finished[0].glob('fold_*/attention/*.h5'))
  assert len(paths) == 24
  for path in paths:
    here = predicted / path.relative_to(finished[0])
    with h5py.File(path) as f, h5py.File(here) as g:
      assert set(f) == set(g) == {'coords', *models[1](np.ones((1, 16)))}
      assert f.attrs['encoder'] == g.attrs['encoder'] == 'planted'
      for name in f:
        np.testing.assert_allclose(g[name][()], f[name][()], atol=1e-6)


def test_an_older_folder_has_the_temperatures_of_this_version(
  finished, models, tmp_path
):
  """Which fitted one on each fold's validation, at a bound here."""
  folder = shutil.copytree(finished[0], tmp_path / 'older')
  for path in folder.glob('fold_*/temperature.json'):
    assert 'fewer than 30' in json.loads(path.read_text())['reason']
    path.write_text('{"temperature": 0.1, "at_bound": true, "val_slides": 8}')
  card, _ = trained.read(Folder(folder), None)
  assert card == models[0] and card.temperature == (None,) * 3


def test_folds_are_calibrated_each_and_averaged(
  finished, models, predicted, tmp_path
):
  """In the table and in maps."""
  other = at(models, 1.5, 0.7, 2.0)
  assert predict(finished[1], other, tmp_path) == []
  paths = tile_scores.find(tmp_path)
  raw = rows(predicted / 'predictions.csv')
  for one, row in zip(raw, rows(tmp_path / 'predictions.csv'), strict=True):
    assert (one['calibrated'], row['calibrated']) == ('no', 'yes')
    folds = []
    for i, temperature in enumerate(other[0].temperature):
      before = np.array([prob(one, f'fold_{i}_')])
      folds.append(calibration.scale(before, temperature)[0])
      np.testing.assert_allclose(prob(row, f'fold_{i}_'), folds[-1])
    np.testing.assert_allclose(prob(row), np.mean(folds, 0))
    spread = [float(row[f'std_{c}']) for c in range(3)]
    np.testing.assert_allclose(spread, np.std(folds, 0, ddof=1), atol=1e-12)
    assert row['pred'] == str(np.mean(folds, 0).argmax())
    shown = tile_scores.read(paths[row['slide_id']])
    np.testing.assert_allclose(shown.prob.mean(0), prob(row), atol=1e-9)
    np.testing.assert_allclose(shown.spread, spread, atol=1e-9)
  predict(finished[1], at(models, 1.5, None, 1.0), tmp_path)
  found = rows(tmp_path / 'predictions.csv')
  assert {row['calibrated'] for row in found} == {'partly'}


def test_one_fold_is_one_of_the_ensemble(finished, predicted, tmp_path, capsys):
  folder = shutil.copytree(predicted, tmp_path / 'copy')
  card, one = trained.read(Folder(finished[0]), 1)
  assert card.folds == (1,)
  found = one.predictor(features.read(finished[1] / 'slide_000.h5').features)
  path = folder / 'fold_1' / 'attention' / 'slide_000.h5'
  with h5py.File(path) as f:
    np.testing.assert_allclose(found['prob'][0], f['prob'][()], atol=1e-6)
  # The ensemble's files of this fold count as its own.
  predict(finished[1], (card, None), folder)
  assert 'done before: 24 of 24 slides' in capsys.readouterr().out
  row, *_ = rows(folder / 'predictions.csv')
  assert row['std_0'] == '' and 'fold_0_prob_0' not in row


def test_a_stopped_loop_goes_on_and_a_changed_slide_is_done_again(
  finished, models, tmp_path
):
  source = some_features(finished, tmp_path / 'features', NAMES)
  card, function = models
  calls = []

  def counted(x):
    if len(calls) == 2:
      raise KeyboardInterrupt
    calls.append(len(x))
    return function(x)

  with pytest.raises(KeyboardInterrupt):
    predict(source, (card, counted), tmp_path)
  calls.clear()
  assert predict(source, (card, counted), tmp_path) == [] and len(calls) == 2
  # Other features of a slide, and a file that is not what it was.
  shutil.copy(source / 'slide_003.h5', source / 'slide_001.h5')
  path = tmp_path / 'fold_2' / 'attention' / 'slide_002.h5'
  path.write_bytes(b'of another')
  calls.clear()
  assert predict(source, (card, counted), tmp_path) == [] and len(calls) == 2


def test_slides_that_cannot_be_read_spoil_no_other_and_leave_no_maps(
  finished, models, tmp_path
):
  source = some_features(finished, tmp_path / 'features', NAMES)
  there = lambda: {path.stem for path in tmp_path.glob('fold_*/*/*.h5')}
  assert predict(source, models, tmp_path) == []
  assert there() == set(NAMES)
  content = (source / 'slide_000.h5').read_bytes()
  (source / 'slide_000.h5').write_bytes(content[: len(content) // 2])
  (source / 'slide_001.h5').unlink()
  with h5py.File(source / 'slide_002.h5', 'a') as f:
    f['features'][0, 0] = np.nan
  failures = predict(source, models, tmp_path)
  assert there() == {'slide_003'}
  assert [r['slide_id'] for r in rows(tmp_path / 'predictions.csv')] == [
    NAMES[3]
  ]
  first, second = rows(tmp_path / 'failures.csv')
  assert first['slide_id'] == 'slide_000' and 'HDF5' in first['reason']
  assert second['slide_id'] == 'slide_002' and 'NaN' in second['reason']
  assert [f.slide_id for f in failures] == ['slide_000', 'slide_002']


@pytest.mark.parametrize(
  'changed,message',
  [
    ({'encoder': 'other'}, 'differ: encoder other here, planted there'),
    ({'mpp': 0.5}, 'differ: mpp 0.5 here, 1.0 there'),
    ({'patch_size': 256}, 'differ: patch_size 256 here, 128 there'),
  ],
)
def test_features_made_otherwise_are_refused(
  finished, models, model_file, tmp_path, changed, message
):
  source = some_features(finished, tmp_path, NAMES[:1], mpp=1.0005)
  of_file, _ = trained.Models(model=model_file).read()
  assert bags.find(source, of_file).unlike == []
  some_features(finished, tmp_path, NAMES[:2], **changed)
  for card in (models[0], of_file):
    assert message in bags.find(source, card).unlike[-1]


def test_other_widths_empty_folders_and_ids_of_folders_are_refused(
  finished, models, tmp_path, monkeypatch, capsys
):
  with pytest.raises(PredictionError, match='no feature files'):
    bags.find(tmp_path, models[0])
  feature_folder.write(tmp_path / 'wide', [np.ones((3, 17))], [0])
  (message,) = bags.find(tmp_path / 'wide' / 'features', models[0]).unlike
  assert 'dimensions 17 here, 16 there' in message
  bags.find(finished[1], dataclasses.replace(models[0], features={}))
  assert 'warning: encoder, mpp, patch_size of these' in capsys.readouterr().out
  ids = ['../slide', 'a\\b', '..', 'slide_001']
  monkeypatch.setattr(packed.Folder, 'ids', lambda self: ids)
  failures = predict(finished[1], models, tmp_path / 'out')
  assert [f.slide_id for f in failures] == sorted(ids[:3])
  assert len(list(tmp_path.glob('**/slide_001.h5'))) == 3


@pytest.mark.parametrize(
  'changed,message',
  [
    ({'format': 2}, 'm.kmil: a card of format 2, in which nothing is wrong'),
    ({'folds': 3}, 'in which folds is wrong'),
    ({'temperature': [1.0]}, 'in which temperature is wrong'),
  ],
)
def test_cards_of_another_kind_are_refused(models, changed, message):
  card = at(models, None, 10.0, 2.0)[0]
  whole = json.loads(json.dumps(card.to_json()))
  # An older version fitted temperatures that end at a bound.
  assert Card.from_json('m.kmil', whole) == at(models, None, None, 2.0)[0]
  with pytest.raises(PredictionError) as error:
    Card.from_json('m.kmil', whole | changed)
  assert message in str(error.value)


def change(path, **values):
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
  'spoil,message',
  [
    (
      lambda f: change(f / 'summary.json', folds=[0, 1]),
      r'\[2\] have no model',
    ),
    (lambda f: shutil.rmtree(f / 'fold_2/checkpoints'), 'no model was kept'),
    (lambda f: change(f / 'config.json', options={'seed': 1}), 'no models of'),
    (lambda f: (f / 'config.json').unlink(), 'config.json: no such file'),
    (lambda f: (f / 'config.json').write_text('{'), 'config.json is damaged'),
    (
      lambda f: change(
        f / 'config.json',
        cohort={'classes': ['0', '1', '2'], 'width': 17, 'features': {}},
      ),
      'no parameters of kmil with 3 classes and 17 features',
    ),
    (
      lambda f: (f / 'config.json').write_text(
        (f / 'config.json').read_text().replace('"cohort"', '"inputs"')
      ),
      'Run its command again',
    ),
  ],
)
def test_folders_that_do_not_fit_are_refused(
  finished, tmp_path, spoil, message
):
  folder = shutil.copytree(finished[0], tmp_path / 'run [1]')
  assert trained.read(Folder(folder), 2)[0].folds == (2,)
  spoil(folder)
  with pytest.raises((ResultsError, OSError), match=message):
    trained.read(Folder(folder), None)


@pytest.mark.parametrize(
  'asked',
  [
    ['--drop_fraction=0.25', '--drop=highest', '--score=one_minus_var'],
    ['--model=dsmil', '--combine', '--precision=bfloat16'],
    [
      '--model=dtfd_gated',
      '--distill=maxs',
      '--pseudo_bags=2',
      '--total_instances=6',
      '--instance_score=predicted',
    ],
  ],
)
def test_the_flags_of_a_training_give_its_design(asked):
  model, training = parse(['kmil', *asked], (Model, Training))
  settings = options.settings(model, training, seed=1)
  values = to_json([model, training.resolved(model.model)])
  design = inference.Design.of_options(values, num_classes=3, width=16)
  assert design == settings.design(3, 16)
