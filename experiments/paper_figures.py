"""Figures 2 to 4 of Zheng et al. 2024, drawn from the tables beside them."""

from collections.abc import Mapping, Sequence

from matplotlib import axes, figure, lines, patches, patheffects
import numpy as np
from sklearn.metrics import roc_curve

from experiments import paper_numbers
from experiments.evaluation.predictions import Predictions
from experiments.paper_text import Entry, Table

# Told apart by the colour-blind (Okabe and Ito 2008).
_MODEL_COLORS = {
  'ABMIL': '#56B4E9',
  'TransMIL': '#E69F00',
  'DTFD': '#009E73',
  'DSMIL': '#CC79A7',
  'KMIL': '#0072B2',
}
_COHORT_COLORS = {'internal': '#0072B2', 'external': '#E69F00'}
_PUBLISHED = f'{paper_numbers.SOURCE} (patients)'
_HALO = [patheffects.withStroke(linewidth=3, foreground='white')]
_FIRST, _LAST = 0.12, 0.88  # Of the width of a group, where its bars stand.
_MOST_LETTERS = 50  # Below a panel, side by side.


def of_models(table: Table, by_class: Table, here: str) -> figure.Figure:
  """Draws Figure 2: the models, and recall and precision of KMIL.

  Args:
    table: `paper_figure_tables.of_models`.
    by_class: `paper_tables.recall_and_precision` with KMIL.
    here: which data the values are of.
  """
  drawing = figure.Figure((11, 8.6), layout='constrained')
  panels = drawing.subplot_mosaic('AA\nBC')
  series = [(_MODEL_COLORS[e.labels[0]], e.lines) for e in table.entries]
  _bars(panels['A'], table.columns, series)
  panels['A'].set_title('A  test parts of all folds pooled', loc='left')
  handles = [
    patches.Patch(color=_MODEL_COLORS[e.labels[0]], label=e.labels[0])
    for e in table.entries
  ]
  kmil = _entry(by_class, 'KMIL')
  names = [c.partition(': ')[2] for c in by_class.columns]
  half = len(names) // 2
  for panel, kind, part in (
    ('B', 'recall', slice(half)),
    ('C', 'precision', slice(half, None)),
  ):
    lines_of_part = {
      name: [_share(value) for value in values[part]]
      for name, values in kmil.lines.items()
    }
    _bars(panels[panel], names[part], [(_MODEL_COLORS['KMIL'], lines_of_part)])
    panels[panel].set_title(f'{panel}  {kind} of KMIL', loc='left')
  _legend(drawing, handles, here)
  return drawing


def generalization(
  table: Table,
  parts: Mapping[str, Predictions],
  classes: Sequence[str],
  here: str,
) -> figure.Figure:
  """Draws Figure 3: KMIL on both cohorts, and the other models below.

  Args:
    table: `paper_figure_tables.of_models_on_both`.
    parts: KMIL's predictions by cohort.
    classes: names.
    here: which data the values are of.
  """
  drawing = figure.Figure((11, 9.2), layout='constrained')
  top, bottom = drawing.subfigures(2, height_ratios=(5, 4))
  left, right = top.subplots(1, 2, width_ratios=(6, 5))
  cohorts = {c: _entry(table, 'KMIL', c) for c in _COHORT_COLORS}
  series = [(_COHORT_COLORS[c], e.lines) for c, e in cohorts.items()]
  _bars(left, table.columns, series)
  left.set_title('A  KMIL', loc='left')
  _curves(right, cohorts, parts, classes)
  right.set_title('B  ROC of KMIL', loc='left')
  names = list(dict.fromkeys(e.labels[0] for e in table.entries))
  for column, ax in enumerate(bottom.subplots(1, len(table.columns))):
    series = []
    for cohort, color in _COHORT_COLORS.items():
      entries = [_entry(table, name, cohort).lines for name in names]
      joined = {
        line: [lines[line][column] for lines in entries] for line in entries[0]
      }
      series.append((color, joined))
    _bars(ax, names, series)
    ax.set_title(f'{"C  " * (not column)}{table.columns[column]}', loc='left')
  _legend(drawing, _cohort_handles(), here)
  return drawing


def of_tasks(
  table: Table,
  parts: Mapping[str, Mapping[str, Predictions]],
  classes: Mapping[str, Sequence[str]],
  here: str,
) -> figure.Figure:
  """Draws Figure 4: both cohorts by task, metrics (A, C, E), ROC (B, D, F).

  Args:
    table: `paper_figure_tables.of_tasks_on_both`.
    parts: predictions by task and cohort.
    classes: names by task.
    here: which data the values are of.
  """
  drawing = figure.Figure((10, 13), layout='constrained')
  rows = drawing.subplots(len(parts), 2, width_ratios=(6, 5), squeeze=False)
  letters = iter('ABCDEF')
  for (left, right), task in zip(rows, parts, strict=True):
    cohorts = {c: _entry(table, task.upper(), c) for c in _COHORT_COLORS}
    series = [(_COHORT_COLORS[c], e.lines) for c, e in cohorts.items()]
    names = list(table.columns)
    if len(classes[task]) == 2:
      names[-1] += '\n(diamond: balanced ACC)'
    _bars(left, names, series)
    told = ', '.join(classes[task])
    left.set_title(f'{next(letters)}  task {task.upper()}: {told}', loc='left')
    _curves(right, cohorts, parts[task], classes[task])
    right.set_title(f'{next(letters)}  ROC, task {task.upper()}', loc='left')
  _legend(drawing, _cohort_handles(), here)
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
    np.mean([_at(places, *curve, side) for curve in curves], axis=0)
    for side in ('left', 'right')
  ]
  return np.repeat(places, 2), np.stack(sides, axis=1).ravel()


