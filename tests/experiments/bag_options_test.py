"""`--recipe`, and the options of single models, from the flags to a result."""

import dataclasses

import pytest

from experiments.bags import options
from experiments.bags.options import Model, Training
from experiments.run.options import parse
from kmil_jax.models import SPECS
from kmil_jax.tasks.bags import BagTask
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
