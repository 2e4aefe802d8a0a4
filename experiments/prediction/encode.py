"""Makes features of new slides as those of trained models were made."""

import hashlib
import pathlib

from data import files
from data.tissue import Rule
from experiments.encoding import encoder as encoders
from experiments.encoding.encoder import Encoder
from experiments.encoding.tiles import Scale, SlideTiles, Tiles
from experiments.prediction.models import Card, Models, PredictionError
from experiments.run.results import Folder
from kmil_jax import checksums, export


def plan(
  slides_dir: pathlib.Path,
  card: Card,
  weights: str | None,
  cache_dir: pathlib.Path,
  scale: Scale,
) -> tuple[SlideTiles, Encoder]:
  """Returns what makes features like those that the models were trained on.

  Args:
    slides_dir: holds slides.
    card: of the models.
    weights: of the encoder, as of `encoder.make_encoder`.
    cache_dir: where ImageNet weights may have been put.
    scale: of slides that do not state theirs.

  Raises:
    PredictionError: if such features cannot be made.
    SlideError: if there are no slides.
    EncoderError, WeightsError, PortError: as `encoder.make_encoder`.
  """
  stated, name = card.features, card.features.get('encoder', 'unknown')
  takes = _takes(name)
  encoder_name = encoders.named(name)  # None of a function.
  known = encoder_name or name == weights
  if not known or not {'mpp', 'patch_size'} <= stated.keys():
    raise PredictionError(
      f'{takes}, with tiles of {stated.get("patch_size", "unknown")} px at'
      f' {stated.get("mpp", "unknown")} um/px. Make them with the tool of the'
      ' training, and give --features_dir.'
    )
  if weights is None and encoder_name != encoders.DEFAULT:
    raise PredictionError(f'{takes}. Give its weights by --weights.')
  is_function = weights is not None and encoders.is_function(weights)
  encoder = encoders.make_encoder(
    None if is_function else encoder_name,
    weights,
    cache_dir=cache_dir,
    precision=stated.get('precision', 'float32'),
  )
  if encoder.name != name:
    raise PredictionError(f'{takes}. --weights={weights} is {encoder.name}.')
  # `tissue_csv` and `regions` are of the training's slides.
  names = {'min_tissue', 'min_focus', *Rule._fields} & stated.keys()
  tiles = Tiles(
    tile_size=int(float(stated['patch_size'])),
    tile_mpp=float(stated['mpp']),
    overlap=int(float(stated.get('overlap', 0))),
    **{name: float(stated[name]) for name in names},
  )
  return SlideTiles(slides_dir, tiles, scale), encoder


def weights_file(
  card: Card, weights: str | None, run: Folder, cache_dir: pathlib.Path
) -> pathlib.Path:
  """Returns the file of the weights of the encoder that models were trained on.

  Args:
    card: of the models.
    weights: as of `plan`, and the others.
    run: results folder.
    cache_dir: where ImageNet weights may have been put.

  Raises:
    PredictionError: if it is not known, or is not of the encoder.
  """
  name = card.features.get('encoder', 'unknown')
  encoder = encoders.named(name)
  if encoder is None:
    raise PredictionError(
      f'--with_encoder: the features are of encoder {name}, which kmil_jax does'
      ' not have. Export without it.'
    )
  weights = weights or beside(run)
  try:
    path = encoders.file_of_weights(encoder, weights, cache_dir)
    digest = checksums.of_file(path)
  except encoders.ERRORS as error:
    raise PredictionError(f'--with_encoder: {error}') from error
  if not name.endswith(digest[:8]):
    raise PredictionError(f'{_takes(name)}. {path} has other weights.')
  return path


def at_hand(models: Models, cache_dir: pathlib.Path) -> str | None:
  """Returns the weights of the encoder that came with models, as a file.

  None without any. Those in a model's file are kept in `cache_dir`, by their
  hash.
  """
  if models.run:
    return beside(models.folder())
  for name, content in export.read(models.model).others.items():
    if name.startswith(export.ENCODER):
      digest = hashlib.sha256(content).hexdigest()
      suffix = pathlib.PurePath(name).suffix
      path = cache_dir.expanduser() / 'encoders' / f'{digest}{suffix}'
      with files.replacing(path) as part:
        part.write_bytes(content)
      return str(path)
  return None


def beside(run: Folder) -> str | None:
  """Returns a random encoder that is beside the features of the training."""
  folder = run.config().cohort.get('features_dir')
  kept = folder and files.place(folder) / encoders.RANDOM_FILE
  is_here = isinstance(kept, pathlib.Path) and kept.exists()
  return str(kept) if is_here else None


def _takes(name: str) -> str:
  return f'--slides_dir: the models take features of encoder {name}'
