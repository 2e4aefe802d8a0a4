"""Trained models on new slides: the run's own answers, recovery, faults."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
from run_of_no_epoch import prob, rows, some_features

from data import features
from experiments.prediction import bags, loop, outputs, predictor
from experiments.slide_maps import tile_scores
from kmil_jax import calibration


@pytest.fixture(scope='module')
def predicted(finished, models, tmp_path_factory):
  """All slides of the run, predicted anew."""
  folder = tmp_path_factory.mktemp('predicted')
  found, failures = bags.check(finished[1], models.card)
  assert failures == [] == loop.predict(found, models, folder)
  return folder, found.ids


def test_the_runs_slides_get_the_runs_own_predictions(
  finished, models, predicted
):
  folder, ids = predicted
  outputs.write_tables(folder, models.card.uncalibrated(), ids, [])
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


def test_too_few_patients_give_no_temperature(finished, models):
  for i in range(3):
    path = finished[0] / f'fold_{i}' / 'temperature.json'
    saved = json.loads(path.read_text())
    assert saved['temperature'] == 1 and 'fewer than 30' in saved['reason']
  assert models.card.temperature == (None,) * 3
  (doubt,) = outputs.doubts(models.card)
  assert 'for folds 0, 1, 2, whose' in doubt


def test_a_folder_of_an_older_version_has_the_temperatures_of_this(
  finished, models, tmp_path
):
  """Which fitted one on each fold's validation, at a bound here."""
  folder = shutil.copytree(finished[0], tmp_path / 'older')
  for path in folder.glob('fold_*/temperature.json'):
    older = {'temperature': 0.1, 'at_bound': True, 'val_slides': 8}
    path.write_text(json.dumps(older))
  assert predictor.of_run(folder, None).card == models.card


def test_folds_are_calibrated_each_and_averaged(models, predicted):
  folder, ids = predicted
  outputs.write_tables(folder, models.card.uncalibrated(), ids, [])
  raw = rows(folder / 'predictions.csv')
  card = dataclasses.replace(models.card, temperature=(1.5, 0.7, 2.0))
  outputs.write_tables(folder, card, ids, [])
  for one, row in zip(raw, rows(folder / 'predictions.csv'), strict=True):
    assert (one['calibrated'], row['calibrated']) == ('no', 'yes')
    folds = []
    for i, temperature in enumerate(card.temperature):
      before = np.array([prob(one, f'fold_{i}_')])
      folds.append(calibration.scale(before, temperature)[0])
      np.testing.assert_allclose(prob(row, f'fold_{i}_'), folds[-1])
    np.testing.assert_allclose(prob(row), np.mean(folds, 0))
    spread = [float(row[f'std_{c}']) for c in range(3)]
    np.testing.assert_allclose(spread, np.std(folds, 0, ddof=1), atol=1e-12)
    assert row['pred'] == str(np.mean(folds, 0).argmax())


def test_maps_show_the_probabilities_of_the_table(models, predicted, tmp_path):
  folder, ids = predicted
  folder = shutil.copytree(folder, tmp_path / 'copy')
  card = dataclasses.replace(models.card, temperature=(1.5, 0.7, 2.0))
  for slide in ids:
    for fold, temperature in enumerate(card.temperature):
      with h5py.File(outputs.path_of(folder, fold, slide), 'a') as f:
        f.attrs['temperature'] = temperature
  outputs.write_tables(folder, card, ids, [])
  paths = tile_scores.find(folder)
  for row in rows(folder / 'predictions.csv'):
    shown = tile_scores.read(paths[row['slide_id']])
    np.testing.assert_allclose(shown.prob.mean(0), prob(row), atol=1e-9)
    spread = [float(row[f'std_{c}']) for c in range(3)]
    np.testing.assert_allclose(shown.spread, spread, atol=1e-9)


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
  # At another temperature it is another file.
  digest = found.source.digest(ids[0])
  other = dataclasses.replace(one.card, temperature=(2.0,))
  assert not outputs.is_done(folder, other, ids[0], digest)
  outputs.write_tables(folder, one.card, ids, [])
  row, *_ = rows(folder / 'predictions.csv')
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
  outputs.write_tables(tmp_path, models.card, found.ids, failures)
  done = [row['slide_id'] for row in rows(tmp_path / 'predictions.csv')]
  assert done == ['slide_001', 'slide_003']
  first, second = rows(tmp_path / 'failures.csv')
  assert first['slide_id'] == 'slide_000' and 'HDF5' in first['reason']
  assert second['slide_id'] == 'slide_002' and 'NaN' in second['reason']


def test_maps_of_slides_without_a_prediction_do_not_stay(
  finished, models, tmp_path
):
  names = ['slide_000', 'slide_001', 'slide_002']
  source = some_features(finished, tmp_path / 'features', names)
  there = lambda: {path.stem for path in tmp_path.glob('fold_*/*/*.h5')}
  for gone in (None, 'slide_000', 'slide_002'):
    if gone == 'slide_000':
      (source / f'{gone}.h5').unlink()
    elif gone:
      (source / f'{gone}.h5').write_bytes(b'damaged')
    found, failures = bags.check(source, models.card)
    failures += loop.predict(found, models, tmp_path)
    outputs.write_tables(tmp_path, models.card, found.ids, failures)
    names = [name for name in names if name != gone]
    assert there() == set(names)


@pytest.mark.parametrize(
  'temperature,said',
  [
    ((1.5, 0.7, 1.0), 'yes'),
    ((1.5, None, 1.0), 'partly'),
    ((1.5, 10.0, 1.0), 'bound'),
    ((None, None, None), 'no'),
  ],
)
def test_a_row_says_what_its_temperatures_are_worth(
  models, predicted, tmp_path, temperature, said
):
  folder = shutil.copytree(predicted[0], tmp_path / 'copy')
  card = dataclasses.replace(models.card, temperature=temperature)
  outputs.write_tables(folder, card, predicted[1], [])
  assert {r['calibrated'] for r in rows(folder / 'predictions.csv')} == {said}
