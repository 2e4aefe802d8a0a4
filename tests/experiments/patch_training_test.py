"""Patch classifiers in folders: refused, stopped, finished, read again."""

import dataclasses
import json
import shutil

import chex
import numpy as np
import pytest
import safetensors.numpy
from tiny_classifier import Tiny
from tiny_training import RECIPE, TRAIN, VAL, make_tiles, train

from data.labelled_tiles import TileError
from data.weights import WeightsError
from experiments.patches import training
from experiments.patches.training import Training
from experiments.run import results
from experiments.run.options import OptionError
from experiments.run.progress import Progress
from experiments.run.results import Folder, ResultsError
from kmil_jax import checksums, loop, models, parallel, port
from kmil_jax.tasks.tiles import PatchError


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setitem(models.CLASSIFIERS, 'tiny', Tiny)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('trained') / 'x'
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.CLASSIFIERS, 'tiny', Tiny)
    return folder, train(folder)


def refuse(*args, **kwargs):
  raise AssertionError('trained again')


def same(one, other):
  chex.assert_trees_all_equal(one.variables, other.variables)
  for got, want in zip(one.predict(VAL), other.predict(VAL), strict=True):
    np.testing.assert_array_equal(got, want)
  assert one.epoch == other.epoch
  for mine, theirs in zip(one.history, other.history, strict=True):
    assert mine | {'tiles_per_second': 0} == theirs | {'tiles_per_second': 0}


def test_training_learns_and_leaves_a_record_and_a_model(finished):
  folder, trained = finished
  names = {p.name for p in folder.iterdir()}
  assert names == {
    *('config.json', 'metrics.jsonl', 'model.safetensors', 'sha256.json')
  }
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['epoch'] for line in lines] == list(range(5))
  assert trained.history[-1]['val_auroc'] > 0.9
  assert set(trained.history[0]) == {'epoch', *training.COLUMNS}
  prob, features = trained.predict(VAL)
  assert prob.shape == (20, 2) and features.shape == (20, 4)
  np.testing.assert_allclose(prob.sum(1), 1, rtol=1e-5)
  accuracy = trained.history[trained.epoch]['val_accuracy']
  assert (prob.argmax(1) == VAL.label).mean() == pytest.approx(accuracy)
  with pytest.raises(TileError, match='no tile to evaluate'):
    trained.predict(VAL.take(np.arange(0)))


def test_a_finished_folder_is_loaded_and_not_trained_again(
  finished, monkeypatch
):
  folder, trained = finished
  before = (folder / 'model.safetensors').stat().st_mtime_ns
  monkeypatch.setattr(loop, 'fit', refuse)
  same(train(folder), trained)
  assert (folder / 'model.safetensors').stat().st_mtime_ns == before


@pytest.mark.parametrize('name', ['model.safetensors', 'sha256.json'])
def test_a_model_that_was_changed_is_trained_again_and_not_read(
  finished, tmp_path, capsys, name
):
  folder = shutil.copytree(finished[0], tmp_path / 'x')
  whole = (folder / 'model.safetensors').read_bytes()
  changed = bytearray((folder / name).read_bytes())
  changed[-9] ^= 128
  (folder / name).write_bytes(changed)
  if name == 'model.safetensors':
    with pytest.raises(WeightsError, match=f'{folder}/{name} was changed'):
      results.read_weights(folder / name)
  same(train(folder), finished[1])
  assert f'warning: {folder}/{name} is damaged. ' in capsys.readouterr().out
  assert checksums.damage(folder) is None
  # What began with its weights knows them by this hash.
  assert (folder / 'model.safetensors').read_bytes() == whole
  # Older ones have no hash.
  (folder / 'sha256.json').unlink()
  same(train(folder), finished[1])
  assert not capsys.readouterr().out


