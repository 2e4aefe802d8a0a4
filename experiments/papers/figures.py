"""Figures 2 to 4 of Zheng et al. 2024, drawn from the tables beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import axes, figure, lines, patches, patheffects
import numpy as np
from sklearn.metrics import roc_curve

from experiments.evaluation.comparison import Run
from experiments.evaluation.predictions import Predictions
from experiments.evaluation.tables import INTERVAL, MEAN, Row, Table
from experiments.papers.tables import WHOLE

# Told apart by the colour-blind (Okabe and Ito 2008).
_COLORS = {
  'ABMIL': '#56B4E9',
  'TransMIL': '#E69F00',
  'DTFD': '#009E73',
  'DSMIL': '#CC79A7',
  'KMIL': '#0072B2',
  'internal': '#0072B2',
  'external': '#E69F00',
}
_STYLES = {'internal': '-', 'external': '--'}  # of curves, by cohort
_HALO = [patheffects.withStroke(linewidth=3, foreground='white')]
_FIRST, _LAST = 0.12, 0.88  # Of the width of a group, where its bars stand.
_MOST_LETTERS = 50  # Below a panel, side by side.

# What is drawn of a value: it, its interval, the mean of folds, the paper's.
_Marks = Sequence[tuple[Any, tuple[Any, Any], Any, Any]]


def of_models(table: Table, by_class: Table, here: str) -> figure.Figure:
  """Draws Figure 2: the models, and recall and precision of KMIL.

  Args:
    table: `tables.of_runs` of Figure 2.
    by_class: that of Table 1, with KMIL.
    here: which data the values are of.
  """
  drawing = figure.Figure((11, 8.6), layout='constrained')
  panels = drawing.subplot_mosaic('AA\nBC')
  names = [row.labels[0] for row in table.rows]
  series = {row.labels[0]: _marks(table, row) for row in table.rows}
  _bars(panels['A'], list(table.columns), series)
  panels['A'].set_title('A  test parts of all folds pooled', loc='left')
  (kmil,) = (row for row in by_class.rows if row.labels == ('KMIL',))
  marks = _marks(by_class, kmil)
  classes = [column.partition(': ')[2] for column in by_class.columns]
  half = len(classes) // 2
  for panel, kind, part in (
    ('B', 'recall (%)', slice(half)),
    ('C', 'precision (%)', slice(half, None)),
  ):
    _bars(panels[panel], classes[part], {'KMIL': marks[part]}, top=100)
    panels[panel].set_title(f'{panel}  {kind} of KMIL', loc='left')
  _legend(drawing, names, table, here)
  return drawing


def of_cohorts(table: Table, kmil: Run, here: str) -> figure.Figure:
  """Draws Figure 3: KMIL on both cohorts, and the other models below.

  Args:
    table: `tables.of_runs` of Figure 3.
    kmil: its results.
    here: which data the values are of.
  """
  drawing = figure.Figure((11, 9.2), layout='constrained')
  top, bottom = drawing.subfigures(2, height_ratios=(5, 4))
  left, right = top.subplots(1, 2, width_ratios=(6, 5))
  columns, marks = list(table.columns), _by_cohort(table)
  of_kmil = {cohort: of['KMIL'] for cohort, of in marks.items()}
  _bars(left, columns, of_kmil)
  left.set_title('A  KMIL', loc='left')
  _curves(right, of_kmil, kmil)
  right.set_title('B  ROC of KMIL', loc='left')
  for i, ax in enumerate(bottom.subplots(1, len(columns))):
    series = {
      cohort: [of_model[i] for of_model in of.values()]
      for cohort, of in marks.items()
    }
    _bars(ax, list(marks['internal']), series)
    ax.set_title(f'{"C  " * (not i)}{columns[i]}', loc='left')
  _legend(drawing, marks, table, here)
  return drawing


def of_tasks(table: Table, runs: Mapping[str, Run], here: str) -> figure.Figure:
  """Draws Figure 4: both cohorts by task, metrics (A, C, E), ROC (B, D, F).

  Args:
    table: `tables.of_runs` of Figure 4.
    runs: KMIL's results by task.
    here: which data the values are of.
  """
  drawing = figure.Figure((10, 13), layout='constrained')
  rows = drawing.subplots(len(runs), 2, width_ratios=(6, 5), squeeze=False)
  letters, marks = iter('ABCDEF'), _by_cohort(table)
  for (left, right), (task, run) in zip(rows, runs.items(), strict=True):
    shown = {cohort: of[task.upper()] for cohort, of in marks.items()}
    names = list(table.columns)
    if len(run.classes) == 2:
      names[-1] += '\n(paper: balanced ACC)'
    _bars(left, names, shown)
    title = f'task {task.upper()}: {", ".join(run.classes)}'
    left.set_title(f'{next(letters)}  {title}', loc='left')
    _curves(right, shown, run)
    right.set_title(f'{next(letters)}  ROC, task {task.upper()}', loc='left')
  _legend(drawing, marks, table, here)
  return drawing


def mean_roc(p: Predictions) -> tuple[np.ndarray, np.ndarray]:
  """Returns the curve whose area is the summary AUROC of the tables.

  Of two classes that of the second; of more, the mean over classes of the
  sensitivities at equal specificity.

  Returns:
    False and true positive rates, [K] each; NaN if a class has no slides or
    all of them.
  """
  count = p.prob.shape[1]
  curves = []
  for c in range(count) if count > 2 else [1]:
    positive = p.label == c
    if positive.all() or not positive.any():
      return np.full(2, np.nan), np.full(2, np.nan)
    curve = roc_curve(positive, p.prob[:, c], drop_intermediate=False)
    curves.append(curve[:2])
  # A curve may jump: each place is seen from the left and from the right.
  places = np.unique(np.concatenate([x for x, _ in curves]))
  sides = [
    np.mean([np.interp(np.nextafter(places, to), *c) for c in curves], axis=0)
    for to in (-np.inf, np.inf)
  ]
  return np.repeat(places, 2), np.stack(sides, axis=1).ravel()


def _marks(table: Table, row: Row) -> _Marks:
  """Returns what is drawn of a row, by column."""
  (whole,) = (row.lines[n] for _, n in WHOLE.values() if n in row.lines)
  values = table.published.values.get(tuple(row.labels), {})
  paper = [values.get(column) for column in table.columns]
  return list(
    zip(whole, row.lines[INTERVAL], row.lines[MEAN], paper, strict=True)
  )


def _by_cohort(table: Table) -> dict[str, dict[str, _Marks]]:
  """Returns the marks by cohort, and by model or task."""
  marks = {cohort: {} for cohort in WHOLE}
  for row in table.rows:
    name, cohort = row.labels
    marks[cohort][name] = _marks(table, row)
  return marks


def _bars(
  ax: axes.Axes,
  groups: Sequence[str],
  series: Mapping[str, _Marks],
  top: float = 1,
) -> None:
  """Draws values as bars with their intervals, means as diamonds.

  Args:
    ax: where to.
    groups: names of the values.
    series: what stands side by side in a group, by its name.
    top: the highest value there can be.
  """
  width = (_LAST - _FIRST) / len(series)
  for i, (name, marks) in enumerate(series.items()):
    for group, (value, interval, mean, paper) in enumerate(marks):
      x = group + _FIRST + (i + 0.5) * width
      if value is None:
        ax.text(x, 0.01 * top, 'n/a', ha='center', fontsize=8)
      else:
        ax.bar(x, value, 0.94 * width, color=_COLORS[name])
      if None not in interval:
        style = {'color': 'black', 'lw': 1.3, 'ms': 7, 'clip_on': False}
        place = [x - width / 5] * 2
        ax.plot(place, interval, '-_', path_effects=_HALO, **style)
      for diamond, color in ((mean, 'black'), (paper, 'white')):
        if diamond is not None:
          style = {'mfc': color, 'mec': 'black', 'ms': 6.5, 'zorder': 3}
          ax.plot(x + width / 5, diamond, 'D', clip_on=False, **style)
  ax.set(ylim=(0, 1.02 * top), xlim=(0, len(groups)))
  long = sum(map(len, groups)) > _MOST_LETTERS
  turned = {'rotation': 25, 'ha': 'right'} if long else {}
  ax.set_xticks(np.arange(len(groups)) + 0.5, groups, **turned)
  ax.tick_params(axis='x', length=0)
  ax.grid(axis='y', color='0.9')
  ax.set_axisbelow(True)
  ax.spines[['top', 'right']].set_visible(False)


def _curves(ax: axes.Axes, marks: Mapping[str, _Marks], run: Run) -> None:
  """Draws the ROC of both cohorts, the AUROC in the legend."""
  ax.plot([0, 1], [0, 1], ':', color='grey', lw=1)
  parts = {'internal': run.test(), 'external': run.external()}
  for cohort, p in parts.items():
    value, interval, _, _ = marks[cohort][-1]
    label = f'{cohort}, {len(p)} slides: AUROC n/a'
    if value is not None:
      label = label.replace('n/a', f'{value:.3f}')
    if None not in interval:
      label += ' [{:.3f}, {:.3f}]'.format(*interval)
    style = {'ls': _STYLES[cohort], 'color': _COLORS[cohort], 'lw': 2}
    ax.plot(*mean_roc(p), label=label, clip_on=False, **style)
  of = f' for {run.classes[1]}'
  if len(run.classes) > 2:
    of = ', mean of the classes'
  ax.set(xlim=(0, 1), ylim=(0, 1), aspect='equal')
  ax.set(xlabel='1 - specificity', ylabel=f'sensitivity{of}')
  ax.grid(color='0.92')
  ax.legend(loc='lower right', fontsize=8.5)


def _legend(
  drawing: figure.Figure, names: Sequence[str], table: Table, here: str
) -> None:
  black = {'color': 'black', 'lw': 0, 'ms': 7}
  source, *_ = table.published.source.partition(',')
  handles = [
    *(patches.Patch(color=_COLORS[name], label=name) for name in names),
    lines.Line2D([], [], marker='|', label='95 % interval', **black),
    lines.Line2D([], [], marker='D', label='mean of the folds', **black),
    lines.Line2D(
      [], [], marker='D', mfc='white', label=f'{source} (patients)', **black
    ),
  ]
  drawing.legend(
    handles=handles,
    loc='outside lower center',
    ncols=len(names) + 3,
    fontsize=9,
    title=here,
  )
