"""Predicts new, unlabelled slides with trained models.

  python -m experiments.predict --run=results/kmil_origin_s2023 \\
      --slides_dir=new_slides --weights=imagenet
  python -m experiments.predict --run=... --features_dir=... --fold=3
  python -m experiments.predict --model=model.kmil --features_dir=...

Writes to <results_dir>/<exp_code>: predictions.csv with the mean over the folds
of each slide's probabilities, their standard deviation and those of each fold,
calibrated by a temperature of the validation slides of all folds; of each
slide fold_<i>/attention/<slide_id>.h5 with attention, tile probabilities and
kept tiles; and failures.csv. A run that was killed goes on with the slides that
are left. A slide that cannot be read is left out and named, with the reason, at
the end; the exit code is then 1.
"""

import dataclasses
import pathlib
import sys

from data.features import FeatureError
from data.files import first_of
from data.slides import SlideError
from experiments.bags import features
from experiments.encoding.tiles import Scale
from experiments.prediction import bags, models, outputs
from experiments.prediction.models import Card, Predict, PredictionError
from experiments.run import results, start
from experiments.run.check import Check, Findings
from experiments.run.options import OptionError, field, free
from experiments.run.start import Cache
from kmil_jax.export import ExportError


@dataclasses.dataclass(frozen=True)
class Models(models.Folds):
  """The models."""

  model: pathlib.Path | None = free(
    None, 'File of experiments.export, instead of --run.'
  )
  calibrate: bool = free(
    True, 'Divide log probabilities by the temperatures of the folds.'
  )

  def read(self) -> tuple[Card, Predict]:
    """Returns the card, as --calibrate asks for it, and the function of a bag.

    Warns of folds that are not calibrated.
    """
    if self.model:
      card, predict = models.of_file(self.model)
    else:
      card, trained = models.read(self.folder(), self.fold)
      predict = trained.predictor
    print(card.summary())
    if not self.calibrate:
      return card.uncalibrated(), predict
    if None in card.temperature:
      print(
        f'warning: {card.temperature.count(None)} of {len(card.folds)} models'
        ' are not calibrated, as validation slides are too few, or do not show'
        ' how sure they may be. Their own probabilities are used.'
      )
    return card, predict


@dataclasses.dataclass(frozen=True)
class Slides:
  """The slides."""

  slides_dir: pathlib.Path | None = field(
    None, 'Folder of slides, which are encoded first.'
  )
  features_dir: pathlib.Path | None = field(
    None,
    'Folder of the features of slides, made as those of the training were.',
  )
  weights: str | None = free(
    None,
    "Weights of the encoder, a file or 'imagenet', as of experiments.extract. A"
    ' random encoder is found beside the features that --run was trained on.',
    only={'slides_dir': True},
  )


@dataclasses.dataclass(frozen=True)
class Output:
  """Where predictions go."""

  results_dir: pathlib.Path = free(
    pathlib.Path('results'), 'Folder of all results.'
  )
  exp_code: str | None = free(
    None,
    'Name of the folder of the predictions. By default it is made of the names'
    ' of the models and of the folder of slides.',
  )


def run(
  asked: Models,
  slides: Slides,
  scale: Scale,
  check: Check,
  output: Output,
  cache: Cache,
) -> None:
  """Encodes slides if need be, predicts them, writes files and tables."""
  values = vars(asked) | vars(slides)
  for one, other in ('run', 'model'), ('slides_dir', 'features_dir'):
    if bool(values[one]) == bool(values[other]):
      raise OptionError(f'Give one of --{one} and --{other}.')
  card, predict = asked.read()
  # Relative paths would be those of other slides elsewhere.
  kind = 'slides_dir' if slides.slides_dir else 'features_dir'
  source = values[kind].absolute()
  slides = dataclasses.replace(slides, **{kind: source})
  fold = '' if asked.fold is None else f'_fold_{asked.fold}'
  name = (asked.run or asked.model).absolute().name + fold
  path = output.results_dir / (
    output.exp_code or f'predict_{name}_{source.name}'
  )
  if slides.slides_dir:
    # It imports networks, which features that are there do without.
    from experiments.prediction import encode

    run = asked.folder() if asked.run else None
    job = encode.plan(source, card, slides.weights, run, cache.cache_dir, scale)
    print(f'{len(job.slides.paths)} slides')
    if check.check:
      job.check(path / 'features')
  else:
    found = bags.find(source, card)
    print(f'{len(found.ids)} slides with features')
    if check.check:
      findings = Findings(found.unlike)
      features.scan(found.source, found.ids, findings)
      findings.close()
    found.check()
  everything = [asked, slides, scale, check, output, cache]
  inputs, failures = {'model_sha256': list(card.sha256)}, []
  with results.opened(path, everything, inputs) as folder:
    if slides.slides_dir:
      made, failures = job.run(folder.at('features'))
      found = bags.find(folder.at('features'), card, made)
      found.check()
    known = models.slides(asked.folder()) if asked.run else set()
    if known := sorted(known & set(found.ids)):
      print(
        f'warning: {len(known)} slides have the ids of slides of the training:'
        f' {first_of(known)}. Their predictions are no test of the models.'
      )
    failures = outputs.predict(found, card, predict, folder, failures)
  print(f'predictions in {path / "predictions.csv"}')
  if failures:
    lines = [f'\n  {slide}  {reason}' for slide, reason in failures]
    sys.exit(
      f'error: {len(failures)} slides have no prediction:{"".join(lines)}'
    )


main = start.script(
  run, (ExportError, FeatureError, PredictionError, SlideError)
)


if __name__ == '__main__':
  main()
