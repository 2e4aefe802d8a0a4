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

import pathlib
import sys
from typing import NoReturn

from absl import app, flags

from data.features import FeatureError
from data.files import first_of
from data.slides import SlideError
from experiments import provenance, scale_flags, start
from experiments.prediction import bags, loop, outputs, predictor, run_flags
from experiments.prediction.card import PredictionError
from experiments.prediction.predictor import Predictor
from experiments.preflight import features as preflight, flag
from experiments.preflight.findings import Findings
from kmil_jax.export import ExportError

_MODEL = flags.DEFINE_string(
  'model', None, 'File of experiments.export, instead of --run.'
)
_SLIDES_DIR = flags.DEFINE_string(
  'slides_dir', None, 'Folder with slides, which are encoded first.'
)
_FEATURES_DIR = flags.DEFINE_string(
  'features_dir',
  None,
  'Folder with the features of slides, made as those of the training were.',
)
_WEIGHTS = flags.DEFINE_string(
  'weights',
  None,
  "With --slides_dir: weights of the encoder, a file or 'imagenet', or"
  ' module:function, as of experiments.extract. With --run, a random encoder is'
  ' found beside the features of the training.',
)
_CALIBRATE = flags.DEFINE_bool(
  'calibrate', True, 'Apply the temperatures of the folds.'
)
flags.adopt_module_key_flags(flag)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(scale_flags)
flags.adopt_module_key_flags(start)

_ERRORS = (ExportError, FeatureError, PredictionError, SlideError)


def _run() -> None:
  for one, other in ((run_flags.RUN, _MODEL), (_SLIDES_DIR, _FEATURES_DIR)):
    if bool(one.value) == bool(other.value):
      raise app.UsageError(f'give one of --{one.name} and --{other.name}')
  for given in (_WEIGHTS, scale_flags.DEFAULT_MPP, scale_flags.MPP_CSV):
    if given.value is not None and not _SLIDES_DIR.value:
      raise app.UsageError(f'--{given.name} goes with --{_SLIDES_DIR.name}')
  if start.COORDINATOR.value:
    raise app.UsageError('--coordinator: slides are predicted on one host')
  models = _models()
  card = models.card
  print(card.summary())
  job = None
  if _SLIDES_DIR.value:
    # It imports networks, which features that are there do without.
    from experiments.prediction import encode

    job = encode.plan(
      _path(_SLIDES_DIR),
      card,
      weights=_WEIGHTS.value,
      run=run_flags.run(),
      cache_dir=start.CACHE_DIR.value,
      scale=scale_flags.scale(),
    )
    print(f'{len(job.slides.paths)} slides')
    if flag.CHECK.value:
      job.check(_folder() / 'features')
  else:
    if flag.CHECK.value:
      _close(bags.compare(_path(_FEATURES_DIR), card))
    found, failures = bags.check(_path(_FEATURES_DIR), card)
    print(f'{len(found.ids)} slides with features')
  folder = _folder()
  values = start.resolved(__name__)
  # Other slides are other predictions.
  shown = _SLIDES_DIR if _SLIDES_DIR.value else _FEATURES_DIR
  values[shown.name] = str(_path(shown).absolute())
  inputs = {'model_sha256': list(card.sha256)}
  provenance.open_folder(folder, values, [shown.name], inputs)
  if _CALIBRATE.value:
    for doubt in outputs.doubts(card):
      print(f'warning: {doubt}')
  else:
    card = models.card = card.uncalibrated()
  if job:
    made, failures = job.run(folder / 'features')
    found, unread = bags.check(folder / 'features', card, made)
    failures += unread
  _warn_of_known(found.ids)
  failures += loop.predict(found, models, folder)
  counts = outputs.write_tables(folder, card, found.ids, failures)
  print(', '.join(f'{name} {count}' for name, count in counts.items()))
  print(f'predictions in {folder / "predictions.csv"}')
  if failures:
    lines = [f'  {slide}  {reason}' for slide, reason in sorted(failures)]
    sys.exit(
      f'error: {len(failures)} slides have no prediction:\n' + '\n'.join(lines)
    )


def _warn_of_known(ids: list[str]) -> None:
  """Says which slides the models of --run were trained on."""
  if not (run := run_flags.run()):
    return
  from experiments.prediction import run_folder

  if known := sorted(run_folder.slides(run) & set(ids)):
    print(
      f'warning: {len(known)} slides have the ids of slides of the training:'
      f' {first_of(known)}; what is said of them is no test of the models'
    )


def _close(compared: bags.Compared) -> NoReturn:
  """Ends --check of features, having read all of them."""
  found, failures, faults = compared
  print(f'{len(found.ids)} slides with features')
  unread = [f'{slide}: {reason}' for slide, reason in failures]
  unlike = [f"{fault}, unlike the models' own features" for fault in faults]
  findings = Findings(unread + unlike)
  preflight.scan(found.source, found.ids, findings)
  findings.close()


def _models() -> Predictor:
  """Returns the models of --run or --model."""
  if _MODEL.value:
    if run_flags.FOLD.present:
      raise app.UsageError('--fold goes with --run: a file has its folds')
    return predictor.of_file(_path(_MODEL))
  return predictor.of_run(run_flags.run(), run_flags.fold())


def _folder() -> pathlib.Path:
  """Returns the folder of the predictions."""
  code = start.EXP_CODE.value
  if not code:
    models = run_flags.run() or _path(_MODEL)
    slides = pathlib.Path(_SLIDES_DIR.value or _FEATURES_DIR.value).absolute()
    fold = (
      ''
      if run_flags.FOLD.value == 'ensemble'
      else f'_fold_{run_flags.FOLD.value}'
    )
    code = f'predict_{models.absolute().name}{fold}_{slides.name}'
  return pathlib.Path(start.RESULTS_DIR.value) / code


def _path(flag: flags.FlagHolder[str]) -> pathlib.Path:
  return pathlib.Path(flag.value).expanduser()


main = start.script(_run, _ERRORS)


if __name__ == '__main__':
  app.run(main)
