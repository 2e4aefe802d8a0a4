"""`--recipe`, and the options of single models, from the flags to a result."""

import dataclasses

import feature_folder
import numpy as np
import pytest

from experiments import kmil
from experiments.bags import crossval, options
from experiments.bags.options import Model, Training
from experiments.run.options import parse
from experiments.run.results import Folder
from kmil_jax import losses
from kmil_jax.models import SPECS
from kmil_jax.models.network import Network
from kmil_jax.tasks.bags import BagRuns, BagTask
from kmil_jax.types import Recipe


@pytest.mark.parametrize(
  'model,lr,epochs,select',
  [
    ('abmil', 5e-4, 20, 'last'),
    ('dsmil', 1e-4, 50, 'auroc_accuracy'),
    ('dtfd', 1e-4, 200, 'late_auroc'),
    ('transmil', 2e-4, 200, 'loss'),
    ('kmil', 2e-4, 400, 'f1_macro'),
  ],
)
def test_every_model_has_its_own_recipe(model, lr, epochs, select):
  own = SPECS[model].own
  assert (own.learning_rate, own.epochs, own.select) == (lr, epochs, select)


def test_the_common_recipe_is_the_papers():
  assert Recipe() == Recipe(
    learning_rate=2e-4,
    weight_decay=1e-5,
    epochs=400,
    batch=1,
    betas=(0.9, 0.999),
    schedule='cosine',
  )
  assert SPECS['dsmil'].own.orthogonal and SPECS['dtfd'].own.clip == 5
  assert SPECS['transmil'].own.optimizer == 'lookahead_radam'


def settings(*args):
  return options.settings(*parse(['kmil', *args], (Model, Training)), seed=1)


def test_options_of_dtfd_reach_the_model():
  extra = settings(
    '--model=dtfd',
    '--distill=maxmins',
    '--pseudo_bags=2',
    '--total_instances=6',
    '--dtfd_rank_by=predicted',
  ).options
  model = BagTask(SPECS['dtfd'], Recipe(), 3, 8, options=extra).model
  assert (model.distill, model.pseudo_bags) == ('maxmins', 2)
  assert (model.score, model.total_instances) == ('predicted', 6)


def test_single_flags_change_single_values_of_a_recipe():
  flags = '--model=dsmil', '--recipe=own', '--lr=0.5', '--epochs=7'
  want = dataclasses.replace(SPECS['dsmil'].own, learning_rate=0.5, epochs=7)
  assert settings(*flags).recipe == want


@pytest.mark.parametrize('model', SPECS)
@pytest.mark.parametrize('recipe', ['common', 'own'])
def test_what_a_recipe_came_to_gives_the_same_recipe(model, recipe):
  given = Training(recipe=recipe, learning_rate=0.5)
  resolved = given.resolved(model)
  assert resolved.recipe_of(model) == given.recipe_of(model)
  assert None not in (resolved.epochs, resolved.weight_decay, resolved.select)


def test_config_json_records_what_the_own_recipe_came_to(tmp_path, monkeypatch):
  class TrainedError(Exception):
    pass

  def train(*args, **kwargs):
    raise TrainedError

  monkeypatch.setattr(crossval, 'train_folds', train)
  flags = feature_folder.write(tmp_path, *feature_folder.planted(12, width=4))
  flags += [
    '--model=dsmil',
    '--recipe=own',
    '--k=3',
    f'--results_dir={tmp_path}',
  ]
  with pytest.raises(TrainedError):
    kmil.main(['kmil', *flags])
  values = Folder(tmp_path / 'dsmil_origin_s2023').config().values
  own = SPECS['dsmil'].own
  assert (values['lr'], values['epochs']) == (own.learning_rate, own.epochs)
  assert values['weight_decay'] == own.weight_decay
  assert values['select'] == own.select


@pytest.mark.parametrize('recipe', ['common', 'own'])
def test_dsmil_starts_orthogonal_by_its_own_recipe_alone(recipe):
  made = Training(recipe=recipe).recipe_of('dsmil')
  run = BagRuns(seed=np.uint32(1), fold=np.uint32(0), trains=np.ones(1, bool))
  params = BagTask(SPECS['dsmil'], made, 3, 8).init(run)['params']
  leaves = [leaf for module in params.values() for leaf in module.items()]
  for name, leaf in leaves:
    if name == 'bias':
      assert recipe == 'common' or not leaf.any()
      continue
    short = leaf if len(leaf) <= leaf.shape[1] else leaf.T
    product = np.asarray(short @ short.T)
    is_orthogonal = np.allclose(product, np.eye(len(product)), atol=1e-5)
    assert is_orthogonal == (recipe == 'own')


class Untiered(Network):
  num_classes: int
  dtype: object = None


def test_flags_of_dtfd_are_for_what_is_one_whatever_its_name(monkeypatch):
  spec = SPECS['dtfd_gated']
  smooth = dataclasses.replace(spec, loss=losses.cross_entropy)
  monkeypatch.setitem(SPECS, 'smooth', smooth)
  extra = settings('--model=smooth', '--distill=maxs').options
  assert extra['distill'] == 'maxs'
  other = dataclasses.replace(spec, make=Untiered)
  monkeypatch.setitem(SPECS, 'dtfd_none', other)
  design = settings('--model=dtfd_none').design(num_classes=2, width=3)
  assert design.networks().keys() == {'model'}
