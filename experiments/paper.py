"""Prints a table or figure of Zheng et al. 2024 beside the paper's numbers.

  python -m experiments.paper --table=1        # on the phantom cohort
  python -m experiments.paper --figure=3 --csv_path=labels.csv \\
    --features_dir=features --external_csv=... --external_features_dir=...

The trainings run first, and repeat nothing that is done: each command is
printed before it runs, as one would type it. The table goes to standard output
and, as Markdown and CSV, to `<results_dir>/paper_s<seed>`, where figures go as
PNG; all else goes to standard error. Data and training flags are those of
`experiments.kmil`.
"""

import dataclasses
import sys
from typing import Any

import jax

from experiments.bags import options
from experiments.bags.options import External, Folds, Training
from experiments.evaluation.tables import Table
from experiments.papers import tables
from experiments.papers.runs import Runs
from experiments.papers.tables import MODELS
from experiments.run import start
from experiments.run.options import OptionError, field, fixed
from experiments.run.results import Folder
from experiments.run.start import Cache, Check, Output

_OF_MODELS = ('table_1', 'table_2', 'table_3', 'figure_2', 'figure_3')
_OF_SETTINGS = ('table_4', 'table_5')
_EXTERNAL = ('table_2', 'figure_3', 'figure_4')  # On a second cohort.


@dataclasses.dataclass(frozen=True)
class Data(options.Data):
  """Slides, their labels and features. Without any, a phantom cohort."""

  task: str = fixed('origin')  # It follows from the table or figure.


@dataclasses.dataclass(frozen=True)
class Shown:
  """What is shown."""

  table: int | None = field(None, 'Which table, 1 to 6.', least=1, most=6)
  figure: int | None = field(None, 'Which figure, 2 to 4.', least=2, most=4)
  models: tuple[str, ...] = field(
    tuple(MODELS),
    'Models of Tables 1 to 3 and Figures 2 and 3.',
    choices=tuple(MODELS),
  )

  @property
  def name(self) -> str:
    """The name of the table or figure, as of its files."""
    if (self.table is None) == (self.figure is None):
      raise OptionError('Give one of --table and --figure.')
    if self.figure:
      return f'figure_{self.figure}'
    return f'table_{self.table}'

  def in_order(self) -> list[str]:
    """Returns the models in the paper's order."""
    if self.models != tuple(MODELS) and self.name not in _OF_MODELS:
      raise OptionError('--models has no effect here: only KMIL is shown.')
    if self.figure and 'kmil' not in self.models:
      raise OptionError('--models lacks kmil, which this figure shows.')
    return [model for model in MODELS if model in self.models]


def run(
  shown: Shown,
  data: Data,
  external: External,
  folds: Folds,
  training: Training,
  check: Check,
  output: Output,
  cache: Cache,
) -> start.Next:
  """Prints one table or figure."""
  name, models = shown.name, shown.in_order()
  if folds.k == 1:
    raise OptionError('--k=1 tests nothing. Give 3 folds or more.')
  if name in _EXTERNAL and not external.external_csv:
    if data.csv_path:
      raise OptionError(
        f'{name.replace("_", " ")} needs a second cohort. Give --external_csv'
        ' and --external_features_dir.'
      )
    external = dataclasses.replace(external, external_phantom=True)
  if name in _OF_SETTINGS:  # Ablations keep no attention to draw.
    data = dataclasses.replace(data, slides_dir=None)
  runs = Runs(data, external, folds, training, output, cache)
  path, _ = runs.folder('paper')
  if name == 'table_3':
    _write(Folder(path), tables.cost(models))
    return 'paper', {'table': 1}
  # This process only reads: the device is for the commands it starts.
  jax.config.update('jax_platforms', 'cpu')
  if name in _OF_SETTINGS:
    jobs = runs.of_settings()
  else:
    jobs = runs.of_models(models) if name in _OF_MODELS else runs.of_tasks()
  if check.check:
    runs.check(jobs)
  results = runs.run(jobs)
  make = tables.of_settings if name in _OF_SETTINGS else tables.of_runs
  table, drawing = make(name, results), None
  here = 'here: phantom cohort (rendered slides, no patients)'
  if data.csv_path:
    here = f'here: {data.csv_path.name}'
  # It imports matplotlib, which takes half a second.
  from experiments.papers import figures

  match shown.figure:
    case 2:
      by_class = tables.of_runs('table_1', {'kmil': results['kmil']})
      drawing = figures.of_models(table, by_class, here)
    case 3:
      drawing = figures.of_cohorts(table, results['kmil'], here)
    case 4:
      drawing = figures.of_tasks(table, results, here)
  notes = [*table.notes, runs.about(results)]
  _write(Folder(path), dataclasses.replace(table, notes=notes), drawing)
  return 'report', {'run': jobs[0].folder}


def _write(folder: Folder, table: Table, drawing: Any = None) -> None:
  """Writes the files of a table, or of a figure and its numbers; prints it."""
  text = table.markdown()
  folder.write(f'{table.name}.md', text)
  folder.write(f'{table.name}.csv', table.csv())
  if drawing:
    folder.write(f'{table.name}.png', drawing)
  print(text, end='')
  print(f'wrote {table.name} to {folder.path}', file=sys.stderr)


main = start.script(run)


if __name__ == '__main__':
  main()
