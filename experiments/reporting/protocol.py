"""How the numbers of a report came about, in words."""

from collections.abc import Iterator
import dataclasses

from experiments.evaluation import summary as summaries
from experiments.reporting.record import Record
from kmil_jax.models import SPECS
from kmil_jax.types import Recipe

# What is said of an epoch that is kept, by `selection.SELECTS`.
_SELECT = {
  'f1_macro': 'the epoch of the best validation macro F1',
  'loss': 'the epoch of the lowest validation loss',
  'loss_or_accuracy': 'the epoch of the best validation loss or accuracy',
  'accuracy': 'the epoch of the best validation accuracy',
  'auroc': 'the epoch of the best validation AUROC',
  'auroc_accuracy': 'the epoch of the best mean of validation AUROC and'
  ' accuracy',
  'late_auroc': 'the epoch of the best validation AUROC after four'
  ' fifths of training',
  'last': 'the last epoch, whatever validation says',
}
_OPTIMIZERS = {
  'adam': 'Adam, its weight decay an L2 term in the gradient',
  'lookahead_radam': 'Lookahead over rectified Adam, its weight decay apart',
}
_SCHEDULES = {
  'cosine': 'falling to {least:g} along a cosine',
  'constant': 'constant',
  'step': 'falling in steps',
  'plateau': 'falling when validation stalls',
}
_INTERVALS = (
  'Intervals are of 95 % and take patients, not slides, for independent.'
  " Accuracy, precision and recall have Wilson's interval at the effective"
  ' number of slides; F1, balanced accuracy and AUROC the 2.5th and 97.5th'
  ' percentile over 10,000 resamples of patients, who bring all their slides;'
  " AUROC also DeLong's interval in Obuchowski's form for clustered data."
  ' An interval is n/a where nothing varies or a class has one patient.'
  ' Metrics count slides. AUROC of several classes is the mean over classes of'
  ' each against the rest.'
)


def paragraphs(record: Record) -> list[tuple[str, str]]:
  """Returns titles and texts, in their order."""
  told = [
    ('Splits', ' '.join(_splits(record))),
    ('What selects, what reports', ' '.join(_parts(record))),
    ('Model', ' '.join(_model(record))),
    ('Training', ' '.join(_training(record))),
    ('Intervals', _INTERVALS),
    ('Calibration', _calibration(record)),
  ]
  return [(title, text) for title, text in told if text]


def recipe(record: Record) -> Recipe | None:
  """Returns what the model was trained with; None of models of no epochs."""
  flags, model = record.flags, record.summary['model']
  if model not in SPECS:
    return None
  whole = SPECS[model].own if flags.get('recipe') == 'own' else Recipe()
  said = {
    'epochs': flags.get('epochs'),
    'learning_rate': flags.get('lr'),
    'weight_decay': flags.get('weight_decay'),
    'select': flags.get('select'),
    'batch': flags.get('batch_size'),
  }
  return dataclasses.replace(
    whole, **{name: value for name, value in said.items() if value is not None}
  )


def _splits(record: Record) -> Iterator[str]:
  slides, flags = record.slides, record.flags
  k = record.summary['k']
  if flags.get('split_dir'):
    yield f"The {k} folds were given, in files of CLAM's layout."
  else:
    if column := flags.get('group_col'):
      yield (
        f'Whole groups of slides, by the column “{column}”, were dealt to'
        f' {k} folds from the seed {flags.get("seed")}, classes as evenly as'
        ' groups allow; cases are within groups.'
      )
    else:
      yield (
        f'Cases, not slides, were dealt to {k} folds, class by class in an'
        f' order drawn from the seed {flags.get("seed")}.'
      )
    yield (
      'Fold i tests what was dealt to it, validates on what was dealt to the'
      ' next, and trains on the rest.'
    )
  labels = flags.get('labels')
  if labels:
    yield f'Labels were changed: {", ".join(labels)}.'
  elif flags.get('task', 'origin') != 'origin':
    yield f'Labels were grouped as task {flags["task"].upper()}.'
  if slides.instances is None:
    yield "The cohort's table is not in the folder: sizes of bags are unknown."


def _parts(record: Record) -> Iterator[str]:
  found = recipe(record)
  if found is None:
    chosen = 'nothing but the temperature'
  else:
    chosen = f'{_SELECT.get(found.select, found.select)} and the temperature'
  yield (
    f'The validation part of a fold chose {chosen}. Its test part was evaluated'
    ' once, after that; it chose nothing.'
  )
  yield (
    'All figures are of test parts, unless they are said to be of validation.'
    f' {_pooled(record)}; “mean” and “SD” are over folds.'
  )


def _pooled(record: Record) -> str:
  again = record.tested_again
  if not again:
    return (
      'No slide is in the test part of two folds, so that “pooled” counts every'
      ' slide once'
    )
  return (
    f'{len(again)} slides are in the test parts of several folds, and “pooled”'
    ' counts them each time; intervals, which resample patients, allow for it'
  )


def _model(record: Record) -> Iterator[str]:
  flags, model = record.flags, record.summary['model']
  if model not in SPECS:
    yield f'{model}.'
    return
  spec = SPECS[model]
  yield f'{model} ({spec.paper}).'
  if spec.chooser:
    drop = float(flags.get('drop_fraction', 0))
    score = {
      'var': 'the variance over classes of its class probabilities',
      'one_minus_var': 'one minus the variance over classes of its class'
      ' probabilities',
    }.get(flags.get('kmil_score'), flags.get('kmil_score'))
    yield (
      f'A first stage, {spec.chooser}, scores every instance by {score}. The'
      f' {100 * drop:g} % of a slide with the {flags.get("kmil_drop")} scores'
      ' are dropped; the second stage is trained on the rest, and it is what'
      ' predicts.'
    )
  if model.startswith('dtfd'):
    yield (
      f'Each slide is split into {flags.get("pseudo_bags")} pseudo-bags; the'
      f' second tier sees “{flags.get("distill")}”.'
    )
  if flags.get('average_with_top_instance'):
    yield 'Probabilities of the bag and of its highest instance are averaged.'


def _training(record: Record) -> Iterator[str]:
  found, flags = recipe(record), record.flags
  if found is None:
    return
  schedule = _SCHEDULES.get(found.schedule, found.schedule)
  schedule = schedule.format(least=found.learning_rate_min)
  yield (
    f'{_OPTIMIZERS.get(found.optimizer, found.optimizer)}; learning rate'
    f' {found.learning_rate:g}, {schedule};'
    f' weight decay {found.weight_decay:g}; {found.epochs} epochs'
    + (f', ended by {found.patience} without gain' if found.patience else '')
    + f'; {found.batch} slide{"s" * (found.batch > 1)} a step; seed'
    f' {flags.get("seed")}; {flags.get("precision")}.'
  )
  if SPECS[record.summary['model']].chooser:
    yield (
      f'The first stage is trained for {min(found.epochs, 100)} epochs at most,'
      ' from a learning rate of 0.001 that falls when validation stalls.'
    )


def _calibration(record: Record) -> str:
  low, high = record.summary['calibration']['temperature_bounds']
  return (
    'ECE is the expected calibration error, the Brier score is summed over'
    ' classes, NLL is the mean negative log likelihood. The temperature of a'
    ' fold minimises the NLL of the validation parts of all folds, without the'
    f' patients that the fold tests, within {low:g} to {high:g}, and is applied'
    f' to its test part. With fewer than {summaries.LEAST_PATIENTS} patients,'
    ' or at a bound, it is 1.'
  )