@pytest.mark.parametrize('lines', [0, 1, 5])
def test_a_model_of_another_epoch_than_the_history_names_is_refused(
  finished, tmp_path, monkeypatch, lines
):
  folder = shutil.copytree(finished[0], tmp_path / 'x')
  monkeypatch.setattr(loop, 'fit', refuse)
  part = Folder(folder)
  history = part.read('metrics.jsonl')[:lines]
  if lines == 5:
    history[-1]['best_epoch'] = (finished[1].epoch + 1) % 5
  part.write('metrics.jsonl', history)
  kept = history[-1]['best_epoch'] if lines else None
  held = f'{folder}/model.safetensors is of epoch {finished[1].epoch}, and'
  with pytest.raises(ResultsError) as error:
    train(folder)
  assert str(error.value).startswith(held)
  assert f'best_epoch {kept}: ' in str(error.value)
  assert f'Remove the folder {folder} and give' in str(error.value)
  part.write('metrics.jsonl', [*history, {'est_b': 3}])
  with pytest.raises(ResultsError, match=r'metrics\.jsonl is damaged'):
    train(folder)


def test_other_settings_or_tiles_are_refused_with_their_list(
  finished, monkeypatch
):
  folder, _ = finished
  monkeypatch.setattr(loop, 'fit', refuse)
  with pytest.raises(ResultsError) as e:
    train(
      folder, dataclasses.replace(RECIPE, epochs=6, batch=8), freeze='conv1'
    )
  assert str(e.value).splitlines()[1:-1] == [
    '  batch: 16 before, 8 now',
    '  epochs: 5 before, 6 now',
    '  freeze:  before, conv1 now',
  ]
  for part, tiles in (('train', TRAIN), ('val', VAL)):
    read = lambda i, tiles=tiles: tiles.read(i) ^ np.uint8(1)
    changed = dataclasses.replace(tiles, read=read)
    with pytest.raises(ResultsError, match=f'{part}_sha256'):
      train(folder, **{part: changed})


def test_a_training_that_was_stopped_goes_on_and_ends_the_same(
  finished, tmp_path, monkeypatch
):
  folder, report, advance = tmp_path / 'x', Progress.report, Progress.advance
  begun = set()

  def stop(self, history):
    report(self, history)
    if len(history['val_loss']) == 4:
      raise KeyboardInterrupt

  def watch(self, epoch, steps):
    begun.add(epoch)
    advance(self, epoch, steps)

  with monkeypatch.context() as patch:
    patch.setattr(loop, 'SECONDS_BETWEEN_SAVES', 0)
    patch.setattr(Progress, 'report', stop)
    with pytest.raises(KeyboardInterrupt):
      train(folder)
  assert not (folder / 'model.safetensors').exists()
  assert {p.name for p in (folder / 'checkpoints').iterdir()} == {'2', '3'}
  assert len((folder / 'metrics.jsonl').read_text().splitlines()) == 4
  monkeypatch.setattr(Progress, 'advance', watch)
  same(train(folder), finished[1])
  assert begun == {3, 4}


def test_a_training_that_diverges_ends_in_words(tmp_path):
  recipe = dataclasses.replace(RECIPE, learning_rate=1e30)
  with pytest.raises(FloatingPointError, match=r'(?s)x: .*NaN.*0.*--lr'):
    train(tmp_path / 'x', recipe)


def test_weights_to_start_from_are_those_of_the_file(finished, tmp_path):
  folder, trained = finished
  still = dataclasses.replace(RECIPE, epochs=1, learning_rate=0.0)
  weights = str(folder / 'model.safetensors')
  again = train(tmp_path / 'again', still, weights=weights, freeze='bn1')
  chex.assert_trees_all_equal(again.variables, trained.variables)
  np.testing.assert_array_equal(again.predict(VAL)[0], trained.predict(VAL)[0])
  binary = dataclasses.replace(still, binary=True)
  with pytest.raises(port.PortError, match='wrongly shaped: params/fc'):
    train(tmp_path / 'binary', binary, weights=weights)
  with pytest.raises(WeightsError, match='no such weights file'):
    train(tmp_path / 'absent', weights=str(tmp_path / 'absent.pth'))


