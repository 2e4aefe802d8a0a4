"""Cross-validates KMIL, or a baseline, on slides.

  python -m experiments.kmil --fold=3        # one fold on the phantom cohort
  python -m experiments.kmil --csv_path=labels.csv --features_dir=features

Without data flags, the phantom cohort is rendered and encoded once. Folds that
are done are not trained again; a run that was killed goes on when the same
command is given. All folds train as one program, and one fold gives what it
gives among the ten.
"""

import itertools
import resource
import sys

from experiments.bags import crossval, options, preflight
from experiments.bags.crossval import Run
from experiments.bags.options import (
  Data,
  External,
  Folds,
  Model,
  Requested,
  Training,
)
from experiments.run import progress, results, start
from experiments.run.start import Check, Machine, Output, show
from kmil_jax import parallel


def run(
  model: Model,
  data: Data,
  external: External,
  folds: Folds,
  requested: Requested,
  training: Training,
  check: Check,
  output: Output,
  machine: Machine,
) -> start.Next | None:
  """Trains the folds, tests the models, writes tables, pictures and report."""
  asked, training = training, training.resolved(model.model)
  settings = options.settings(model, training, output.seed)
  numbers = requested.folds(folds.k)
  given = [
    *(model, data, external, folds, requested, training),
    *(check, output, machine),
  ]
  planned = [*itertools.product(range(requested.seeds), numbers)]
  path = output.folder(f'{model.model}_{data.task}')
  shown = [asked if one is training else one for one in given]
  material = preflight.begin(path, shown, settings, training.store, planned)
  cohort, splits, second = material.cohort, material.splits, material.second
  for line in preflight.describe(cohort):
    show(line)
  for line in preflight.describe_folds(cohort, splits):
    show(line)

  inputs, about = material.inputs(), material.about()
  with results.opened(path, given, inputs, about) as folder:
    parts = crossval.folders_of_seeds(folder, output.seed, requested.seeds)
    for part in parts.values():
      if part is not folder:
        results.record(part, given, inputs, about)
        material.write(part)
      if second:
        crossval.check_second(part, second)
    material.write(folder)
    runs = [
      Run(part.at(f'fold_{fold}'), fold, settings.choice, seed)
      for seed, part in parts.items()
      for fold in range(folds.k)
    ]
    places = [folds.k * i + fold for i, fold in planned]
    crossval.train_folds(
      material, runs, places, settings, training, folder, attention=True
    )
    for part in parts.values() if second else ():
      crossval.test_second(part, numbers, second, settings, training.store)
    faults, drawn = [], parts[output.seed]
    if parallel.is_first():
      for fold in numbers:
        limit = requested.heat_maps
        faults += crossval.draw_heat_maps(drawn, fold, material, limit=limit)
    crossval.conclude(folder, model.model, data.task, material, parts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    show(
      f'results in {path}, on one page in {path}/report.html; peak memory'
      f' {peak:.1f} GiB'
    )
    parallel.wait_for_all('end')
  progress.raise_if_diverged([runs[place].folder for place in places])
  if faults:
    sys.exit('error: slides without a heat map:\n' + '\n'.join(faults))
  return start.Source(drawn.path).next() if parallel.is_first() else None


main = start.script(run)


if __name__ == '__main__':
  main()
