"""Makes features of new slides as those of trained models were made."""

import dataclasses
import pathlib
from typing import NoReturn

from data import slides
from experiments.encoding import encoder as encoders, extraction
from experiments.encoding.tiles import Scale, SlideTiles, Tiles
from experiments.prediction import run_folder
from experiments.prediction.bags import Failure
from experiments.prediction.card import Card, PredictionError
from kmil_jax import port

_OURS = 'resnet50-conv4-'  # Encoders of experiments.extract.
_NEEDED = ('mpp', 'patch_size')


@dataclasses.dataclass(frozen=True)
class Job:
  """Slides, and how they become features."""

  slides: SlideTiles
  encoder: encoders.Encoder

  def check(self, features_dir: pathlib.Path) -> NoReturn:
    """Looks at every slide and ends the script; see `extraction.check`."""
    extraction.check(self.slides, features_dir, self.encoder.attributes())

  def run(self, features_dir: pathlib.Path) -> tuple[list[str], list[Failure]]:
    """Writes `<slide_id>.h5` of every slide that has none yet.

    Returns:
      The slides that have features, and the others.

    Raises:
      PredictionError: if the folder holds features made otherwise.
    """
    try:
      failed = extraction.extract(self.slides, features_dir, self.encoder)
    except extraction.EncodingError as error:
      raise PredictionError(str(error)) from error
    without = {failure.slide_id for failure in failed}
    ids = [slides.slide_id(path) for path in self.slides.paths]
    return (
      [slide for slide in ids if slide not in without],
      [Failure(*failure) for failure in failed],
    )


def plan(
  slides_dir: pathlib.Path,
  card: Card,
  *,
  weights: str | None,
  run: pathlib.Path | None,
  cache_dir: str,
  scale: Scale,
) -> Job:
  """Returns what makes features like those that the models were trained on.

  Args:
    slides_dir: holds slides.
    card: of the models.
    weights: of the encoder, as of `encoder.make_encoder`.
    run: results folder of the models, if that is at hand: without `weights`, a
      random encoder is sought beside the features of the training.
    cache_dir: where ImageNet weights may have been put.
    scale: of slides that state none.

  Raises:
    PredictionError: if such features cannot be made.
    SlideError: if there are no slides.
  """
  made = card.features
  encoder_name = made.get('encoder', 'unknown')
  lacking = [name for name in _NEEDED if name not in made]
  known = encoder_name.startswith(_OURS) or encoder_name == weights
  if lacking or not known:
    told = f', and {" and ".join(lacking)} not stated' if lacking else ''
    raise PredictionError(
      f'--slides_dir: the models take features of encoder {encoder_name}{told}:'
      ' make them with the tool that made those of the training, and give'
      ' --features_dir'
    )
  paths = slides.list_slides(slides_dir)
  if not paths:
    raise slides.SlideError(f'{slides_dir}: holds no slides')
  if weights is None and run is not None:
    kept = run_folder.features_dir(run) / encoders.RANDOM_FILE
    weights = str(kept) if kept.exists() else None
  if weights is None:
    raise PredictionError(
      f'--slides_dir: the models take features of encoder {encoder_name}; give'
      ' its weights by --weights'
    )
  try:
    encoder = encoders.make_encoder(
      weights,
      features_dir='',
      cache_dir=cache_dir,
      sample=_never,
      precision=made.get('precision', 'float32'),
    )
  except port.PortError as error:
    raise PredictionError(str(error)) from error
  if encoder.name != encoder_name:
    raise PredictionError(
      f'--weights={weights} is encoder {encoder.name}; the models take'
      f' features of encoder {encoder_name}'
    )
  tiles = Tiles(
    tile_size=int(float(made['patch_size'])),
    tile_mpp=float(made['mpp']),
    min_tissue=float(made.get('min_tissue', Tiles.min_tissue)),
  )
  return Job(SlideTiles(paths, tiles, scale), encoder)


def _never():
  raise AssertionError('a random encoder is drawn for a training only')
