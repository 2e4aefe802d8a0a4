"""Trains KMIL under every setting of the paper's Tables 4 and 5 at once.

  python -m experiments.ablations        # on the phantom cohort

All settings and folds are runs of one program, and those of a fold share its
first stage. Each setting has a results folder of its own, like that of
`experiments.kmil` with the same flags, in `<exp_code>_s<seed>/<setting>`;
`experiments.paper` prints the tables.
"""

from experiments.bags import crossval, options, preflight
from experiments.bags.ablation import SETTINGS
from experiments.bags.crossval import Run
from experiments.bags.options import Features, Folds, Model, Training
from experiments.evaluation.summary import summarise
from experiments.reporting.tables import of_settings
from experiments.run import progress, results, start
from experiments.run.results import Folder
from experiments.run.start import Check, Machine, Output, show


def run(
  data: Features,
  folds: Folds,
  training: Training,
  check: Check,
  output: Output,
  machine: Machine,
) -> start.Next:
  """Trains all settings and folds, writes a results folder of each setting."""
  asked, training = training, training.resolved('kmil')
  settings = options.settings(Model(), training, output.seed)
  given = [data, folds, training, check, output, machine]
  numbers = [fold for fold in range(folds.k) for _ in SETTINGS]
  root = output.folder(f'ablations_{data.task}')
  shown = [asked if one is training else one for one in given]
  material = preflight.begin(root, shown, settings, training.store, numbers)
  inputs, about = material.inputs(), material.about()
  parts = {name: Folder(root / name) for name in SETTINGS}
  with results.opened(root, given, inputs, about) as folder:
    runs = []
    for name, model in SETTINGS.items():
      results.record(parts[name], [model, *given], inputs, about)
      material.write(parts[name])
      choice = options.settings(model, training, output.seed).choice
      for fold in range(folds.k):
        path = parts[name].at(f'fold_{fold}')
        runs.append(Run(path, fold, choice, output.seed))
    everything = range(len(runs))
    crossval.train_folds(
      material, runs, everything, settings, training, folder, attention=False
    )
    classes = material.cohort.classes
    finished = {
      name: summarise(part, 'kmil', data.task, folds.k, classes)
      for name, part in parts.items()
      if any(part.path.glob('fold_*/predictions.csv'))
    }
  if finished:
    show(of_settings(finished).terminal())
  show(f'results in {root}')
  progress.raise_if_diverged([run.folder for run in runs])
  if output.exp_code or data.task != 'origin' or folds.k == 1:
    return 'report', {'run': parts['all'].path}
  return 'paper', {'table': 4}


main = start.script(run)


if __name__ == '__main__':
  main()
