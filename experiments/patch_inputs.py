"""What a patch training is a function of: checked, and hashed."""

import hashlib
import json
import pathlib

import numpy as np

from data.labelled_tiles import LabelledTiles
from kmil_jax import models, parallel, port, selection
from kmil_jax.tasks.tiles import PatchError
from kmil_jax.types import PatchRecipe

_HASHED = 64  # Tiles whose pixels are hashed where they do not fit in memory.


def check(
  model: str, train: LabelledTiles, val: LabelledTiles, recipe: PatchRecipe
) -> None:
  """Raises for what would fail late, or not at all."""
  known = models.CLASSIFIERS
  if model not in known:
    raise PatchError(f'model {model!r} is none of {", ".join(known)}')
  for part, tiles in (('training', train), ('validation', val)):
    if not len(tiles):
      raise PatchError(f'the {part} part holds no tile')
  if train.classes != val.classes:
    raise PatchError(
      f'training tiles have the classes {", ".join(train.classes)}, validation'
      f' tiles {", ".join(val.classes)}'
    )
  count = np.bincount(train.label, minlength=len(train.classes))
  if absent := [c for c, n in zip(train.classes, count, strict=True) if not n]:
    raise PatchError(f'no training tile is of class {", ".join(absent)}')
  side = (train.channels, recipe.input_size or train.size)
  if side != (val.channels, recipe.input_size or val.size):
    raise PatchError(
      f'training tiles have {train.channels} channel(s) and {train.size} pixels'
      f' a side, validation tiles {val.channels} and {val.size}'
    )
  for name in ('mean', 'std'):
    if len(values := getattr(recipe, name)) != train.channels:
      raise PatchError(
        f'the recipe has the {name} {values} for tiles of {train.channels}'
        ' channel(s)'
      )
  if both := sorted(set(train.id.tolist()) & set(val.id.tolist())):
    raise PatchError(
      f'{len(both)} tiles are in the training and in the validation part,'
      f' {both[0]} among them'
    )
  if recipe.batch % parallel.num_devices():
    raise PatchError(
      f'--batch={recipe.batch} does not divide over {parallel.num_devices()}'
      ' devices: choose a multiple of that'
    )
  if recipe.select in selection.NEED_AUROC and len(set(val.label)) < 2:
    raise PatchError(
      'the validation part holds one class, so no AUROC, by which this recipe'
      f' chooses the epoch ({recipe.select}); give --select=loss'
    )


def hashes(
  train: LabelledTiles, val: LabelledTiles, weights: str | None
) -> dict[str, str | None]:
  """Returns hashes of tiles and weights, for `provenance.open_folder`.

  Raises:
    port.PortError: if there is no such weights file.
    TileError: if tiles cannot be read.
  """
  digest = None
  if weights is not None:
    path = pathlib.Path(weights).expanduser()
    if not path.is_file():
      raise port.PortError(f'{weights}: there is no such weights file')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
  return {
    'train_sha256': fingerprint(train),
    'val_sha256': fingerprint(val),
    'weights_sha256': digest,
  }


def fingerprint(tiles: LabelledTiles) -> str:
  """Returns a hash of ids, labels, classes and pixels.

  Of a set that does not fit in memory, the pixels of some tiles stand for all.
  """
  digest = hashlib.sha256(
    json.dumps([tiles.classes, tiles.id.tolist()]).encode()
  )
  digest.update(tiles.label.astype('<i4').tobytes())
  pixels = tiles.pixels
  if pixels is None:
    pixels = tiles.load(np.linspace(0, len(tiles) - 1, _HASHED).astype(int))
  digest.update(np.ascontiguousarray(pixels))
  return digest.hexdigest()
