"""What a patch training is asked for: refused in words, or resolved."""

import dataclasses

from absl import app, flags
import numpy as np
import pytest
from tiny_classifier import Tiny
from tiny_training import RECIPE, TRAIN, VAL, make_tiles, train

from data.labelled_tiles import TileError
from experiments import patch_flags, patch_training, start
from kmil_jax import models, parallel
from kmil_jax.tasks.tiles import PatchError


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setitem(models.CLASSIFIERS, 'tiny', Tiny)


@pytest.mark.parametrize(
  'change,match',
  [
    ({'model': 'vgg'}, "model 'vgg' is none of .*tiny"),
    ({'val': VAL.take(np.arange(0))}, 'the validation part holds no tile'),
    ({'val': TRAIN.take(np.arange(9))}, '9 tiles are in the training and'),
    (
      {
        'val': VAL.take(VAL.label == 1),
        'recipe': dataclasses.replace(RECIPE, select='auroc'),
      },
      'validation part holds one class.*--select=loss',
    ),
    (
      {'val': dataclasses.replace(VAL, classes=('normal', 'other'))},
      'classes normal, tumour, validation tiles normal, other',
    ),
    ({'train': TRAIN.take(TRAIN.label == 0)}, 'no training tile .* tumour'),
    ({'val': make_tiles(8, 2, channels=1)}, r'3 channel.* tiles 1 and 8'),
    (
      {'recipe': dataclasses.replace(RECIPE, std=(1.0,))},
      r'std \(1\.0,\) for tiles of 3 channel',
    ),
  ],
)
def test_what_cannot_be_trained_is_refused_before(tmp_path, change, match):
  with pytest.raises(PatchError, match=match):
    train(tmp_path / 'x', **change)
  assert not (tmp_path / 'x').exists()


def test_a_batch_that_does_not_divide_over_devices_is_refused(tmp_path):
  if parallel.num_devices() == 1:
    pytest.skip('one device divides everything')
  odd = dataclasses.replace(RECIPE, batch=17)
  with pytest.raises(PatchError, match='--batch=17 does not divide'):
    train(tmp_path / 'x', odd)


def test_flags_change_single_values_of_a_recipe(monkeypatch):
  assert patch_flags.resolve(RECIPE) == RECIPE
  for name, value in (('epochs', 7), ('lr', 0.5), ('select', 'auroc')):
    monkeypatch.setattr(flags.FLAGS[name], 'value', value)
  recipe = patch_flags.resolve(RECIPE)
  assert recipe == dataclasses.replace(
    RECIPE, epochs=7, learning_rate=0.5, select='auroc'
  )
  resolved = patch_flags.resolved(recipe)
  assert resolved['lr'] == 0.5 and resolved['batch'] == RECIPE.batch


def test_a_script_ends_in_one_line_where_tiles_are_at_fault(monkeypatch):
  monkeypatch.setattr(start, '_start', lambda: None)

  def run():
    raise TileError('a.png is cut short')

  with pytest.raises(SystemExit, match=r'error: a\.png is cut'):
    start.script(run, patch_training.ERRORS)(['x'])
  with pytest.raises(TileError):
    start.script(run)(['x'])
  with pytest.raises(app.UsageError, match="'y'"):
    start.script(run)(['x', 'y'])
