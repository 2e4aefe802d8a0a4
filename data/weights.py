"""Reads files of named weights, whoever wrote them; none can make it run."""

from collections.abc import Iterator
import math
import pathlib
from typing import Any

import numpy as np

from data import torch_files
from data.files import first_of

_SAFE, _TORCH = '.safetensors', ('.pth', '.pt', '.bin')
# Of these, a folder of a hub's cache holds one, or parts of one.
_IN_FOLDERS = ('*.safetensors', '*.bin', '*.pth', '*.pt')


class WeightsError(ValueError):
  """A file of weights that cannot be read; names it and says what to do."""


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a file of named weights.

  Args:
    path: a `.safetensors` file; or a `.pth`, `.pt` or `.bin` file saved with
      `torch.save(model.state_dict(), ...)`, or with a dict of several state
      dicts, whose keys come before their names; or a folder with one such file,
      as of a model in a hub's cache.

  Returns:
    Arrays by name, float32, without DataParallel's `module.` prefix.

  Raises:
    WeightsError: if the file is missing, is of another type, cannot be read, or
      holds anything but named tensors.
  """
  path = file_of(path)
  if path.suffix.lower() not in (_SAFE, *_TORCH):
    raise WeightsError(
      f'{path}: weights come as .safetensors or .pth, not {path.suffix!r}.'
      ' Convert them.'
    )
  try:
    if path.suffix.lower() == _SAFE:
      import safetensors.numpy

      content = safetensors.numpy.load_file(path)
    else:
      content = torch_files.load(path)
    if not isinstance(content, dict):
      content = {type(content).__name__: None}
    state = dict(_named(content, path.stat().st_size))
    others = [name for name in state if not hasattr(state[name], 'shape')]
    arrays = {
      name.removeprefix('module.'): np.asarray(state[name][()], np.float32)
      for name in state
      if not others
    }
  except Exception as error:  # Damaged files raise errors of many kinds.
    reason = str(error) or type(error).__name__
    raise WeightsError(
      f'{path}: not a readable file of weights ({reason}). Copy it again, or'
      ' save model.state_dict() alone.'
    ) from error
  if others:
    raise WeightsError(
      f'{path}: holds more than named tensors: {first_of(others)}. Save'
      ' model.state_dict() alone.'
    )
  return arrays


def file_of(path: str | pathlib.Path) -> pathlib.Path:
  """Returns the file of weights that a path, or a folder there, stands for.

  Raises:
    WeightsError: if there is none, or a folder holds several.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_file():
    return path
  if not path.is_dir():
    raise WeightsError(f'{path}: no such weights file. Check its path.')
  for pattern in _IN_FOLDERS:
    # A model in a hub's cache has its files in snapshots/<commit>.
    inner = path.glob(f'snapshots/*/{pattern}')
    found = sorted([*path.glob(pattern), *inner])
    if len(found) == 1:
      return found[0]
    if found:
      advice = 'Name one.'
      if any('-00001-of-' in file.name for file in found):
        advice = 'Load these parts of a model, save them as one file, name it.'
      raise WeightsError(
        f'{path}: holds several files of weights, {first_of(found)}. {advice}'
      )
  raise WeightsError(
    f'{path}: holds no file of weights (.safetensors, .bin, .pth).'
    ' Give the file.'
  )


def _named(content: dict, size: int) -> Iterator[tuple[str, Any]]:
  """Yields the names and values of one state dict, or of several in a dict.

  Tensors may share numbers, as those of layers that are tied do, but many names
  of a large tensor or of a large dict would take any memory.

  Args:
    content: of the file.
    size: of the file, in bytes.

  Raises:
    ValueError: if names stand for more than a file of that size can hold.
  """
  several = all(isinstance(part, dict) for part in content.values())
  count = 0
  for module, part in content.items():
    for name, value in part.items() if several else [(module, part)]:
      count += 1 + math.prod(getattr(value, 'shape', ()))
      if count > 2 * size:
        raise ValueError('its names stand for more numbers than it holds')
      yield f'{module}.{name}' if several else str(name), value
