"""Patch classifiers as files, by Flax paths or by torchvision's names.

A trained classifier is a .safetensors file whose names are paths as
`params/layer1_0/conv1/kernel`.
"""

import pathlib

from flax import traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from data import atomic
from kmil_jax import port, port_patch
from kmil_jax.patch_train import Variables

_EPOCH = 'kmil_jax.epoch'


def save(path: pathlib.Path, variables: Variables, epoch: int) -> None:
  """Writes a classifier, all of it or nothing.

  Args:
    path: the file.
    variables: NumPy.
    epoch: that they are of.
  """
  flat = traverse_util.flatten_dict(variables, sep='/')
  content = safetensors.numpy.save(
    {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()},
    {_EPOCH: str(epoch)},
  )
  with atomic.replacing(path) as part:
    part.write_bytes(content)


def load(path: pathlib.Path) -> tuple[Variables, int]:
  """Returns what `save` wrote: the variables, NumPy, and their epoch."""
  with safetensors.safe_open(path, 'np') as file:
    epoch = int(file.metadata()[_EPOCH])
    flat = {name: file.get_tensor(name) for name in file.keys()}
  variables = traverse_util.unflatten_dict(flat, sep='/')
  return {'batch_stats': {}} | variables, epoch


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
    return port_patch.start(model, state, drawn)
  wanted = traverse_util.flatten_dict(drawn, sep='/')
  entries = {
    name: port.Entry(name, x.shape, x.shape, tuple(range(x.ndim)))
    for name, x in wanted.items()
  }
  return port.fill(state, entries)
