"""Runs the models of a .kmil file with JAX alone; its copy there is kmil_model.

  python model.kmil bag.npy  # features [n, D] of one slide's tiles

  import sys
  sys.path.insert(0, 'model.kmil')
  import kmil_model
  model = kmil_model.Model()
  model.predict(features)['prob']

JAX reads programs with the package flatbuffers, which it does not ask for.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import math
import pathlib
import sys
from typing import Any
import zipfile

import jax
from jax import export
import numpy as np

# What programs of one length each are made for: a longer bag is refused.
LENGTHS = tuple(2**power for power in range(7, 17))
ANY = 'model.stablehlo'
CARD, WEIGHTS = 'card.json', 'weights.safetensors'
LEAST = 64  # Shorter bags are padded: fewer programs, and top-k's k is below.
# Of programs for any length: each about 1.41 times the one before, so that all
# bags together need few programs. Those above 65,536 divide into blocks.
_LENGTHS = tuple(
  multiple * math.ceil(LEAST / multiple * 2 ** (step / 2))
  for step, multiple in enumerate([8] * 21 + [4096] * 39)
)
# Of probabilities, before their logarithm.
_FLOOR = float(np.finfo(np.float32).tiny)


class ExportError(ValueError):
  """A file that is no model, or a bag it cannot take; says what to do."""


def program_name(length: int) -> str:
  """Returns the name of the program for bags padded to a length."""
  return f'model_{length}.stablehlo'


def padded_length(
  count: int, lengths: Sequence[int] | None = None, least: int = 1
) -> int:
  """Returns the length that a bag of `count` instances is padded to.

  Args:
    count: instances of the bag.
    lengths: ascending, to choose from; 64, 96, 128, 184, 256 and so on by
      default.
    least: no shorter than this.

  Raises:
    ExportError: if the bag is longer than all `lengths`.
  """
  for length in lengths or _LENGTHS:
    if length >= max(count, least):
      return length
  raise ExportError(
    f'{count} instances, and the programs of this file take up to'
    f' {lengths[-1]}. Predict with --run.'
  )


def program(programs: Mapping[str, bytes]) -> Callable[..., dict[str, Any]]:
  """Returns programs as one function, compiled once per length.

  Args:
    programs: StableHLO by name: `ANY`, or one for each length.

  Returns:
    A function of weights, features [N, D] and the bag's count.
  """
  calls = {
    name: jax.jit(export.deserialize(bytearray(data)).call)
    for name, data in programs.items()
  }

  def predict(weights, x, count):
    name = ANY if ANY in calls else program_name(len(x))
    return calls[name](weights, x, jax.numpy.int32(count))

  return predict


class Model:
  """The models of a file.

  Args:
    path: of the file; by default that which this code is in.

  Attributes:
    card: what they are.

  Raises:
    ImportError: if flatbuffers is not installed.
  """

  def __init__(self, path: str | pathlib.Path | None = None):
    with zipfile.ZipFile(path or pathlib.Path(__file__).parent) as file:
      content = {name: file.read(name) for name in file.namelist()}
    self.card = json.loads(content[CARD])
    self._weights = _arrays(content[WEIGHTS])
    self._programs = {n for n in content if n.endswith('.stablehlo')}
    self._predict = program({n: content[n] for n in self._programs})

  def predict(self, features: Any) -> dict[str, np.ndarray]:
    """Returns what the models of R folds predict for a slide.

    Args:
      features: [n, D], a row for each tile, as the card says; any n from 1.

    Returns:
      `prob` [C], the mean over the folds; `prob_of_folds` [R, C], at the
      temperatures of the card; `attention` [R, n, A], `instance_prob` [R, n, C]
      and `kept` [R, n] of the tiles.

    Raises:
      ExportError: if these are no such features, or too many for the model.
    """
    x = np.asarray(features, np.float32)
    width = self.card['width']
    if x.ndim != 2 or not len(x) or x.shape[1] != width:
      raise ExportError(f'features {x.shape}: give [n, {width}], n at least 1.')
    if not np.isfinite(x).all():
      raise ExportError('features: some are NaN or infinite.')
    lengths = [n for n in LENGTHS if program_name(n) in self._programs]
    least = self.card['settings'].get('total_instances', 1)
    rows = padded_length(len(x), lengths, least)
    padded = np.pad(x, ((0, rows - len(x)), (0, 0)))
    output = jax.device_get(self._predict(self._weights, padded, len(x)))
    raw = output.pop('prob').astype(float)
    temperature = [[t or 1.0] for t in self.card['temperature']]
    scaled = np.exp(np.log(np.maximum(raw, _FLOOR)) / temperature)
    prob = scaled / scaled.sum(1, keepdims=True)
    of_tiles = {name: value[:, : len(x)] for name, value in output.items()}
    return {'prob': prob.mean(0), 'prob_of_folds': prob, **of_tiles}


def _arrays(content: bytes) -> dict[str, np.ndarray]:
  """Returns the arrays of a safetensors file, which are float32 here."""
  size = 8 + int.from_bytes(content[:8], 'little')
  arrays = {}
  for name, of in json.loads(content[8:size]).items():
    if name != '__metadata__':
      start, end = (size + offset for offset in of['data_offsets'])
      values = np.frombuffer(content[start:end], np.float32)
      arrays[name] = values.reshape(of['shape'])
  return arrays


def main() -> None:
  """Prints the probabilities of the classes for a bag in a .npy file."""
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  try:
    model = Model()
    try:
      bag = np.asarray(np.load(sys.argv[1]), np.float32)
    except (EOFError, TypeError, ValueError) as e:
      raise ExportError(f'{sys.argv[1]}: no array of numbers ({e}).') from e
    prob = model.predict(bag)['prob']
  except (ExportError, ImportError, OSError) as e:
    sys.exit(f'error: {e}')
  for name, value in zip(model.card['classes'], prob, strict=True):
    print(f'{name} {value:.4f}')
