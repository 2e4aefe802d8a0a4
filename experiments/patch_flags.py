"""Flags that say how a patch classifier is trained, over a paper's recipe."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from absl import app, flags

from data import augment
from experiments import recipe_flags
from experiments.recipe_flags import (
  EPOCHS,
  LR,
  PRECISION as PRECISION,
  SELECT,
  TENSORBOARD as TENSORBOARD,
  WEIGHT_DECAY,
)
from kmil_jax import parallel, selection
from kmil_jax.models import CLASSIFIERS
from kmil_jax.types import PatchRecipe

BATCH = flags.DEFINE_integer(
  'batch', None, "Tiles per step over all devices (the paper's).", 1
)
INPUT_SIZE = flags.DEFINE_integer(
  'input_size', None, 'Side that tiles are resized to, pixels.', 8
)
AUGMENT = flags.DEFINE_enum(
  'augment',
  None,
  list(augment.PRESETS),
  "What is done to training tiles (the paper's).",
)
SCHEDULE = flags.DEFINE_enum(
  'schedule',
  None,
  list(selection.SCHEDULES),
  "How the learning rate falls (the paper's); decade: to a tenth every 10"
  ' epochs.',
)
PATIENCE = flags.DEFINE_integer(
  'patience',
  None,
  "Epochs without improvement before training ends (the paper's).",
  1,
)
WEIGHTS = flags.DEFINE_string(
  'weights',
  None,
  'Weights to start from: .safetensors or .pth by torchvision names, or a'
  ' model.safetensors of this system. Random by default. Of several networks:'
  ' network=file,network=file.',
)
FREEZE = flags.DEFINE_string(
  'freeze',
  '',
  'Modules to leave as they are: a regular expression of their paths, matched'
  ' from the beginning, as conv1|bn1|layer[12].',
)
flags.adopt_module_key_flags(recipe_flags)

# The flags that change single values of a recipe, by the value's name.
_OVERRIDES = {
  'epochs': EPOCHS,
  'learning_rate': LR,
  'weight_decay': WEIGHT_DECAY,
  'batch': BATCH,
  'input_size': INPUT_SIZE,
  'augment': AUGMENT,
  'schedule': SCHEDULE,
  'select': SELECT,
  'patience': PATIENCE,
}


def resolve(recipe: PatchRecipe) -> PatchRecipe:
  """Returns a paper's recipe, changed as the flags ask.

  Raises:
    app.UsageError: if the batch does not divide over the devices.
  """
  asked = {name: flag.value for name, flag in _OVERRIDES.items()}
  recipe = dataclasses.replace(
    recipe, **{name: v for name, v in asked.items() if v is not None}
  )
  if recipe.batch % parallel.num_devices():
    raise app.UsageError(
      f'--batch={recipe.batch} does not divide over {parallel.num_devices()}'
      ' devices'
    )
  return recipe


def weights_of(networks: Sequence[str]) -> dict[str, str]:
  """Returns the file that each network starts from; none of the others.

  Args:
    networks: all that will be trained.

  Raises:
    app.UsageError: if one file is for several kinds of network, or a file for
      one that is not trained.
  """
  if not WEIGHTS.value:
    return {}
  pairs = [part.partition('=') for part in WEIGHTS.value.split(',')]
  if not all(name in CLASSIFIERS and equals for name, equals, _ in pairs):
    if len(set(networks)) > 1:
      raise app.UsageError(
        f'--weights={WEIGHTS.value} is one file, but {", ".join(networks)} are'
        ' trained: give network=file for each that shall have one, or train one'
        ' network'
      )
    return dict.fromkeys(networks, WEIGHTS.value)
  found = {name: path for name, _, path in pairs}
  if other := sorted(set(found) - set(networks)):
    raise app.UsageError(
      f'--weights: {", ".join(other)} would not be trained, only'
      f' {", ".join(networks)}'
    )
  return found


def resolved(recipe: PatchRecipe) -> dict[str, Any]:
  """Returns what the flags that were left to the recipe came to."""
  return {flag.name: getattr(recipe, name) for name, flag in _OVERRIDES.items()}
