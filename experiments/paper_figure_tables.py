"""The numbers behind Figures 2 to 4 of Zheng et al. 2024, as tables."""

from collections.abc import Mapping, Sequence

from experiments import paper_numbers as paper
from experiments.paper_tables import BINARY, BOOTSTRAP, METRICS, metric_lines
from experiments.paper_text import Entry, Table


def of_models(summaries: Mapping[str, dict]) -> Table:
  """Returns what Figure 2A shows: the models in ten folds."""
  entries = []
  for model, summary in summaries.items():
    lines = metric_lines(summary['metrics'], 'pooled')
    known = paper.INTERNAL.get(model, {})
    lines['paper'] = [known.get(name) for name in METRICS]
    entries.append(Entry((paper.MODELS[model],), lines))
  return Table(
    'figure_2',
    'Figure 2A. The models on the test parts of all folds pooled',
    ('model',),
    tuple(METRICS.values()),
    tuple(entries),
    (4,) * len(METRICS),
    (
      "B and C show KMIL's recall and precision, those of Table 1. The paper"
      ' prints no numbers of the other models for A.',
      BOOTSTRAP,
    ),
  )


def of_models_on_both(summaries: Mapping[str, dict]) -> Table:
  """Returns what Figure 3 shows: the models on both cohorts."""
  return _on_both(
    'figure_3',
    'Figure 3. The models on both cohorts',
    'model',
    {
      (model, paper.MODELS[model]): summary
      for model, summary in summaries.items()
    },
    {'internal': paper.INTERNAL, 'external': paper.TABLE_2},
    [],
  )


def of_tasks_on_both(summaries: Mapping[str, dict]) -> Table:
  """Returns what Figure 4 shows: KMIL by task on both cohorts."""
  return _on_both(
    'figure_4',
    'Figure 4. KMIL by task on both cohorts',
    'task',
    {(task, task.upper()): summary for task, summary in summaries.items()},
    {'internal': paper.TABLE_6, 'external': {}},
    [BINARY],
  )


def _on_both(
  name: str,
  title: str,
  first: str,
  summaries: Mapping[tuple[str, str], dict],
  published: Mapping[str, Mapping[str, Mapping]],
  notes: Sequence[str],
) -> Table:
  """A table of two cohorts.

  Args:
    name: of its files.
    title: above it.
    first: what the keys of `summaries` are.
    summaries: by model or task, and how it is shown.
    published: the paper's metrics by cohort and model or task.
    notes: what else to say.
  """
  entries = []
  for (key, shown), summary in summaries.items():
    for cohort_name, part, whole in (
      ('internal', summary, 'pooled'),
      ('external', summary['external'], 'ensemble'),
    ):
      lines = metric_lines(part['metrics'], whole)
      known = published[cohort_name].get(key, {})
      lines['paper'] = [known.get(metric) for metric in METRICS]
      entries.append(Entry((shown, cohort_name), lines))
  return Table(
    name,
    title,
    (first, 'cohort'),
    tuple(METRICS.values()),
    tuple(entries),
    (4,) * len(METRICS),
    (
      'Internal: test parts of all folds pooled. External: mean probability of'
      " the folds' models. What the paper draws without printing a number is"
      ' n/a.',
      *notes,
      BOOTSTRAP,
    ),
  )
