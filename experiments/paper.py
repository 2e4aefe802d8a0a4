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
import pathlib
import sys

from absl import app, flags
import jax
from matplotlib import figure

from experiments import (
  common,
  files,
  paper_cost,
  paper_figure_tables,
  paper_figures,
  paper_numbers,
  paper_runs,
  paper_tables,
  settings as setting_flags,
  start,
)
from experiments.paper_text import Table

_TABLE = flags.DEFINE_integer('table', None, 'Which table, 1 to 6.', 1, 6)
_FIGURE = flags.DEFINE_integer('figure', None, 'Which figure, 2 to 4.', 2, 4)
_MODELS = flags.DEFINE_list(
  'models',
  list(paper_numbers.MODELS),
  'Those of Tables 1 to 3 and Figures 2 and 3.',
)
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(setting_flags)

# What is about the five models, and what reads a second cohort.
_OF_MODELS = ('table_1', 'table_2', 'table_3', 'figure_2', 'figure_3')
_OF_TASKS = ('table_6', 'figure_4')
_EXTERNAL = ('table_2', 'figure_3', 'figure_4')


def _run() -> None:
  name = _asked()
  models = _models(name)
  if name in _EXTERNAL:
    _ask_for_second_cohort(name)
  if name == 'table_3':
    table, drawing, data = paper_cost.table(models), None, paper_cost.data()
  else:
    # This process only reads: the device is for the commands it starts.
    jax.config.update('jax_platforms', 'cpu')
    jobs = _jobs(name, models)
    if common.CHECK.value:
      sys.exit(paper_runs.check(jobs.values(), _given()))
    paper_runs.complete(jobs.values(), start.resolved(__name__), _given())
    table, drawing = _made(name, jobs)
    data = _data(name, jobs)
  folder = paper_runs.output_dir('paper')
  text = f'{table.markdown()}\n- {data}\n'
  files.write_text(folder / f'{name}.md', text)
  files.write_csv(folder / f'{name}.csv', table.rows())
  written = [f'{name}.md', f'{name}.csv']
  if drawing:
    written.append(f'{name}.png')
    drawing.savefig(folder / written[-1], dpi=150)
  print(text, end='')
  print(f'wrote {", ".join(written)} to {folder}', file=sys.stderr)


def _asked() -> str:
  """Returns the name of the table or figure, as of its files."""
  if (_TABLE.value is None) == (_FIGURE.value is None):
    raise app.UsageError('give one of --table and --figure')
  if common.TASK.present:
    raise app.UsageError('--task: the table or figure says which; leave it out')
  if _TABLE.value is None:
    return f'figure_{_FIGURE.value}'
  return f'table_{_TABLE.value}'


def _models(name: str) -> list[str]:
  known, models = list(paper_numbers.MODELS), _MODELS.value
  if _MODELS.present and name not in _OF_MODELS:
    raise app.UsageError('--models says nothing here: it is KMIL alone')
  if not models:
    raise app.UsageError(f'--models: name some of {", ".join(known)}')
  for model in models:
    if model not in known:
      raise app.UsageError(f'--models: {model!r} is none of {", ".join(known)}')
  if name in ('figure_2', 'figure_3') and 'kmil' not in models:
    raise app.UsageError('--models: this figure shows KMIL, name kmil too')
  return [model for model in known if model in models]


def _ask_for_second_cohort(name: str) -> None:
  """Takes the phantom's where the data are the phantom."""
  given = {
    flag.name: flag.value
    for flag in (common.EXTERNAL_CSV, common.EXTERNAL_FEATURES_DIR)
  }
  if not common.CSV_PATH.value and not any(given.values()):
    flags.FLAGS['external_phantom'].value = True
  elif missing := [f'--{flag}' for flag, value in given.items() if not value]:
    raise app.UsageError(
      f'{name.replace("_", " ")} needs a second cohort: give'
      f' {" and ".join(missing)}'
    )


def _jobs(name: str, models: list[str]) -> dict[str, paper_runs.Job]:
  """Returns what must be done first, by model or task."""
  external = name in _EXTERNAL
  if name in _OF_TASKS:
    return {t: paper_runs.cross_validation('kmil', t, external) for t in 'abc'}
  if name in _OF_MODELS:
    return {
      m: paper_runs.cross_validation(m, 'origin', external) for m in models
    }
  return {'kmil': paper_runs.ablations()}


def _given() -> list[str]:
  """Returns the flags that the commands get from this one."""
  own = (common.TASK.name, start.EXP_CODE.name)
  held = [
    flag
    for module in (common, setting_flags)
    for flag in flags.FLAGS.get_key_flags_for_module(module)
  ]
  found = [f.serialize() for f in held if f.present and f.name not in own]
  phantom = flags.FLAGS['external_phantom']
  if phantom.value and not phantom.present:
    found.append('--external_phantom')
  return found


def _made(
  name: str, jobs: dict[str, paper_runs.Job]
) -> tuple[Table, figure.Figure | None]:
  """Returns the table, and the figure where one is asked for."""
  if name in ('table_4', 'table_5'):
    settings = {
      folder.name: paper_runs.summary(folder) for folder in jobs['kmil'].folders
    }
    return paper_tables.ablation(_TABLE.value, settings), None
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
  here = _here()
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


def _here() -> str:
  """Says above a legend which data the values are of."""
  if common.CSV_PATH.value:
    return f'here: {pathlib.Path(common.CSV_PATH.value).name}'
  return 'here: phantom cohort (rendered slides, no patients)'


def _data(name: str, jobs: dict[str, paper_runs.Job]) -> str:
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
  changed = [
    flag.serialize()
    for flag in flags.FLAGS.get_key_flags_for_module(setting_flags)
    + [
      flags.FLAGS[f.name]
      for f in (common.K, start.SEED, common.LABELS, common.SHUFFLE_LABELS)
    ]
    if flag.present
  ]
  told += f'; trained with {" ".join(changed)}' if changed else ''
  second = common.EXTERNAL_CSV.value if name in _EXTERNAL else None
  also = f' and {second}' if second else ''
  if common.CSV_PATH.value:
    return f'Data: {common.CSV_PATH.value}{also}, {told}.'
  return (
    f'Data: the phantom cohort{also}, {told}. Phantom slides are rendered: they'
    ' say nothing about the accuracy of these models on patients.'
  )


def main(argv: list[str]) -> None:
  """Prints one table or figure."""
  if start.COORDINATOR.value:
    sys.exit(
      'error: --coordinator: run experiments.kmil on the pod first, and this on'
      ' one host'
    )
  start.script(_run, common.ERRORS)(argv)


if __name__ == '__main__':
  app.run(main)
