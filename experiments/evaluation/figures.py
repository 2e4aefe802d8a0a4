"""Curves, confusion matrix and calibration of a results folder."""

from collections.abc import Callable, Mapping, Sequence
import functools
import textwrap
from typing import Any

from matplotlib import axes, figure
import numpy as np
from sklearn import metrics as sklearn_metrics

from data.files import counted
from experiments.evaluation import predictions, summary
from experiments.evaluation.predictions import Predictions
from experiments.run.results import Folder
from kmil_jax import calibration, intervals, metrics

# Truth, score and patient of each slide or tile.
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]
_RESAMPLES = 1000  # Of bands.
_GRID = np.linspace(0, 1, 101)
_FEW = 50  # Slides.
_WIDEST = 60  # Letters of a legend that fit below a curve.


def draw(folder: Folder, classes: Sequence[str]) -> None:
  """Draws the test parts, all folds together, into `figures`.

  Writes roc.png, pr.png, confusion.png and reliability.png; of an external
  cohort, its mean probabilities over folds, external_roc.png, external_pr.png
  and external_confusion.png.
  """
  folds = predictions.read_folds(folder, classes)
  test, after = folds.pooled, summary.scaled(folds, summary.temperatures(folds))
  (one, *_) = folds.values()
  name = 'test parts pooled'
  if not len(one['test']):
    name = 'validation part, nothing is tested'
  drawings = {'reliability': _reliability(test, after, name)}
  cohorts = {'': (test, name)}
  if external := predictions.read_external(folder, classes):
    cohorts['external_'] = predictions.mean(external), 'external cohort'
  for prefix, (p, title) in cohorts.items():
    title = _counted(title, p)
    drawings[f'{prefix}roc'] = _roc(p, classes, title)
    drawings[f'{prefix}pr'] = _precision_recall(p, classes, title)
    drawings[f'{prefix}confusion'] = _confusion(p, classes, title)
  for name, drawing in drawings.items():
    write = functools.partial(drawing.savefig, dpi=120, format='png')
    folder.save(f'figures/{name}.png', write)


def _roc(p: Predictions, classes: Sequence[str], title: str) -> figure.Figure:
  return roc(title, _against_rest(p, classes))


def roc(title: str, curves: Mapping[str, Curve]) -> figure.Figure:
  """Draws ROC curves with bands, and names their areas.

  Args:
    title: of the picture.
    curves: by name; of each the truth, bool [n], the score, [n], and the
      patient, [n].
  """
  drawing, ax = _square(title, '1 - specificity', 'sensitivity')
  ax.plot([0, 1], [0, 1], ':', color='grey', lw=1)

  def on_grid(hits, false):
    x, y = (np.r_[0, each / each[-1]] for each in (false, hits))
    return np.interp(_GRID, x, y)

  for i, (name, curve) in enumerate(curves.items()):
    value = metrics.auroc(*curve[:2])
    style = _style(i, len(curves))
    fpr, tpr = [], []
    if np.isfinite(value):
      fpr, tpr, _ = sklearn_metrics.roc_curve(*curve[:2])
      _band(ax, on_grid, curve, style['color'])
    ax.plot(fpr, tpr, label=_label(name, 'AUROC', value, curve), **style)
  return _with_legend(drawing)


def _precision_recall(
  p: Predictions, classes: Sequence[str], title: str
) -> figure.Figure:
  curves = _against_rest(p, classes)
  drawing, ax = _square(title, 'recall', 'precision')

  def on_grid(hits, false):
    first = np.searchsorted(hits / hits[-1], np.maximum(_GRID, 1e-9))
    return (hits / np.maximum(hits + false, 1))[first]

  for i, (name, curve) in enumerate(curves.items()):
    style = _style(i, len(curves))
    positive, prob, _ = curve
    recall, precision, value = [], [], np.nan
    if positive.any():
      points = sklearn_metrics.precision_recall_curve(positive, prob)
      # From the highest threshold on.
      precision, recall = points[0][::-1], points[1][::-1]
      value = sklearn_metrics.average_precision_score(positive, prob)
      # Lower thresholds than that of full recall say nothing more.
      stop = np.searchsorted(recall, 1) + 1
      recall, precision = recall[:stop], precision[:stop]
      # What guessing reaches: the share of the class.
      ax.axhline(positive.mean(), ls=':', lw=1, color=style['color'])
      _band(ax, on_grid, curve, style['color'])
    label = _label(name, 'AP', value, curve)
    ax.step(recall, precision, where='pre', label=label, **style)
  return _with_legend(drawing)


