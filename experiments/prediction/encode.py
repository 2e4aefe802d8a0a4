"""Makes features of new slides as those of trained models were made."""

from collections.abc import Iterator
import contextlib
import dataclasses
import pathlib
from typing import NoReturn

from data import slides
from experiments.encoding import encoder as encoders, extraction
from experiments.encoding.tiles import Scale, SlideTiles, Tiles
from experiments.prediction.models import Card, PredictionError
from experiments.prediction.outputs import Failure
from experiments.run.results import Folder
from kmil_jax import port

_OURS = 'resnet50-conv4-'  # Encoders of experiments.extract.


@contextlib.contextmanager
def _named() -> Iterator[None]:
  """Names faults of the user's input as those of a prediction."""
  try:
    yield
  except (extraction.EncodingError, port.PortError) as error:
    raise PredictionError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class Job:
  """Slides, and how they become features."""

  slides: SlideTiles
  encoder: encoders.Encoder

  def check(self, features_dir: pathlib.Path) -> NoReturn:
    """Looks at every slide and ends the script; see `extraction.check`."""
    extraction.check(self.slides, features_dir, self.encoder.attributes())

  @_named()
  def run(self, features_dir: pathlib.Path) -> tuple[list[str], list[Failure]]:
    """Writes `<slide_id>.h5` of every slide that has none yet.

    Returns:
      The slides that have features, and the others.

    Raises:
      PredictionError: if the folder holds features made otherwise.
    """
    failed = extraction.extract(self.slides, features_dir, self.encoder)
    failures = [Failure(*failure) for failure in failed]
    ids = {slides.slide_id(path) for path in self.slides.paths}
    return sorted(ids - {slide for slide, _ in failures}), failures


@_named()
def plan(
  slides_dir: pathlib.Path,
  card: Card,
  weights: str | None,
  run: Folder | None,
  cache_dir: pathlib.Path,
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
    scale: of slides that do not state theirs.

  Raises:
    PredictionError: if such features cannot be made.
    SlideError: if there are no slides.
  """
  made, encoder_name = card.features, card.features.get('encoder', 'unknown')
  known = encoder_name.startswith(_OURS) or encoder_name == weights
  if not known or not {'mpp', 'patch_size'} <= made.keys():
    raise PredictionError(
      f'--slides_dir: the models take features of encoder {encoder_name}, with'
      f' tiles of {made.get("patch_size", "unknown")} px at'
      f' {made.get("mpp", "unknown")} um/px. Make them with the tool that made'
      ' those of the training, and give --features_dir.'
    )
  paths = slides.list_slides(slides_dir)
  if not paths:
    raise slides.SlideError(f'{slides_dir}: holds no slides')
  if weights is None and run:
    trained_on = run.config().cohort['features_dir']
    kept = pathlib.Path(trained_on, encoders.RANDOM_FILE)
    weights = str(kept) if kept.exists() else None
  if weights is None:
    raise PredictionError(
      f'--slides_dir: the models take features of encoder {encoder_name}. Give'
      ' its weights by --weights.'
    )
  encoder = encoders.make_encoder(
    weights,
    features_dir='',
    cache_dir=cache_dir,
    sample=tuple,  # Not called: a random encoder is made for a training only.
    precision=made.get('precision', 'float32'),
  )
  if encoder.name != encoder_name:
    raise PredictionError(
      f'--weights={weights} is encoder {encoder.name}. The models take features'
      f' of encoder {encoder_name}.'
    )
  tiles = Tiles(
    tile_size=int(float(made['patch_size'])),
    tile_mpp=float(made['mpp']),
    min_tissue=float(made.get('min_tissue', Tiles.min_tissue)),
  )
  return Job(SlideTiles(paths, tiles, scale), encoder)
