"""Weights by torchvision's and timm's names, to and from Flax variables."""

from collections.abc import Mapping
import dataclasses
import pathlib
import re
from typing import Any

from flax import traverse_util
import numpy as np

from kmil_jax.models import resnet

# Rewrites a Flax path, step by step, into torchvision's name for the leaf.
Names = tuple[tuple[str, str], ...]
RESNET: Names = (
  (r'/downsample_conv/', '/downsample/0/'),
  (r'/downsample_bn/', '/downsample/1/'),
  (r'/(layer\d+)_(\d+)/', r'/\1/\2/'),
)
_LEAVES = (
  (r'^params/(.*)/(kernel|scale|weight)$', r'\1/weight'),
  (r'^params/(.*)/bias$', r'\1/bias'),
  (r'^batch_stats/(.*)/(mean|var)$', r'\1/running_\2'),
  (r'/', '.'),
)
# Entries of a whole ResNet-50 that the trunk knowingly leaves unused.
_BEYOND_TRUNK = r'layer4\..*|fc\.(weight|bias)|.*\.num_batches_tracked'


class PortError(ValueError):
  """Weights that do not fit; the message lists every name concerned."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """Where a Flax leaf stands in a state dict, and how it lies there.

  `tensor.transpose(axes).reshape(leaf)` makes the leaf of torch's tensor. Its
  shape `torch` may be None where a missing tensor would have told.
  """

  name: str
  torch: tuple[int, ...] | None
  leaf: tuple[int, ...]
  axes: tuple[int, ...]


def load_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a file of named weights.

  Args:
    path: a `.safetensors` file, or a `.pth` or `.pt` file saved with
      `torch.save(model.state_dict(), ...)`, or with a dict of several state
      dicts, whose keys come before their names. The latter needs torch.

  Returns:
    Arrays by name, float32, without DataParallel's `module.` prefix.

  Raises:
    PortError: if the file is missing, is of another type, cannot be read, or
      holds anything but named tensors.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise PortError(f'{path}: there is no such weights file')
  match path.suffix:
    case '.safetensors':
      state = _read_safetensors(path)
    case '.pth' | '.pt':
      state = _read_torch(path)
    case other:
      raise PortError(
        f'{path}: weights come as .safetensors or .pth, not {other!r}'
      )
  return {
    name.removeprefix('module.'): np.asarray(value, np.float32)
    for name, value in state.items()
  }


def resnet50_trunk(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns `ResNet50Trunk` variables made of torchvision's ResNet-50 weights.

  Args:
    state: arrays by torchvision's or timm's names, OIHW kernels. `layer4`,
      `fc` and `num_batches_tracked` may be there and are left unused.

  Returns:
    `{'params', 'batch_stats'}`, float32.

  Raises:
    PortError: listing every name that is missing, unexpected, of the wrong
      shape, or not finite.
  """
  return fill(state, _trunk_entries(), _BEYOND_TRUNK)


def resnet50_trunk_state_dict(
  variables: Mapping[str, Any],
) -> dict[str, np.ndarray]:
  """Returns `ResNet50Trunk` variables by torchvision's names, OIHW kernels.

  Raises:
    PortError: listing every leaf that is missing, unexpected, of the wrong
      shape, or not finite.
  """
  return unfill(variables, _trunk_entries())


def fill(
  state: Mapping[str, np.ndarray],
  entries: Mapping[str, Entry],
  unused: str = '',
) -> dict[str, Any]:
  """Makes a Flax tree of a state dict and accounts for every name.

  Args:
    state: arrays by torch's names.
    entries: by the path of the leaf they fill, joined by '/'.
    unused: a pattern of names that may be there and are left.

  Returns:
    Nested dicts of float32 arrays.

  Raises:
    PortError: listing every name that is missing, unexpected, of the wrong
      shape, or not finite.
  """
  state = {name: np.asarray(value, np.float32) for name, value in state.items()}
  _account(state, {e.name: e.torch for e in entries.values()}, unused)
  filled = {
    path: state[e.name].transpose(e.axes).reshape(e.leaf)
    for path, e in entries.items()
  }
  return traverse_util.unflatten_dict(filled, sep='/')