def test_weights_bring_the_input_they_were_trained_on(finished, tmp_path):
  own = str(finished[0] / 'model.safetensors')
  other = dataclasses.replace(RECIPE, mean=(0.1,) * 3, std=(0.9,) * 3)
  read = lambda path, model, recipe: training._read_weights(
    str(path), model, recipe
  )[2]
  found = read(own, 'resnet18', other)
  assert (found.mean, found.std) == (RECIPE.mean, RECIPE.std)
  # torchvision's GoogLeNet changes its input, its other networks do not.
  path = tmp_path / 'theirs.safetensors'
  safetensors.numpy.save_file({'conv1.weight': np.ones(3)}, path)
  found = read(path, 'googlenet', RECIPE)
  image = np.random.default_rng(0).random((5, 3))
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  theirs = (image - mean) / std * (std / 0.5) + (mean - 0.5) / 0.5
  np.testing.assert_allclose(
    (image - np.array(found.mean)) / np.array(found.std), theirs
  )
  assert read(path, 'resnet18', RECIPE) == RECIPE


def test_each_network_may_start_from_a_file_of_its_own():
  read = lambda weights, *names: Training(weights=weights).weights_of(names)
  assert read(None, 'resnet18') == {}
  assert read('a=b.pth', 'resnet18', 'resnet18') == {'resnet18': 'a=b.pth'}
  two = 'resnet18=a.pth,googlenet=b=c.pth'
  assert read(two, 'resnet18', 'googlenet', 'resnet50') == {
    'resnet18': 'a.pth',
    'googlenet': 'b=c.pth',
  }
  for given, *names in (
    ('a.pth', 'resnet18', 'googlenet'),
    (two, 'resnet18'),
    ('googlenet=b.pth', 'resnet18'),
  ):
    with pytest.raises(OptionError, match=names[-1]):
      read(given, *names)


def test_trainings_of_other_seeds_and_rates_share_one_program(
  finished, tmp_path
):
  recipe = dataclasses.replace(RECIPE, learning_rate=0.01, epochs=1)
  other = train(tmp_path / 'x', recipe, seed=4)
  assert other.task is finished[1].task
  assert (
    np.abs(other.predict(VAL)[0] - finished[1].predict(VAL)[0]).max() > 0.01
  )


def test_one_logit_and_one_channel(tmp_path):
  recipe = dataclasses.replace(
    RECIPE, binary=True, epochs=1, mean=(0.5,), std=(0.25,)
  )
  tiles = [make_tiles(n, seed=n, channels=1) for n in (48, 20, 7)]
  trained = train(tmp_path / 'x', recipe, *tiles[:2])
  prob, _ = trained.predict(tiles[2])
  assert prob.shape == (7, 2)
  np.testing.assert_allclose(prob.sum(1), 1, rtol=1e-6)
  assert trained.variables['params']['fc']['kernel'].shape == (4, 1)


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'val': VAL.take([])}, 'The validation part holds no tile'),
    ({'val': TRAIN.take(np.arange(9))}, 'same id: 9 problem'),
    ({'val': VAL.take(VAL.label == 1)}, 'holds one class.*--select=loss'),
    (
      {'val': dataclasses.replace(VAL, classes=('a', 'b'))},
      'different classes',
    ),
    ({'train': TRAIN.take(TRAIN.label == 0)}, 'No training tile .* tumour'),
    ({'val': make_tiles(8, 2, channels=1)}, 'different channels'),
    (
      {'recipe': dataclasses.replace(RECIPE, batch=17)},
      '--batch_size=17 does not divide over 4 devices',
    ),
  ],
)
def test_what_cannot_be_trained_is_refused_before(
  tmp_path, monkeypatch, change, match
):
  monkeypatch.setattr(parallel, 'num_devices', lambda: 4)
  by_auroc = {'recipe': dataclasses.replace(RECIPE, select='auroc')}
  with pytest.raises((PatchError, TileError), match=match):
    train(tmp_path / 'x', **(by_auroc | change))
  assert not (tmp_path / 'x').exists()
