"""Prints a table or figure of Zheng et al. 2024 beside the paper's numbers.

  python -m experiments.paper --table=1        # on the phantom cohort
  python -m experiments.paper --figure=3 --csv_path=labels.csv \\
    --features_dir=features --external_csv=... --external_features_dir=...

What is missing is run first: each command is printed before it runs, as one
would type it. The table goes to standard output and, as Markdown and CSV, to
`<results_dir>/paper_s<seed>`, where figures go as PNG; all else goes to
standard error. Data and training flags are those of `experiments.kmil`.
"""

from collections.abc import Callable
import dataclasses
import pathlib
import sys

import jax
from matplotlib import figure

from experiments import (
  files,
  paper_cost,
  paper_figure_tables,
  paper_figures,
  paper_numbers,
  paper_runs,
  paper_tables,
)
from experiments.bags import cohort as cohorts
from experiments.bags.options import Data, External, Folds, Training
from experiments.paper_runs import Job, Runs
from experiments.paper_text import Table
from experiments.run import start
from experiments.run.check import Check
from experiments.run.options import OptionError, field
from experiments.run.start import Cache, Output

_MODELS = tuple(paper_numbers.MODELS)
# What is about the five models, and what reads a second cohort.
_OF_MODELS = ('table_1', 'table_2', 'table_3', 'figure_2', 'figure_3')
_OF_TASKS = ('table_6', 'figure_4')
_EXTERNAL = ('table_2', 'figure_3', 'figure_4')


@dataclasses.dataclass(frozen=True)
class Shown:
  """What is shown."""

  table: int | None = field(None, 'Which table, 1 to 6.', least=1, most=6)
  figure: int | None = field(None, 'Which figure, 2 to 4.', least=2, most=4)
  models: tuple[str, ...] = field(
    _MODELS, 'Models of Tables 1 to 3 and Figures 2 and 3.'
  )

  @property
  def name(self) -> str:
    """The name of the table or figure, as of its files."""
    if (self.table is None) == (self.figure is None):
      raise OptionError('give one of --table and --figure')
    if self.table is None:
      return f'figure_{self.figure}'
    return f'table_{self.table}'

  def checked(self) -> list[str]:
    """Returns the models in the paper's order."""
    if self.models != _MODELS and self.name not in _OF_MODELS:
      raise OptionError('--models has no effect here: only KMIL is shown.')
    if not self.models:
      raise OptionError(f'--models: name some of {", ".join(_MODELS)}')
    for model in self.models:
      if model not in _MODELS:
        known = ', '.join(_MODELS)
        raise OptionError(f'--models: {model!r} is none of {known}')
    if self.name in ('figure_2', 'figure_3') and 'kmil' not in self.models:
      raise OptionError('--models: this figure shows KMIL, name kmil too')
    return [model for model in _MODELS if model in self.models]


def run(
  shown: Shown,
  data: Data,
  external: External,
  folds: Folds,
  training: Training,
  check: Check,
  output: Output,
  cache: Cache,
) -> None:
  """Prints one table or figure."""
  name, models = shown.name, shown.checked()
  if data.task != 'origin':
    raise OptionError('--task: the table or figure says which; leave it out')
  if name in _EXTERNAL:
    external = _second_cohort(name, data, external)
  runs = Runs(data, external, folds, training, output, cache)
  if name == 'table_3':
    table, drawing, about = paper_cost.table(models), None, paper_cost.data()
  else:
    # This process only reads: the device is for the commands it starts.
    jax.config.update('jax_platforms', 'cpu')
    jobs = _jobs(name, models, runs)
    if check.check:
      sys.exit(runs.check(jobs.values()))
    runs.complete(jobs.values())
    table, drawing = _made(name, jobs, _here(data))
    about = _data(name, jobs, runs)
  folder = runs.output_dir('paper')
  text = f'{table.markdown()}\n- {about}\n'
  files.write_text(folder / f'{name}.md', text)
  files.write_csv(folder / f'{name}.csv', table.rows())
  written = [f'{name}.md', f'{name}.csv']
  if drawing:
    written.append(f'{name}.png')
    drawing.savefig(folder / written[-1], dpi=150)
  print(text, end='')
  print(f'wrote {", ".join(written)} to {folder}', file=sys.stderr)


