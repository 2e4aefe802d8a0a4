"""Models as files that run without the code that made them.

A file is a zip of `card.json`, what the model is; `weights.safetensors`, the
arrays that its program takes; the program in StableHLO, lowered for CPUs, CUDA
GPUs and TPUs: `model.stablehlo` of bags of any length, or
`model_<N>.stablehlo` of bags padded to N; `kmil_model.py`, which runs it with
JAX alone; `README.md`, the card to read; the encoder's weights, if asked for,
below `encoder/`; and `sha256.json`, the hashes of all these. The same content
gives the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import io
import json
import pathlib
from typing import Any
import zipfile

import jax
import numpy as np
import safetensors
import safetensors.numpy

from kmil_jax import checksums, exported, parallel
from kmil_jax.exported import (
  ANY,
  CARD,
  LEAST as LEAST,
  LENGTHS,
  WEIGHTS,
  ExportError,
  padded_length,
  program_name,
)

README, ENCODER = 'README.md', 'encoder/'
# What Python runs, and imports, of the file.
_CODE = {
  '__main__.py': b'import kmil_model\n\nkmil_model.main()\n',
  'kmil_model.py': pathlib.Path(exported.__file__).read_bytes(),
}
_STAMP = (1980, 1, 1, 0, 0, 0)  # Zip's first day.

# weights, features [N, D] and the bag's count [] to arrays.
Predict = Callable[[Mapping[str, Any], Any, Any], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Archive:
  """What a model's file holds."""

  card: dict[str, Any]
  weights: dict[str, np.ndarray]
  programs: dict[str, bytes]  # by name: `ANY`, or one for each length
  # By name: README.md, and the encoder's weights below `ENCODER`.
  others: dict[str, bytes] = dataclasses.field(default_factory=dict)

  def predict(self) -> Predict:
    """Returns the programs as one function, compiled once per length.

    Raises:
      ExportError: if this JAX cannot read them.
    """
    try:
      return exported.program(self.programs)
    except Exception as error:  # Of flatbuffers, MLIR or jax.export.
      raise ExportError(
        f'jax {jax.__version__} cannot read the program, which jax '
        f'{self.card.get("exported_by")} wrote ({error}). Export the model '
        'again with the version here.'
      ) from error

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


class Predictor:
  """What the models of R folds predict for one bag.

  Args:
    predict: see `inference.Design.predict`.
    weights: what it takes.
    lengths: see `padded_length`.
    least: no bag is padded to less.
    dtype: of the features that `predict` takes.
  """

  def __init__(
    self,
    predict: Predict,
    weights: Mapping[str, Any],
    lengths: Sequence[int] | None = None,
    least: int = 1,
    dtype: Any = np.float32,
  ):
    self._predict, self._weights = jax.jit(predict), jax.device_put(weights)
    self._lengths, self._least = lengths, least
    self._dtype = np.dtype(dtype)
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
    x = np.zeros((rows, width), self._dtype)
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
    return taken + width * (4 * count + self._dtype.itemsize * rows)

  def _program(self, count: int, width: int) -> tuple[int, jax.stages.Compiled]:
    """Returns the length that bags are padded to, and the program for it."""
    rows = padded_length(count, self._lengths, self._least)
    if (rows, width) not in self._programs:
      x = jax.ShapeDtypeStruct((rows, width), self._dtype)
      lowered = self._predict.lower(self._weights, x, np.int32(count))
      self._programs[rows, width] = lowered.compile()
    return rows, self._programs[rows, width]


def pack(archive: Archive) -> bytes:
  """Returns the content of the file; equal archives give equal bytes."""
  card = archive.card | {'exported_by': jax.__version__}
  content = {
    CARD: (json.dumps(card, indent=2, allow_nan=False) + '\n').encode(),
    WEIGHTS: safetensors.numpy.save(
      {k: np.ascontiguousarray(v) for k, v in sorted(archive.weights.items())}
    ),
    **dict(sorted(archive.programs.items())),
    **_CODE,
    **dict(sorted(archive.others.items())),
  }
  # First, where no other entry's damage can hide it.
  content = {checksums.SUMS: checksums.to_json(content).encode()} | content
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
    card = json.loads(content.pop(CARD))
    weights = safetensors.numpy.load(content.pop(WEIGHTS))
  except (ExportError, FileNotFoundError, MemoryError):
    raise
  except Exception as error:  # Damaged files raise errors of many kinds.
    raise ExportError(
      f'{path}: not a complete model of experiments.export ({error}). Copy or '
      'export it again.'
    ) from error
  others = {
    name: content.pop(name)
    for name in list(content)
    if name in (README, *_CODE) or name.startswith(ENCODER)
  }
  known = {ANY, *map(program_name, LENGTHS)}
  if not content or not content.keys() <= known or not isinstance(card, dict):
    raise ExportError(
      f'{path}: holds {", ".join(content) or "no program"}, not the program of '
      'a model. Export it again.'
    )
  return Archive(card, weights, content, others)
