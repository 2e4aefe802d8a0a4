"""Curves, confusion matrix and calibration of a results folder."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from matplotlib import axes, figure
import numpy as np
from sklearn import metrics as sklearn_metrics

from experiments.evaluation import predictions, summary
from experiments.evaluation.predictions import Predictions
from experiments.run.results import Folder
from kmil_jax import calibration, metrics


def draw(folder: Folder, classes: Sequence[str]) -> None:
  """Draws the test parts, all folds together, into `figures`.

  Writes roc.png, pr.png, confusion.png and reliability.png; of an external
  cohort, its mean probabilities over folds, external_roc.png, external_pr.png
  and external_confusion.png.
  """
  folds = predictions.read_folds(folder, classes)
  test = predictions.pool([parts['test'] for parts in folds.values()])
  after = summary.scaled(folds, summary.temperatures(folds))
  drawings = {'reliability': _reliability(test, after)}
  cohorts = {'': (test, 'test parts pooled')}
  if external := predictions.read_external(folder, classes):
    cohorts['external_'] = predictions.mean(external), 'external cohort'
  for prefix, (p, title) in cohorts.items():
    title = f'{title}, {len(p)} slides'
    drawings[f'{prefix}roc'] = _roc(p, classes, title)
    drawings[f'{prefix}pr'] = _precision_recall(p, classes, title)
    drawings[f'{prefix}confusion'] = _confusion(p, classes, title)
  for name, drawing in drawings.items():
    write = functools.partial(drawing.savefig, dpi=120, format='png')
    folder.save(f'figures/{name}.png', write)


def _roc(p: Predictions, classes: Sequence[str], title: str) -> figure.Figure:
  curves = {classes[c]: (p.label == c, p.prob[:, c]) for c in _shown(classes)}
  return roc(title, curves)


def roc(
  title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> figure.Figure:
  """Draws ROC curves, and names their areas.

  Args:
    title: of the picture.
    curves: by name; of each the truth, bool [n], and the score, [n].
  """
  drawing = figure.Figure((5.2, 5.2), layout='constrained')
  ax = _square(drawing, title, '1 - specificity', 'sensitivity')
  ax.plot([0, 1], [0, 1], ':', color='grey', lw=1)
  for i, (name, (truth, score)) in enumerate(curves.items()):
    value = metrics.auroc(truth, score)
    fpr, tpr = [], []
    if np.isfinite(value):
      fpr, tpr, _ = sklearn_metrics.roc_curve(
        truth, score, drop_intermediate=False
      )
    label = f'{name}, AUROC {_value(value)}'
    ax.plot(fpr, tpr, label=label, **_style(i, len(curves)))
  ax.legend(loc='lower right', fontsize=9)
  return drawing


def _precision_recall(
  p: Predictions, classes: Sequence[str], title: str
) -> figure.Figure:
  drawing = figure.Figure((5.2, 6.2), layout='constrained')
  ax = _square(drawing, title, 'recall', 'precision')
  shown = _shown(classes)
  for i, c in enumerate(shown):
    style = _style(i, len(shown))
    positive, prob = p.label == c, p.prob[:, c]
    recall, precision, value = [], [], np.nan
    if positive.any():
      curve = sklearn_metrics.precision_recall_curve(positive, prob)
      # From the highest threshold on.
      precision, recall = curve[0][::-1], curve[1][::-1]
      value = sklearn_metrics.average_precision_score(positive, prob)
      # Lower thresholds than that of full recall say nothing more.
      stop = np.searchsorted(recall, 1) + 1
      recall, precision = recall[:stop], precision[:stop]
      # What guessing reaches: the share of the class.
      ax.axhline(positive.mean(), ls=':', lw=1, color=style['color'])
    label = f'{classes[c]}, AP {_value(value)}'
    ax.step(recall, precision, where='pre', label=label, **style)
  # Curves may pass through any corner.
  drawing.legend(loc='outside lower center', ncols=2, fontsize=9)
  return drawing


def _shown(classes: Sequence[str]) -> Sequence[int]:
  """Classes with a curve: of two, the second; the first is its mirror image."""
  return range(len(classes)) if len(classes) > 2 else [1]


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
    'linewidth': 1 + 1.15 * (count - 1 - i),
  }


def _square(
  drawing: figure.Figure, title: str, xlabel: str, ylabel: str
) -> axes.Axes:
  """Axes from 0 to 1."""
  ax = drawing.subplots()
  ax.set(xlim=(0, 1), ylim=(0, 1), aspect='equal')
  ax.set(xlabel=xlabel, ylabel=ylabel)
  ax.set_title(title, pad=10)
  ax.grid(color='0.92')
  for side in ax.spines.values():
    side.set_color('0.7')
  return ax


def _value(x: float) -> str:
  return 'n/a' if np.isnan(x) else f'{x:.3f}'


def _confusion(
  p: Predictions, classes: Sequence[str], title: str
) -> figure.Figure:
  table = sklearn_metrics.confusion_matrix(
    p.label, p.prob.argmax(1), labels=range(len(classes))
  )
  share = table / np.maximum(table.sum(1, keepdims=True), 1)
  drawing = figure.Figure((5.6, 5), layout='constrained')
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
  ax.set_xticks(ticks, classes, rotation=30, ha='right')
  ax.set_yticks(ticks, classes)
  ax.set(xlabel='predicted', ylabel='true', title=title)
  drawing.colorbar(image, label='share of the true class', shrink=0.8)
  return drawing


def _reliability(test: Predictions, after: np.ndarray) -> figure.Figure:
  """Accuracy against confidence, and below it the slides of each bin."""
  drawing = figure.Figure((5.2, 6.4), layout='constrained')
  ax, below = drawing.subplots(
    2, sharex=True, gridspec_kw={'height_ratios': [4, 1]}
  )
  ax.plot([0, 1], [0, 1], ':', color='grey', lw=1)
  for name, prob, color, marker in (
    ('as is', test.prob, 'C0', 'o'),
    ('at the temperatures', after, 'C1', 's'),
  ):
    bins = calibration.reliability(test.label, prob)
    ece = _value(calibration.ece(test.label, prob))
    held = bins.count > 0
    # The area of a mark says how many slides stand behind it.
    size = 12 + 200 * bins.count[held] / max(bins.count.sum(), 1)
    x, y = bins.confidence[held], bins.accuracy[held]
    ax.plot(x, y, color=color, lw=1.2, alpha=0.85)
    label = f'{name}, ECE {ece}'
    style = {'color': color, 'marker': marker, 'alpha': 0.7}
    ax.scatter(x, y, size, label=label, zorder=3, **style)
    below.stairs(bins.count, bins.edges, color=color, lw=1.5)
  ax.set(ylabel='accuracy', ylim=(-0.03, 1.03))
  ax.set_title(f'test parts pooled, {len(test)} slides')
  legend = ax.legend(loc='lower right', fontsize=9)
  for handle in legend.legend_handles:
    handle.set_sizes([40])
  below.set(
    xlabel='probability of the predicted class',
    ylabel='slides',
    xlim=(-0.03, 1.03),
  )
  for each in (ax, below):
    each.grid(color='0.92')
    each.set_axisbelow(True)
  return drawing
