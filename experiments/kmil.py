"""Cross-validates KMIL, or a baseline, on slides.

  python -m experiments.kmil --fold=3        # one fold on the phantom cohort
  python -m experiments.kmil --csv_path=labels.csv --features_dir=features

Without data flags, the phantom cohort is rendered and encoded once. Folds that
are done are not trained again; a run that was killed goes on when the same
command is given. All folds train as one program, and one fold gives what it
gives among the ten.
"""

import resource
import sys

from absl import app, flags

from experiments import (
  common,
  crossval,
  external,
  figures,
  maps,
  settings as setting_flags,
  start,
  summaries,
  tables,
)
from experiments.crossval import Run
from experiments.preflight import bags as preflight, outlook
from experiments.preflight.flag import CHECK
from experiments.reporting import page
from experiments.run import progress
from kmil_jax import parallel
from kmil_jax.models import SPECS, dtfd, kmil

_MODEL = flags.DEFINE_enum('model', 'kmil', sorted(SPECS), 'What to train.')
_FOLD = flags.DEFINE_integer(
  'fold', None, 'The only fold to train, from 0; all by default.', 0
)
_DROP_FRACTION = flags.DEFINE_float(
  'drop_fraction', 0.1, 'KMIL: share of instances dropped.', 0, 0.999
)
_DROP = flags.DEFINE_enum(
  'drop', 'lowest', kmil.DROPS, 'KMIL: which scores are dropped.'
)
_SCORE = flags.DEFINE_enum(
  'score',
  'var',
  kmil.SCORES,
  'KMIL: variance over classes of the instance softmax (the released code),'
  ' or one minus it (eq. 3 of the paper).',
)
_COMBINE = flags.DEFINE_bool(
  'combine',
  False,
  'KMIL, DSMIL: average the probabilities of bag and highest instance.',
)
_DISTILL = flags.DEFINE_enum(
  'distill', 'afs', dtfd.DISTILL, 'DTFD: what the second tier sees.'
)
_PSEUDO_BAGS = flags.DEFINE_integer(
  'pseudo_bags', 4, 'DTFD: parts that a bag is split into.', 1
)
_TOTAL_INSTANCES = flags.DEFINE_integer(
  'total_instances',
  4,
  'DTFD with maxs or maxmins: instances distilled from a bag, of either end.',
  1,
)
_INSTANCE_SCORE = flags.DEFINE_enum(
  'instance_score',
  'last',
  dtfd.SCORES,
  'DTFD: instances are ranked by the probability of the last class (the'
  ' released code), or of the class their pseudo-bag is taken for.',
)
_HEAT_MAPS = flags.DEFINE_integer(
  'heat_maps', None, 'Attention maps to draw per fold; of all test slides.', 0
)
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(setting_flags)


def _run() -> None:
  settings = asked_settings()
  values = start.resolved(__name__) | setting_flags.resolved(settings)
  asked = _asked(common.K.value)
  if CHECK.value:
    preflight.check(values, settings, asked=asked)
  cohort, outlines_dir = common.cohort()
  splits = common.splits(cohort)
  if parallel.is_first():
    _describe(values, cohort, splits)
  second = common.external_cohort(cohort)
  folder = start.folder(f'{_MODEL.value}_{common.TASK.value}')
  if second:
    external.check(folder, second)
  if parallel.is_first():
    common.open_folder(folder, values, cohort, splits)
  parallel.wait_for_all('folder')
  runs = [
    Run(folder / f'fold_{fold}', fold, settings.choice)
    for fold in range(len(splits))
  ]
  crossval.train_folds(
    cohort, splits, runs, asked, settings, folder, attention=True
  )
  if second:
    external.evaluate(folder, asked, second, settings)
  faults = []
  if parallel.is_first():
    for fold in asked:
      faults += maps.draw(
        folder, fold, cohort, outlines_dir, limit=_HEAT_MAPS.value
      )
    summary = summaries.summarise(
      folder,
      _MODEL.value,
      common.TASK.value,
      len(splits),
      cohort.classes,
    )
    figures.draw(folder, cohort.classes)
    print(tables.closing(summary))
    common.tell_groups(folder, cohort)
    page.write(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'results in {folder}; peak memory {peak:.1f} GiB')
  parallel.wait_for_all('end')
  progress.raise_if_diverged([runs[fold].folder for fold in asked])
  if faults:
    sys.exit('error: slides without a heat map:\n' + '\n'.join(faults))


def asked_settings() -> crossval.Settings:
  """Returns what the flags ask for; refuses those that say nothing."""
  model = _MODEL.value
  per_mille = round(1000 * _DROP_FRACTION.value)
  if abs(per_mille - 1000 * _DROP_FRACTION.value) > 1e-6:
    raise app.UsageError(
      f'--drop_fraction={_DROP_FRACTION.value}: give thousandths'
    )
  is_dtfd = model.startswith('dtfd')
  ranks = is_dtfd and _DISTILL.value in dtfd.RANKING
  for flag, has_it in (
    (_DROP_FRACTION, SPECS[model].chooser),
    (_DROP, SPECS[model].chooser),
    (_SCORE, SPECS[model].chooser),
    (_DISTILL, is_dtfd),
    (_PSEUDO_BAGS, is_dtfd),
    (_TOTAL_INSTANCES, ranks),
    (_INSTANCE_SCORE, ranks),
  ):
    if flags.FLAGS[flag.name].present and not has_it:
      told = f'{model} with --distill={_DISTILL.value}' if is_dtfd else model
      raise app.UsageError(f'--{flag.name} says nothing to {told}')
  if ranks and _TOTAL_INSTANCES.value < _PSEUDO_BAGS.value:
    raise app.UsageError(
      f'--total_instances={_TOTAL_INSTANCES.value} leaves none to each of'
      f' --pseudo_bags={_PSEUDO_BAGS.value}'
    )
  options = {
    'distill': _DISTILL.value,
    'pseudo_bags': _PSEUDO_BAGS.value,
    'total_instances': _TOTAL_INSTANCES.value,
    'score': _INSTANCE_SCORE.value,
  }
  return setting_flags.resolve(
    model,
    choice=kmil.Choice(_SCORE.value, _DROP.value, per_mille),
    combine=_COMBINE.value,
    options=options if is_dtfd else {},
  )


def _asked(k: int) -> list[int]:
  if _FOLD.value is None:
    return list(range(k))
  if _FOLD.value >= k:
    raise app.UsageError(f'--fold={_FOLD.value}: folds are 0 to {k - 1}')
  return [_FOLD.value]


def _describe(values, cohort, splits) -> None:
  """Prints the resolved flags, the cohort and what training would take."""
  for name, value in values.items():
    print(f'--{name}={"" if value is None else value}')
  for line in (*outlook.of_cohort(cohort), *outlook.of_folds(cohort, splits)):
    print(line)


main = start.script(_run, common.ERRORS)


if __name__ == '__main__':
  app.run(main)