def _second_cohort(name: str, data: Data, external: External) -> External:
  """Returns the second cohort, of the phantom where the first is."""
  if not data.csv_path and not external.external_csv:
    return dataclasses.replace(external, external_phantom=True)
  if not external.external_csv:
    raise OptionError(
      f'{name.replace("_", " ")} needs a second cohort: give --external_csv and'
      ' --external_features_dir'
    )
  return external


def _jobs(name: str, models: list[str], runs: Runs) -> dict[str, Job]:
  """Returns what must be done first, by model or task."""
  external = name in _EXTERNAL
  if name in _OF_TASKS:
    return {t: runs.cross_validation('kmil', t, external) for t in 'abc'}
  if name in _OF_MODELS:
    return {m: runs.cross_validation(m, 'origin', external) for m in models}
  return {'kmil': runs.ablations()}


def _made(
  name: str, jobs: dict[str, Job], here: str
) -> tuple[Table, figure.Figure | None]:
  """Returns the table, and the figure where one is asked for."""
  if name in ('table_4', 'table_5'):
    settings = {
      folder.name: paper_runs.summary(folder) for folder in jobs['kmil'].folders
    }
    folders = list(jobs['kmil'].folders)
    return paper_tables.ablation(int(name[-1]), settings, folders), None
  found = {key: paper_runs.summary(job.folder) for key, job in jobs.items()}
  tables: dict[str, Callable[[dict], Table]] = {
    'table_1': paper_tables.recall_and_precision,
    'table_2': paper_tables.external,
    'table_6': paper_tables.tasks,
    'figure_2': paper_figure_tables.of_models,
    'figure_3': paper_figure_tables.of_models_on_both,
    'figure_4': paper_figure_tables.of_tasks_on_both,
  }
  table = tables[name](found)
  classes = {key: summary['classes'] for key, summary in found.items()}
  if name == 'figure_2':
    by_class = paper_tables.recall_and_precision({'kmil': found['kmil']})
    return table, paper_figures.of_models(table, by_class, here)
  if name == 'figure_3':
    parts = paper_runs.both_cohorts(jobs['kmil'].folder, classes['kmil'])
    drawing = paper_figures.generalization(table, parts, classes['kmil'], here)
    return table, drawing
  if name == 'figure_4':
    parts = {
      task: paper_runs.both_cohorts(job.folder, classes[task])
      for task, job in jobs.items()
    }
    return table, paper_figures.of_tasks(table, parts, classes, here)
  return table, None


def _here(data: Data) -> str:
  """Says above a legend which data the values are of."""
  if data.csv_path:
    return f'here: {pathlib.Path(data.csv_path).name}'
  return 'here: phantom cohort (rendered slides, no patients)'


def _data(name: str, jobs: dict[str, Job], runs: Runs) -> str:
  """Says on which data a table was made."""
  counts = {}
  for key, job in jobs.items():
    summary = paper_runs.summary(job.folder)
    test = paper_runs.test_parts(job.folder, summary['classes'])
    told = f'{len(test)} slides of {len(set(test.case))} cases'
    if name in _EXTERNAL:
      second = summary['external']
      told += (
        f' (external: {second["slides"]} slides of {second["cases"]} cases)'
      )
    counts[key] = told
  if name in _OF_TASKS:
    told = '; '.join(f'task {t.upper()}: {told}' for t, told in counts.items())
  else:
    told = ', or '.join(dict.fromkeys(counts.values()))
  data, external = runs.data, runs.external
  places = ('csv_path', 'features_dir', 'results_dir', 'cache_dir', 'external')
  changed = [flag for flag in runs.given() if not flag[2:].startswith(places)]
  told += f'; trained with {" ".join(changed)}' if changed else ''
  second = external.external_csv if name in _EXTERNAL else None
  also = f' and {second}' if second else ''
  if data.csv_path:
    return f'Data: {data.csv_path}{also}, {told}.'
  return (
    f'Data: the phantom cohort{also}, {told}. Phantom slides are rendered: they'
    ' say nothing about the accuracy of these models on patients.'
  )


main = start.script(run, cohorts.ERRORS)


if __name__ == '__main__':
  main()