def _with_legend(drawing: figure.Figure) -> figure.Figure:
  """Adds names of curves, which may pass through any corner, below them."""
  text = drawing.legend(loc='outside lower center', fontsize=9).get_texts()
  lines = sum(1 + name.get_text().count('\n') for name in text)
  drawing.set_figheight(drawing.get_figheight() + 0.2 * lines)
  return drawing


def _against_rest(p: Predictions, classes: Sequence[str]) -> dict[str, Curve]:
  """Each class against the rest; of two the second, as the first mirrors it."""
  shown = range(len(classes)) if len(classes) > 2 else [1]
  return {classes[c]: (p.label == c, p.prob[:, c], p.case) for c in shown}


def _band(ax: axes.Axes, on_grid: Callable, curve: Curve, color: str) -> None:
  """Draws where 95 % of the curves of resampled patients lie.

  Args:
    ax: to draw on.
    on_grid: a curve on `_GRID` from the true and the false positives from the
      highest threshold on, each [T].
    curve: no band is drawn if either class is of fewer than two patients.
    color: of the band.
  """
  truth, score, case = curve
  if min(len(set(case[side])) for side in (truth, ~truth)) < 2:
    return
  order, drawn = np.argsort(-score, kind='stable'), []
  last = np.flatnonzero(np.diff(score[order], append=-np.inf))  # Of each tie.
  for weight in intervals.weights(case, _RESAMPLES):
    hits, false = (
      (weight * side)[:, order].cumsum(1)[:, last] for side in (truth, ~truth)
    )
    both = (hits[:, -1] > 0) & (false[:, -1] > 0)
    drawn += map(on_grid, hits[both], false[both])
  band = intervals.percentile(np.array(drawn))
  ax.fill_between(_GRID, *band, color=color, alpha=0.15, lw=0)


def _label(name: str, metric: str, value: float, curve: Curve) -> str:
  truth, _, case = curve
  text = f'{name}, {metric} {_value(value)}; n {truth.sum()} of {len(truth)}'
  text += f', patients {len(set(case[truth]))}' if all(case) else ''
  return textwrap.fill(text, _WIDEST)


def _style(i: int, count: int) -> dict[str, Any]:
  """Style of the i-th curve.

  Curves that coincide, as those of perfect classes do, show as stripes: each is
  narrower than those below it.
  """
  return {
    'clip_on': False,  # A perfect curve runs along the frame.
    'solid_capstyle': 'butt',
    'zorder': 3,
    'color': f'C{i % 10}',
    'linestyle': '--' if i >= 10 else '-',
    'linewidth': 1 + min(1.15, 6 / count) * (count - 1 - i),
  }


def _square(
  title: str, xlabel: str, ylabel: str
) -> tuple[figure.Figure, axes.Axes]:
  """A figure, and its axes from 0 to 1."""
  drawing = figure.Figure((5.2, 5.9), layout='constrained')
  ax = drawing.subplots()
  ax.set(xlim=(0, 1), ylim=(0, 1), aspect='equal')
  ax.set(xlabel=xlabel, ylabel=ylabel)
  note = 'bands: 95 % of resampled patients; dotted: guessing'
  ax.set_title(f'{title}\n{note}', pad=10, fontsize=11)
  ax.grid(color='0.92')
  for side in ax.spines.values():
    side.set_color('0.7')
  return drawing, ax


