"""Patch classifiers as files, by Flax paths or by torchvision's names.

A trained classifier is a .safetensors file whose names are paths as
`params/layer1_0/conv1/kernel`.
"""

import dataclasses
import json
import pathlib

from flax import traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from data.files import replacing
from kmil_jax import port
from kmil_jax.train import Variables
from kmil_jax.types import PatchRecipe

_EPOCH, _INPUT = 'kmil_jax.epoch', 'kmil_jax.input'


def save(
  path: pathlib.Path, variables: Variables, epoch: int, recipe: PatchRecipe
) -> None:
  """Writes a classifier, all of it or nothing.

  Args:
    path: the file.
    variables: NumPy.
    epoch: that they are of.
    recipe: whose mean and standard deviation its input has.
  """
  flat = traverse_util.flatten_dict(variables, sep='/')
  content = safetensors.numpy.save(
    {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()},
    {
      _EPOCH: str(epoch),
      _INPUT: json.dumps({'mean': recipe.mean, 'std': recipe.std}),
    },
  )
  with replacing(path) as part:
    part.write_bytes(content)


def load(path: pathlib.Path) -> tuple[Variables, int]:
  """Returns what `save` wrote: the variables, NumPy, and their epoch."""
  with safetensors.safe_open(path, 'np') as file:
    epoch = int(file.metadata()[_EPOCH])
    flat = {name: file.get_tensor(name) for name in file.keys()}
  variables = traverse_util.unflatten_dict(flat, sep='/')
  return {'batch_stats': {}} | variables, epoch


def as_trained(
  path: str | pathlib.Path, model: str, recipe: PatchRecipe
) -> PatchRecipe:
  """Returns the recipe with the input that weights were trained on.

  A file of `save` says it. torchvision's GoogLeNet, unlike its other networks,
  turns what is normalised by ImageNet's mean and deviation into (v - 0.5) / 0.5
  first, as its weights are from another framework.

  Args:
    path: as for `start`.
    model: its name in `CLASSIFIERS`.
    recipe: of the training to start.
  """
  path = pathlib.Path(path).expanduser()
  told = {}
  if path.suffix == '.safetensors' and path.is_file():
    try:
      with safetensors.safe_open(path, 'np') as file:
        told = file.metadata() or {}
    except safetensors.SafetensorError:
      return recipe  # Reading the weights says what is wrong.
  if _INPUT in told:
    found = {k: tuple(v) for k, v in json.loads(told[_INPUT]).items()}
    return dataclasses.replace(recipe, **found)
  if model.startswith('googlenet') and _EPOCH not in told:
    half = (0.5, 0.5, 0.5)
    return dataclasses.replace(recipe, mean=half, std=half)
  return recipe


def start(path: str | pathlib.Path, model: str, drawn: Variables) -> Variables:
  """Returns variables to start from.

  Args:
    path: a file of `save`, which must fit in full, or a .safetensors or .pth
      file by torchvision's names, whose head may be of other classes.
    model: its name in `CLASSIFIERS`.
    drawn: freshly drawn variables, of which such a head is kept.

  Raises:
    port.PortError: if the file is not to be read or does not fit the model.
  """
  path = pathlib.Path(path).expanduser()
  state = port.load_state_dict(path)
  if not any(name.startswith('params/') for name in state):
    return port.from_torch(model, state, drawn=drawn)
  wanted = traverse_util.flatten_dict(drawn, sep='/')
  port.check(state, {name: leaf.shape for name, leaf in wanted.items()})
  return traverse_util.unflatten_dict(state, sep='/')
