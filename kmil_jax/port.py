"""Weights by torchvision's and timm's names, to and from Flax variables."""

from collections.abc import Iterable, Mapping
import pathlib
import re
from typing import Any

from flax import traverse_util
import numpy as np

from kmil_jax.models import resnet

# Rewrites a Flax path, step by step, into torchvision's name for the leaf.
_RESNET = (
  (r'/downsample_conv/', '/downsample/0/'),
  (r'/downsample_bn/', '/downsample/1/'),
  (r'/(layer\d+)_(\d+)/', r'/\1/\2/'),
)
_LEAVES = (
  (r'^params/(.*)/(kernel|scale)$', r'\1/weight'),
  (r'^params/(.*)/bias$', r'\1/bias'),
  (r'^batch_stats/(.*)/(mean|var)$', r'\1/running_\2'),
  (r'/', '.'),
)
# Entries of a whole ResNet-50 that the trunk knowingly leaves unused.
_BEYOND_TRUNK = r'layer4\..*|fc\.(weight|bias)|.*\.num_batches_tracked'


class PortError(ValueError):
  """Weights that do not fit; the message lists every name concerned."""


def load_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a file of named weights.

  Args:
    path: a `.safetensors` file, or a `.pth` or `.pt` file saved with
      `torch.save(model.state_dict(), ...)`. The latter needs torch.

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
  return _port(state, resnet.trunk_shapes(), _RESNET, _BEYOND_TRUNK)


def resnet50_trunk_state_dict(
  variables: Mapping[str, Any],
) -> dict[str, np.ndarray]:
  """Returns `ResNet50Trunk` variables by torchvision's names, OIHW kernels."""
  flat = traverse_util.flatten_dict(variables, sep='/')
  return {
    _torch_name(path, _RESNET): np.ascontiguousarray(
      np.transpose(leaf, (3, 2, 0, 1)) if np.ndim(leaf) == 4 else leaf
    )
    for path, leaf in flat.items()
  }


def _port(
  state: Mapping[str, np.ndarray],
  shapes: Mapping[str, Any],
  table: Iterable[tuple[str, str]],
  unused: str,
) -> dict[str, Any]:
  """Fills every leaf of `shapes` from `state` and accounts for every name."""
  leaves = traverse_util.flatten_dict(shapes, sep='/')
  names = {path: _torch_name(path, table) for path in leaves}
  wrong = {
    'missing': [n for n in sorted(names.values()) if n not in state],
    'unexpected': [
      n for n in sorted(set(state) - set(names.values()))
      if not re.fullmatch(unused, n)
    ],
    'wrongly shaped': [],
    'not finite': [],
  }  # fmt: skip
  filled = {}
  for path, name in names.items():
    if name not in state:
      continue
    leaf, want = np.asarray(state[name], np.float32), leaves[path].shape
    if leaf.ndim == 4:
      leaf = leaf.transpose(2, 3, 1, 0)  # OIHW to HWIO.
    if leaf.shape != want:
      o = (want[3], want[2], *want[:2]) if len(want) == 4 else want
      wrong['wrongly shaped'].append(
        f'{name} {np.shape(state[name])}, expected {o}'
      )
    elif not np.isfinite(leaf).all():
      wrong['not finite'].append(name)
    filled[path] = leaf
  if any(wrong.values()):
    raise PortError('\n'.join(
      f'{len(found)} {kind}: {", ".join(found)}'
      for kind, found in wrong.items() if found
    ))  # fmt: skip
  return traverse_util.unflatten_dict(filled, sep='/')


def _torch_name(path: str, table: Iterable[tuple[str, str]]) -> str:
  for pattern, replacement in (*table, *_LEAVES):
    path = re.sub(pattern, replacement, path)
  return path


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
  others = [str(n) for n, v in state.items() if not torch.is_tensor(v)]
  if others:
    raise PortError(
      f'{path}: holds more than named tensors: {", ".join(others)}; save '
      'model.state_dict() alone'
    )
  return {name: value.float().numpy() for name, value in state.items()}
