"""Trains KMIL under every setting of the paper's Tables 4 and 5 at once.

  python -m experiments.ablations        # on the phantom cohort

All settings and folds are runs of one program, and those of a fold share its
first stage. Each setting has a results folder of its own, like that of
`experiments.kmil` with the same flags, in `<exp_code>_s<seed>/<setting>`;
`experiments.paper` prints the tables.
"""

from experiments.bags import cohort as cohorts, crossval, options, preflight
from experiments.bags.ablation import SETTINGS
from experiments.bags.crossval import Run
from experiments.bags.options import Data, Folds, Model, Training
from experiments.evaluation import summary as summaries
from experiments.evaluation.tables import Row, Table
from experiments.run import progress, results, start
from experiments.run.check import Check
from experiments.run.results import Folder
from experiments.run.start import Machine, Output, show

_METRICS = ('accuracy', 'f1_macro', 'auroc')


def run(
  data: Data,
  folds: Folds,
  training: Training,
  check: Check,
  output: Output,
  machine: Machine,
) -> None:
  """Trains all settings and folds, writes a results folder of each setting."""
  training = training.resolved('kmil')
  settings = options.settings(Model(), training, output.seed)
  asked = [data, folds, training, check, output, machine]
  show(start.lines(asked))
  material = cohorts.load(data, folds, output.seed, machine.cache_dir)
  if check.check:
    numbers = [fold for fold in range(folds.k) for _ in SETTINGS]
    preflight.check(material, settings, training.stream, numbers)
  material.check()
  inputs, about = material.inputs(), material.about()
  root = output.folder(f'ablations_{data.task}')
  with results.opened(root, asked, inputs, about) as folder:
    for name, model in SETTINGS.items():
      part = Folder(root / name)
      results.record(part, [model, *asked], inputs, about)
      material.write(part)
    runs = [
      Run(
        root / name / f'fold_{fold}',
        fold,
        options.settings(model, training, output.seed).choice,
      )
      for name, model in SETTINGS.items()
      for fold in range(len(material.splits))
    ]
    crossval.train_folds(
      material,
      runs,
      range(len(runs)),
      settings,
      training,
      folder,
      attention=False,
    )
    rows = []
    for name in SETTINGS:
      if any((root / name).glob('fold_*/predictions.csv')):
        summary = summaries.summarise(
          Folder(root / name),
          'kmil',
          data.task,
          len(material.splits),
          material.cohort.classes,
        )
        found = [summary['metrics'][metric] for metric in _METRICS]
        rows.append(
          Row(
            (name,),
            {
              'pooled': [m['pooled'] for m in found],
              '95 %': [(m['ci_low'], m['ci_high']) for m in found],
            },
          )
        )
  title = 'KMIL by what it drops, test parts of all folds pooled'
  columns = dict.fromkeys(_METRICS, '.3f')
  show(Table('ablations', title, ('setting',), columns, rows).terminal())
  show(f'results in {root}')
  progress.raise_if_diverged([run.folder for run in runs])


main = start.script(run, cohorts.ERRORS)


if __name__ == '__main__':
  main()
