"""Flags that say how a model is trained, and what they resolve to."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import app, flags

from experiments import recipe_flags, start
from experiments.crossval import Settings
from experiments.recipe_flags import (
  EPOCHS,
  LR,
  PRECISION,
  SELECT,
  TENSORBOARD,
  WEIGHT_DECAY,
)
from kmil_jax import losses, parallel
from kmil_jax.models import SPECS
from kmil_jax.models.kmil import Choice
from kmil_jax.types import Recipe

RECIPE = flags.DEFINE_enum(
  'recipe',
  'common',
  ['common', 'own'],
  'common: that of Zheng et al. 2024 for every model. own: what the authors of'
  ' the model trained it with. The flags below change single values of it.',
)
BATCH_SIZE = flags.DEFINE_integer(
  'batch_size',
  1,
  'Bags per step. Above 1, a step spreads its bags over the devices; at 1,'
  ' the folds are spread.',
  1,
)
STREAM = flags.DEFINE_bool(
  'stream',
  None,
  'Stream features through tf.data; by default only if they do not fit on'
  ' the device.',
)
flags.adopt_module_key_flags(recipe_flags)


def resolve(
  model: str,
  *,
  choice: Choice | None = None,
  combine: bool = False,
  options: Mapping[str, Any] | None = None,
) -> Settings:
  """Returns the settings that the flags ask for.

  Args:
    model: of SPECS.
    choice: which instances KMIL sees; the paper's by default.
    combine: average the probabilities of bag and highest instance.
    options: further arguments of the model.

  Raises:
    app.UsageError: if a flag says nothing to the model or the devices.
  """
  spec = SPECS[model]
  if combine and spec.loss is not losses.dual_stream:
    raise app.UsageError(f'--combine says nothing to {model}')
  if BATCH_SIZE.value > 1 and BATCH_SIZE.value % parallel.num_devices():
    raise app.UsageError(
      f'--batch_size={BATCH_SIZE.value} does not divide over'
      f' {parallel.num_devices()} devices'
    )
  asked = {
    'epochs': EPOCHS.value,
    'learning_rate': LR.value,
    'weight_decay': WEIGHT_DECAY.value,
    'select': SELECT.value,
  }
  recipe = dataclasses.replace(
    spec.own if RECIPE.value == 'own' else Recipe(),
    batch=BATCH_SIZE.value,
    **{name: value for name, value in asked.items() if value is not None},
  )
  return Settings(
    model=model,
    recipe=recipe,
    seed=start.SEED.value,
    precision=PRECISION.value,
    choice=choice or Choice(),
    combine=combine,
    stream=STREAM.value,
    options=dict(options or {}),
    tensorboard=TENSORBOARD.value,
  )


def resolved(settings: Settings) -> dict[str, Any]:
  """Returns what the flags that were left to the recipe came to."""
  recipe = settings.recipe
  return {
    EPOCHS.name: recipe.epochs,
    LR.name: recipe.learning_rate,
    WEIGHT_DECAY.name: recipe.weight_decay,
    SELECT.name: recipe.select,
  }