def unfill(
  tree: Mapping[str, Any], entries: Mapping[str, Entry]
) -> dict[str, np.ndarray]:
  """The inverse of `fill`; `PortError` names the leaves by their paths."""
  flat = {
    path: np.asarray(leaf, np.float32)
    for path, leaf in traverse_util.flatten_dict(tree, sep='/').items()
  }
  _account(flat, {path: e.leaf for path, e in entries.items()})
  state = {}
  for path, e in entries.items():
    leaf = flat[path].reshape([e.torch[axis] for axis in e.axes])
    state[e.name] = np.ascontiguousarray(leaf.transpose(np.argsort(e.axes)))
  return state


def entries_of(variables: Mapping[str, Any], names: Names) -> dict[str, Entry]:
  """Returns where the leaves of a convolutional network stand in torch.

  Args:
    variables: `{'params', 'batch_stats'}`, arrays or their shapes.
    names: rewrite the paths of its modules, from first to last.

  Returns:
    Entries by path, as `fill` takes them.
  """
  leaves = traverse_util.flatten_dict(variables, sep='/')
  entries = {}
  for path, leaf in leaves.items():
    shape, name = leaf.shape, path
    for pattern, replacement in (*names, *_LEAVES):
      name = re.sub(pattern, replacement, name)
    # Kernels, the only leaves of four axes: OIHW to HWIO.
    axes = (2, 3, 1, 0) if len(shape) == 4 else tuple(range(len(shape)))
    torch = tuple(shape[axes.index(axis)] for axis in range(len(axes)))
    entries[path] = Entry(name, torch, shape, axes)
  return entries


def _account(
  found: Mapping[str, np.ndarray],
  wanted: Mapping[str, tuple[int, ...] | None],
  unused: str = '',
) -> None:
  """Raises unless arrays have the names and shapes wanted and are finite."""
  here = [name for name in wanted if name in found]
  shaped = [n for n in here if wanted[n] in (None, found[n].shape)]
  wrong = {
    'missing': sorted(set(wanted) - set(found)),
    'unexpected': [
      name for name in sorted(set(found) - set(wanted))
      if not re.fullmatch(unused, name)
    ],
    'wrongly shaped': [
      f'{name} {found[name].shape}, expected {wanted[name]}'
      for name in here if name not in shaped
    ],
    'not finite': [n for n in shaped if not np.isfinite(found[n]).all()],
  }  # fmt: skip
  if any(wrong.values()):
    raise PortError('\n'.join(
      f'{len(names)} {kind}: {", ".join(names)}'
      for kind, names in wrong.items() if names
    ))  # fmt: skip


def _trunk_entries() -> dict[str, Entry]:
  return entries_of(resnet.trunk_shapes(), RESNET)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  import safetensors
  import safetensors.numpy

  try:
    return safetensors.numpy.load_file(path)
  except safetensors.SafetensorError as error:
    raise PortError(f'{path}: not a readable .safetensors file: {error}') from (
      error
    )


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError as error:
    raise PortError(
      f'{path}: reading {path.suffix} files takes torch, which is not '
      'installed; install it, or convert the file to .safetensors'
    ) from error
  try:
    state = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # torch raises what its unpickler raises.
    raise PortError(f'{path}: torch cannot read it: {error}') from error
  if not isinstance(state, dict):
    raise PortError(
      f'{path}: holds a {type(state).__name__}, not named tensors'
    )
  if state and all(isinstance(part, dict) for part in state.values()):
    state = {
      f'{module}.{name}': value
      for module, part in state.items()
      for name, value in part.items()
    }
  others = [str(n) for n, v in state.items() if not torch.is_tensor(v)]
  if others:
    raise PortError(
      f'{path}: holds more than named tensors: {", ".join(others)}; save '
      'model.state_dict() alone'
    )
  return {name: value.float().numpy() for name, value in state.items()}
