"""Models and slides that do not go together are refused, with reasons."""

import dataclasses
import json
import shutil

from absl import flags
from absl.testing import flagsaver
import feature_folder
import numpy as np
import pytest
from run_of_no_epoch import some_features

from data import packed
from experiments import kmil, start
from experiments.prediction import bags, outputs, run_folder
from experiments.prediction.card import Card, PredictionError
from experiments.provenance import ResultsError
from kmil_jax import export, inference


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


def test_ids_that_name_folders_get_no_file(finished, models, monkeypatch):
  class Hostile(packed.Folder):
    def ids(self):
      return ['../slide', 'a\\b', '..', 'slide_001']

  monkeypatch.setattr(packed, 'find', Hostile)
  found, failures = bags.check(finished[1], models.card)
  assert found.ids == ['slide_001']
  assert [f.slide_id for f in failures] == ['../slide', 'a\\b', '..']


def test_temperatures_that_say_little_are_named(models):
  doubts = lambda *temperatures: outputs.doubts(
    dataclasses.replace(models.card, temperature=temperatures)
  )
  first, second = doubts(None, 10.0, 2.0)
  assert first.startswith('no temperature for folds 0, whose probabilities are')
  assert 'the temperatures of folds 1 (10) are bounds of the fit' in second
  (only,) = doubts(None, 1.5, None)
  assert 'no temperature for folds 0, 2, whose' in only
  assert doubts(0.5, 1.5, 2.0) == []


@pytest.mark.parametrize(
  'changed,message',
  [
    ({'format': 2}, 'a card of format 2; this version reads format 1'),
    ({'folds': 3}, 'm.kmil: folds of its card are not as written'),
    ({'temperature': [1.0]}, 'without a temperature per fold'),
  ],
)
def test_cards_of_another_kind_are_refused(models, changed, message):
  whole = json.loads(json.dumps(models.card.to_json()))
  assert Card.from_json('m.kmil', whole) == models.card
  with pytest.raises(PredictionError) as error:
    Card.from_json('m.kmil', whole | changed)
  assert message in str(error.value)


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
  with flagsaver.flagsaver():
    flags.FLAGS(['kmil', *asked])
    settings = kmil.asked_settings()
    values = start.resolved('experiments.kmil')
    design = inference.Design.of_flags(values, num_classes=3, width=16)
  assert design == settings.design(3, 16)
