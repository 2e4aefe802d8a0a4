"""Trains KMIL under every setting of the paper's Tables 4 and 5 at once.

  python -m experiments.ablations        # on the phantom cohort

All settings and folds are runs of one program, and those of a fold share its
first stage. Each setting has a results folder of its own, like that of
`experiments.kmil` with the same flags, in `<exp_code>_s<seed>/<setting>`;
`experiments.paper` prints the tables.
"""

from absl import app, flags

from experiments import (
  ablation_settings,
  common,
  crossval,
  settings as setting_flags,
  start,
  summaries,
  tables,
)
from experiments.crossval import Run
from experiments.preflight import bags as preflight
from experiments.preflight.flag import CHECK
from experiments.run import progress
from kmil_jax import parallel

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(setting_flags)


def _run() -> None:
  common.refuse_second_cohort()
  settings = setting_flags.resolve('kmil')
  values = start.resolved(__name__) | setting_flags.resolved(settings)
  choices = ablation_settings.SETTINGS
  if CHECK.value:
    preflight.check(values, settings, runs_of_fold=len(choices))
  cohort, _ = common.cohort()
  splits = common.splits(cohort)
  root = start.folder(f'ablations_{common.TASK.value}')
  if parallel.is_first():
    for name, choice in choices.items():
      common.open_folder(
        root / name,
        values
        | {
          'model': 'kmil',
          'score': choice.score,
          'drop': choice.drop,
          'drop_fraction': choice.drop_per_mille / 1000,
        },
        cohort,
        splits,
      )
  parallel.wait_for_all('folder')
  runs = [
    Run(root / name / f'fold_{fold}', fold, choice)
    for name, choice in choices.items()
    for fold in range(len(splits))
  ]
  crossval.train_folds(
    cohort, splits, runs, range(len(runs)), settings, root, attention=False
  )
  if parallel.is_first():
    finished = [
      name
      for name in choices
      if list((root / name).glob('fold_*/predictions.csv'))
    ]
    for name in finished:
      summary = summaries.summarise(
        root / name, 'kmil', common.TASK.value, len(splits), cohort.classes
      )
      print(f'{name:14} ' + tables.one_line(summary['metrics']))
    print(f'results in {root}')
  parallel.wait_for_all('end')
  progress.raise_if_diverged([run.folder for run in runs])


main = start.script(_run, common.ERRORS)


if __name__ == '__main__':
  app.run(main)
