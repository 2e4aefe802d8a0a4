"""Models as files that run without the code that made them.

A file is a zip of `card.json`, what the model is; `weights.safetensors`, the
arrays that its program takes; the program in StableHLO, lowered for CPUs, CUDA
GPUs and TPUs: `model.stablehlo` of bags of any length, or
`model_<N>.stablehlo` of bags padded to N; and `sha256.json`, the hashes of all
these. The same content gives the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import io
import json
import math
import pathlib
from typing import Any
import zipfile

import jax
from jax import export
import numpy as np
import safetensors
import safetensors.numpy

from kmil_jax import checksums, parallel

# What programs of one length each are made for: a longer bag is refused.
LENGTHS = tuple(2**power for power in range(7, 17))
ANY = 'model.stablehlo'
_CARD, _WEIGHTS = 'card.json', 'weights.safetensors'
LEAST = 64  # Shorter bags are padded: fewer programs, and top-k's k is below.
# Of programs for any length: each about 1.41 times the one before, so that all
# bags together need few programs.
_LENGTHS = tuple(
  8 * math.ceil(LEAST / 8 * 2 ** (step / 2)) for step in range(60)
)
_STAMP = (1980, 1, 1, 0, 0, 0)  # Zip's first day.

# weights, features [N, D] and the bag's count [] to arrays.
Predict = Callable[[Mapping[str, Any], Any, Any], dict[str, Any]]


class ExportError(ValueError):
  """A file that is no model, or a bag it cannot take; says what to do."""


@dataclasses.dataclass(frozen=True)
class Archive:
  """What a model's file holds."""

  card: dict[str, Any]
  weights: dict[str, np.ndarray]
  programs: dict[str, bytes]  # by name: `ANY`, or one for each length

  def predict(self) -> Predict:
    """Returns the programs as one function, compiled once per length.

    Raises:
      ExportError: if this JAX cannot read them.
    """
    try:
      calls = {
        name: jax.jit(export.deserialize(bytearray(program)).call)
        for name, program in self.programs.items()
      }
    except Exception as error:  # Of flatbuffers, MLIR or jax.export.
      raise ExportError(
        f'jax {jax.__version__} cannot read the program, which jax '
        f'{self.card.get("exported_by")} wrote ({error}). Export the model '
        'again with the version here.'
      ) from error

    def predict(weights, x, count):
      name = ANY if ANY in calls else program_name(len(x))
      return calls[name](weights, x, jax.numpy.int32(count))

    return predict

  def predictor(self, least: int = 1) -> 'Predictor':
    """Returns what predicts a bag.

    Args:
      least: rows that a bag is padded to at least.

    Raises:
      ExportError: as of `predict`.
    """
    return Predictor(self.predict(), self.weights, self.lengths(), least)

  def lengths(self) -> tuple[int, ...] | None:
    """Returns the lengths that bags are padded to; None for any length."""
    if ANY in self.programs:
      return None
    return tuple(n for n in LENGTHS if program_name(n) in self.programs)


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
    f'{count} instances, and the programs of this file take up to '
    f'{lengths[-1]}. Predict with --run.'
  )


class Predictor:
  """What the models of R folds predict for one bag.

  Args:
    predict: see `inference.Design.predict`.
    weights: what it takes.
    lengths: see `padded_length`.
    least: no bag is padded to less.
  """

  def __init__(
    self,
    predict: Predict,
    weights: Mapping[str, Any],
    lengths: Sequence[int] | None = None,
    least: int = 1,
  ):
    self._predict, self._weights = jax.jit(predict), jax.device_put(weights)
    self._lengths, self._least = lengths, least
    self._programs: dict[tuple[int, int], jax.stages.Compiled] = {}

  def __call__(self, features: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the predictions for a bag [N, D].

    Returns:
      `prob` [R, C], `attention` [R, N, A], `instance_prob` [R, N, C] and `kept`
      [R, N].

    Raises:
      ExportError: if the bag is longer than all `lengths`.
    """
    count, width = features.shape
    rows, program = self._program(count, width)
    x = np.zeros((rows, width), np.float32)
    x[:count] = features
    out = jax.device_get(program(self._weights, x, np.int32(count)))
    return {
      name: value if name == 'prob' else value[:, :count]
      for name, value in out.items()
    }

  def peak_bytes(self, count: int, width: int) -> int:
    """Returns the memory that a bag takes, with the features as they are read.

    Raises:
      ExportError: if the bag is longer than all `lengths`.
    """
    rows, program = self._program(count, width)
    taken = parallel.peak_bytes(program) or 0
    return taken + 4 * width * (count + rows)

  def _program(self, count: int, width: int) -> tuple[int, jax.stages.Compiled]:
    """Returns the length that bags are padded to, and the program for it."""
    rows = padded_length(count, self._lengths, self._least)
    if (rows, width) not in self._programs:
      x = jax.ShapeDtypeStruct((rows, width), np.float32)
      lowered = self._predict.lower(self._weights, x, np.int32(count))
      self._programs[rows, width] = lowered.compile()
    return rows, self._programs[rows, width]


def pack(archive: Archive) -> bytes:
  """Returns the content of the file; equal archives give equal bytes."""
  card = archive.card | {'exported_by': jax.__version__}
  content = {
    _CARD: (json.dumps(card, indent=2, allow_nan=False) + '\n').encode(),
    _WEIGHTS: safetensors.numpy.save(
      {k: np.ascontiguousarray(v) for k, v in sorted(archive.weights.items())}
    ),
    **dict(sorted(archive.programs.items())),
  }
  content[checksums.SUMS] = checksums.to_json(content).encode()
  out = io.BytesIO()
  # Stored, not compressed: what is declared is what there is.
  with zipfile.ZipFile(out, 'w', zipfile.ZIP_STORED) as file:
    for name, data in content.items():
      info = zipfile.ZipInfo(name, _STAMP)
      info.create_system, info.external_attr = 3, 0o644 << 16
      file.writestr(info, data)
  return out.getvalue()


def read(path: str | pathlib.Path) -> Archive:
  """Reads what `pack` returned.

  Raises:
    ExportError: if the file is damaged or of another kind.
  """
  try:
    with zipfile.ZipFile(path) as file:
      content = {}
      for info in file.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
          raise ExportError(f'{path}: {info.filename} is compressed')
        content[info.filename] = file.read(info)
    sums = content.pop(checksums.SUMS, None)  # Not in older files.
    if sums not in (None, checksums.to_json(content).encode()):
      raise ValueError('it was changed since it was written')
    card = json.loads(content.pop(_CARD))
    weights = safetensors.numpy.load(content.pop(_WEIGHTS))
  except (ExportError, FileNotFoundError):
    raise
  except (
    zipfile.BadZipFile,
    KeyError,  # A part is missing.
    safetensors.SafetensorError,
    EOFError,
    NotImplementedError,  # A zip of another kind.
    OSError,  # One whose table of contents points outside.
    RuntimeError,  # An encrypted one.
    ValueError,
  ) as error:
    raise ExportError(
      f'{path}: not a complete model of experiments.export ({error}). Copy or '
      'export it again.'
    ) from error
  known = {ANY, *map(program_name, LENGTHS)}
  if not content or not content.keys() <= known or not isinstance(card, dict):
    raise ExportError(
      f'{path}: holds {", ".join(content) or "no program"}, not the program of '
      'a model. Export it again.'
    )
  return Archive(card, weights, content)