def _value(x: float) -> str:
  return 'n/a' if np.isnan(x) else f'{x:.3f}'


def _confusion(
  p: Predictions, classes: Sequence[str], title: str
) -> figure.Figure:
  table = sklearn_metrics.confusion_matrix(
    p.label, p.prob.argmax(1), labels=range(len(classes))
  )
  share = table / np.maximum(table.sum(1, keepdims=True), 1)
  names = [textwrap.fill(name, 20) for name in classes]
  # The names of many classes, or long ones, stand upright below the columns.
  crowded = len(names) > 8 or any('\n' in name for name in names)
  more = 2 * crowded + 0.4 * max(len(names) - 5, 0)
  drawing = figure.Figure((5.6 + more, 5 + more), layout='constrained')
  ax = drawing.subplots()
  image = ax.imshow(share, cmap='Blues', vmin=0, vmax=1)
  for (row, column), count in np.ndenumerate(table):
    ax.text(
      column,
      row,
      str(count),
      ha='center',
      va='center',
      color='white' if share[row, column] > 0.5 else 'black',
    )
  ticks = range(len(classes))
  upright = {'rotation': 90} if crowded else {'rotation': 30, 'ha': 'right'}
  ax.set_xticks(ticks, names, **upright)
  ax.set_yticks(ticks, names)
  ax.set(xlabel='predicted', ylabel='true')
  drawing.suptitle(title)
  drawing.colorbar(image, label='share of the true class', shrink=0.8)
  return drawing


def _reliability(
  test: Predictions, after: np.ndarray, part: str
) -> figure.Figure:
  """Accuracy against confidence, and below it the slides of each bin."""
  drawing = figure.Figure((5.2, 6.8), layout='constrained')
  ax, below = drawing.subplots(
    2, sharex=True, gridspec_kw={'height_ratios': [4, 1]}
  )
  ax.plot([0, 1], [0, 1], ':', color='grey', lw=1)
  # Marks of two sizes: both are seen where they coincide.
  for name, prob, color, marker, size in (
    ('as is', test.prob, 'C0', 'o', 11),
    ('at the temperatures', after, 'C1', 's', 5),
  ):
    bins = calibration.reliability(test.label, prob)
    held = np.flatnonzero(bins.count)
    top, hit = prob.max(1), prob.argmax(1) == test.label
    inside = (bins.edges[held, None] < top) & (
      top <= bins.edges[held + 1, None]
    )
    ends = [intervals.proportion(hit, rows, test.case) for rows in inside]
    ends = np.reshape(ends, (-1, 2))
    # One patient leaves all open.
    low, high = np.where(np.isnan(ends), (0, 1), ends).T
    x, y = bins.confidence[held], bins.accuracy[held]
    label = f'{name}, ECE {_value(calibration.ece(test.label, prob))}'
    style = {'fmt': marker, 'ms': size, 'color': color, 'alpha': 0.7}
    ax.errorbar(x, y, np.maximum([y - low, high - y], 0), label=label, **style)
    below.stairs(bins.count, bins.edges, color=color, lw=1.5)
  ax.set(ylabel='accuracy', ylim=(-0.03, 1.03))
  title = f'{_counted(part, test)}\nbars: 95 %, by Wilson'
  if len(test) < _FEW:
    title += f'\nUnder {_FEW} slides: too few to judge the probabilities.'
  ax.set_title(title, fontsize=11)
  drawing.legend(loc='outside lower center', ncols=2, fontsize=9)
  below.set(
    xlabel='probability of the predicted class',
    ylabel='slides',
    # No predicted class has less.
    xlim=(1 / test.prob.shape[1] - 0.03, 1.03),
  )
  below.locator_params('y', integer=True)
  for each in (ax, below):
    each.grid(color='0.92')
    each.set_axisbelow(True)
  return drawing


def _counted(title: str, p: Predictions) -> str:
  slides, patients = len(p), len(set(p.case))
  return (
    f'{title}, {counted(slides, "slide")} of {counted(patients, "patient")}'
  )
