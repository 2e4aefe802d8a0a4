"""Predicts new, unlabelled slides with trained models.

  python -m experiments.predict --run=results/kmil_origin_s2023 \\
      --slides_dir=new_slides
  python -m experiments.predict --run=... --features_dir=... --fold=3
  python -m experiments.predict --model=model.kmil --features_dir=...
  python -m experiments.predict --model=model.kmil --slides_dir=new_slides

Writes to <results_dir>/<exp_code>: predictions.csv with the mean over the folds
of each slide's probabilities, their standard deviation and those of each fold,
calibrated by a temperature of the validation slides of all folds; with
--csv_path predictions_cases.csv, of patients; of each slide attention, tile
probabilities and kept tiles in fold_<i>/attention/<slide_id>.h5; failures.csv.
A run that was killed goes on with the slides that are left. A slide that cannot
be read is left out and named at the end, with the reason; the exit code is 1.
"""

import dataclasses
import pathlib
import sys

from data.files import counted
from data.labels import leaks
from data.slides import slide_id
from experiments.encoding.tiles import Scale
from experiments.prediction import bags, outputs
from experiments.prediction.models import Models, PredictionError
from experiments.run import results, start
from experiments.run.options import OptionError, field, free
from experiments.run.start import Cache, Check, Findings


@dataclasses.dataclass(frozen=True)
class Slides:
  """The slides."""

  slides_dir: pathlib.Path | None = field(
    None, 'Folder of slides, which are encoded first.'
  )
  features_dir: pathlib.Path | None = field(
    None,
    'Folder of the features of slides, made as those of the training were.',
    remote=True,
  )
  csv_path: pathlib.Path | None = free(
    None,
    'Patients of the slides: a CSV with the columns case_id,slide_id, for'
    ' predictions of patients beside those of slides. Labels are ignored. By'
    ' default those that experiments.pack wrote.',
    remote=True,
  )
  weights: str | None = free(
    None,
    "Weights of the encoder, a file or 'imagenet', as of experiments.extract. A"
    ' random encoder is found beside the features that --run was trained on,'
    ' one of export --with_encoder in --model.',
    only={'slides_dir': True},
  )


@dataclasses.dataclass(frozen=True)
class Output:
  """Where predictions go."""

  results_dir: pathlib.Path = free(
    pathlib.Path('results'), 'Folder of all results.', made=True
  )
  exp_code: str | None = free(
    None,
    'Name of the folder of the predictions. By default it is made of the names'
    ' of the models and of the folder of slides.',
  )


def run(
  trained: Models,
  slides: Slides,
  scale: Scale,
  check: Check,
  output: Output,
  cache: Cache,
) -> start.Next:
  """Encodes slides if need be, predicts them, writes files and tables."""
  values = vars(trained) | vars(slides)
  for one, other in ('run', 'model'), ('slides_dir', 'features_dir'):
    if bool(values[one]) == bool(values[other]):
      raise OptionError(f'Give one of --{one} and --{other}.')
  card, predict = trained.read()
  # Relative paths would be those of other slides elsewhere.
  kind = 'slides_dir' if slides.slides_dir else 'features_dir'
  source = values[kind].absolute()
  slides = dataclasses.replace(slides, **{kind: source})
  fold = '' if trained.fold is None else f'_fold_{trained.fold}'
  name = (trained.run or trained.model).absolute().name + fold
  path = output.results_dir / (
    output.exp_code or f'predict_{name}_{source.name}'
  )
  if slides.slides_dir:
    # It imports networks, which features that are there do without.
    from experiments.encoding import extraction
    from experiments.prediction import encode

    weights = slides.weights or encode.at_hand(trained, cache.cache_dir)
    cohort, encoder = encode.plan(source, card, weights, cache.cache_dir, scale)
    print(counted(len(cohort.paths), 'slide'))
    names = sorted(map(slide_id, cohort.paths))
    case_of, wrong = bags.cases(slides.csv_path, names)
    if check.check:
      extraction.check(cohort, path / 'features', encoder.attributes(), wrong)
  else:
    slide_bags = bags.find(source, card, cache_dir=cache.cache_dir)
    print(f'{counted(len(slide_bags.ids), "slide")} with features')
    case_of, wrong = bags.cases(slides.csv_path, slide_bags.ids)
    if not case_of:
      case_of = slide_bags.source.cases
      Findings(warnings=leaks(case_of.values())).warn()
    if check.check:
      findings = Findings(slide_bags.problems(predict) + wrong)
      findings.add_folder(path)
      findings.close()
    slide_bags.check()
  if wrong:
    raise PredictionError('\n'.join(wrong))
  everything = [trained, slides, scale, check, output, cache]
  inputs, failures = {'model_sha256': list(card.sha256)}, {}
  with results.opened(path, everything, inputs) as folder:
    folder.at(outputs.CASES).unlink(missing_ok=True)  # Of an earlier table.
    if slides.slides_dir:
      features_dir = folder.at('features')
      failures = extraction.extract(cohort, features_dir, encoder)
      encoded = [name for name in names if name not in failures]
      slide_bags = bags.find(features_dir, card, encoded, cache.cache_dir)
      slide_bags.check()
    trained_on = trained.known(slide_bags.ids, case_of)
    failures = outputs.predict(
      slide_bags, card, predict, folder, failures, case_of, trained_on
    )
  print(f'predictions in {path / "predictions.csv"}')
  if failures:
    lines = [f'\n  {slide}  {reason}' for slide, reason in failures.items()]
    sys.exit(
      f'error: {counted(len(failures), "slide")} without a prediction:'
      + ''.join(lines)
    )
  where = None if slides.slides_dir else 'new_slides'
  if where and {'slide', 'patient'} & set(trained_on.values()):
    where = trained.folder().config().values.get('slides_dir') or where
  return 'view', {'run': path, 'slides_dir': where}


main = start.script(run)


if __name__ == '__main__':
  main()