def _at(places: np.ndarray, x: np.ndarray, y: np.ndarray, side: str):
  """Limits of a rising curve at each place, from one side.

  From the left at 0 it is 0, as every curve begins there; from the right at 1,
  the end.
  """
  after = np.clip(np.searchsorted(x, places, side), 1, len(x) - 1)
  x0, x1, y0, y1 = x[after - 1], x[after], y[after - 1], y[after]
  share = np.divide(
    places - x0, x1 - x0, out=np.zeros(len(places)), where=x1 > x0
  )
  found = y0 + np.clip(share, 0, 1) * (y1 - y0)
  if side == 'right':
    return np.where(places >= x[-1], y[-1], found)
  return np.where(places <= x[0], y[0], found)


def _bars(
  ax: axes.Axes,
  groups: Sequence[str],
  series: Sequence[tuple[str, Mapping[str, Sequence]]],
) -> None:
  """Draws values as bars with their intervals, the paper's as diamonds."""
  width = (_LAST - _FIRST) / len(series)
  for i, (color, of) in enumerate(series):
    values = of['ensemble'] if 'ensemble' in of else of['here']
    places = np.arange(len(groups)) + _FIRST + (i + 0.5) * width
    rows = zip(places, values, of['interval'], of['paper'], strict=True)
    for x, value, (low, high), published in rows:
      if value is None:
        ax.text(x, 0.01, 'n/a', ha='center', fontsize=8)
      else:
        ax.bar(x, value, 0.94 * width, color=color)
      if low is not None:
        ends = [x - width / 5] * 2, [low, high]
        style = {'color': 'black', 'lw': 1.3, 'ms': 7, 'clip_on': False}
        ax.plot(*ends, '-_', path_effects=_HALO, **style)
      if published is not None:
        style = {'mfc': 'white', 'mec': 'black', 'ms': 6.5, 'zorder': 3}
        ax.plot(x + width / 5, published, 'D', clip_on=False, **style)
  ax.set(ylim=(0, 1.02), xlim=(0, len(groups)))
  long = sum(map(len, groups)) > _MOST_LETTERS
  turned = {'rotation': 25, 'ha': 'right'} if long else {}
  ax.set_xticks(np.arange(len(groups)) + 0.5, groups, **turned)
  ax.tick_params(axis='x', length=0)
  ax.grid(axis='y', color='0.9')
  ax.set_axisbelow(True)
  ax.spines[['top', 'right']].set_visible(False)


def _curves(
  ax: axes.Axes,
  entries: Mapping[str, Entry],
  parts: Mapping[str, Predictions],
  classes: Sequence[str],
) -> None:
  """Draws the ROC of both cohorts, the AUROC in the legend."""
  ax.plot([0, 1], [0, 1], ':', color='grey', lw=1)
  for (cohort, color), style in zip(
    _COHORT_COLORS.items(), ('-', '--'), strict=True
  ):
    p, of = parts[cohort], entries[cohort].lines
    value = (of['ensemble'] if 'ensemble' in of else of['here'])[-1]
    low, high = of['interval'][-1]
    label = f'{cohort}, {len(p)} slides: AUROC n/a'
    if value is not None:
      label = label.replace('n/a', f'{value:.3f}')
      label += '' if low is None else f' [{low:.3f}, {high:.3f}]'
    ax.plot(*mean_roc(p), style, color=color, lw=2, label=label, clip_on=False)
  told = f' for {classes[1]}' if len(classes) == 2 else ', mean of the classes'
  ax.set(xlim=(0, 1), ylim=(0, 1), aspect='equal')
  ax.set(xlabel='1 - specificity', ylabel=f'sensitivity{told}')
  ax.grid(color='0.92')
  ax.legend(loc='lower right', fontsize=8.5)


def _entry(table: Table, *labels: str) -> Entry:
  return next(e for e in table.entries if e.labels == labels)


def _share(value: float | tuple | None) -> float | tuple | None:
  """Per cent as a share."""
  if isinstance(value, tuple):
    return tuple(map(_share, value))
  return None if value is None else value / 100


def _cohort_handles() -> list[patches.Patch]:
  return [
    patches.Patch(color=color, label=cohort)
    for cohort, color in _COHORT_COLORS.items()
  ]


def _legend(
  drawing: figure.Figure, handles: Sequence[patches.Patch], here: str
) -> None:
  black = {'color': 'black', 'lw': 0, 'ms': 7}
  marks = [
    lines.Line2D([], [], marker='|', label='95 % interval', **black),
    lines.Line2D([], [], marker='D', mfc='white', label=_PUBLISHED, **black),
  ]
  drawing.legend(
    handles=[*handles, *marks],
    loc='outside lower center',
    ncols=len(handles) + len(marks),
    title=here,
  )
